# SPDX-License-Identifier: Apache-2.0
"""The training of a ladder of energies: its loss, its spectral state, its evaluation."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from scorejax.evaluate.progress import make_evaluate
from scorejax.models.spectral_norm import advance
from scorejax.random import example_keys
from scorejax.train.initial import make_init
from scorejax.train.state import TrainState
from scorejax.train.system import System
from scorejax.typing import Array, Aux, Batch, LossFn, Params, PRNGKeyArray, PyTree, Variables

if TYPE_CHECKING:
    from scorejax.systems.recovery_ebm.model import RecoveryModel

NUM_PUBLISHED_ITERATIONS = 10
"""Power iterations that take the singular vectors of the raw kernels to those of the averages."""
DIVERGENCE = (
    "the energies of negatives have left those of the data by more than energy_band; take a "
    "smaller learning_rate, a longer warmup, spectral_norm=True, a smaller step_scale or a larger "
    "batch_size, in a new workdir"
)
WATCHED = ("loss", "samples", "frechet", "divergence")
"""Metrics that training evaluates; long chains take too long for that."""


def training_system(model: "RecoveryModel", config: Mapping[str, Any]) -> System:
    """Binds a model to its data; reads `batch_size` and `best_metric` of the config.

    Raises: ValueError for an impossible value, FileNotFoundError without data.
    """
    metrics = {name: build for name, build in model.metrics().items() if name in WATCHED}
    example = np.ones((1, *model.data.shape), np.float32)  # NumPy's: compiles nothing.
    level = np.zeros(1, np.int32)
    return System(
        init=make_init(model.network, example, level),
        loss=make_loss(model),
        tx=model.tx,
        source=model.data.training_source(config["batch_size"]),
        evaluate=make_evaluate(metrics, config["best_metric"]),
        published=published,
        paths=model.data.paths,
        divergence=DIVERGENCE,
    )


def make_loss(model: "RecoveryModel") -> LossFn:
    """Builds the batch mean of the objective; a step moves the spectral vectors once.

    Negatives are drawn with the parameters and the vectors that the step starts from. (The
    published code moves the vectors at each of its 33 calls of the network.)
    """

    def loss(
        params: Params, state: TrainState, rng: PRNGKeyArray, batch: Batch
    ) -> tuple[Array, Aux]:
        rngs = example_keys(rng, batch)
        losses, watched = model.losses((params, state.model_state), rngs, batch[model.data.field])
        metrics = {name: jnp.mean(value) for name, value in watched.items()}
        if model.energy_band and "energy_gap" in metrics:
            # False for NaN, which `max_nonfinite_updates` is for.
            outside = jnp.abs(metrics["energy_gap"]) > model.energy_band
            metrics["diverged"] = outside.astype(jnp.float32)
        return jnp.mean(losses), Aux(metrics, iterated(params, state.model_state))

    return loss


def iterated(params: Params, model_state: PyTree, num: int = 1) -> PyTree:
    """The model state after `num` power iterations with these parameters."""
    if "spectral" not in model_state:
        return model_state
    spectral = model_state["spectral"]
    for _ in range(num):
        spectral = advance(params, spectral)
    return {**model_state, "spectral": spectral}


def published(state: TrainState) -> Variables:
    """Averaged parameters, with spectral vectors of their own."""
    params = state.ema_params
    return params, iterated(params, state.model_state, NUM_PUBLISHED_ITERATIONS)
