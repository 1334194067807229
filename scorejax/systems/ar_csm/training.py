# SPDX-License-Identifier: Apache-2.0
"""The training of univariate conditional scores."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from scorejax.data.view import ImageView
from scorejax.evaluate.progress import make_evaluate
from scorejax.random import example_keys, split
from scorejax.train.initial import make_init
from scorejax.train.state import TrainState
from scorejax.train.system import System
from scorejax.typing import Array, Aux, Batch, LossFn, Params, PRNGKeyArray

if TYPE_CHECKING:
    from scorejax.systems.ar_csm.model import ConditionalModel

NUM_INITIAL = 32
"""Training images from which weight normalisation takes its first scales."""


def training_system(model: "ConditionalModel", config: Mapping[str, Any]) -> System:
    """Binds a model to its data; reads `batch_size` and `best_metric` of the config.

    Raises: ValueError for an impossible value, FileNotFoundError without data.
    """
    data, metrics = model.data, model.metrics()
    if "valid_log_prob" in metrics:  # Test rows are for reports, not for choosing a checkpoint.
        metrics.pop("log_prob", None)
    num = NUM_INITIAL if isinstance(data, ImageView) else 1
    x = data.density_examples(np.random.default_rng(0), num, "train")
    sigma = None if model.sigmas is None else np.ones(x.shape, np.float32)
    condition = np.ones((len(x), 1), np.float32) if model.noisy_context else None
    return System(
        init=make_init(model.network, x, sigma, condition),
        loss=make_loss(model),
        tx=model.tx,
        source=data.training_source(config["batch_size"]),
        evaluate=make_evaluate(metrics, config["best_metric"]),
        paths=data.paths,
    )


def make_loss(model: "ConditionalModel") -> LossFn:
    """Builds the batch mean of the objective, with dropout."""

    def loss(
        params: Params, state: TrainState, rng: PRNGKeyArray, batch: Batch
    ) -> tuple[Array, Aux]:
        rng, dropout_rng = split(example_keys(rng, batch))
        bound = model.bind((params, state.model_state), dropout_rng)
        value = jnp.mean(model.objective(bound, rng, batch[model.data.field]))
        return value, Aux({"loss": value}, state.model_state)

    return loss
