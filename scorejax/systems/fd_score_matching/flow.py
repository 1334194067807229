# SPDX-License-Identifier: Apache-2.0
"""NICE trained by any objective, and judged by its exact likelihood.

The flow is of the logits of dequantised images. The published code clamps the images before the
logit, which heaps the density up at both ends; here they are squeezed into (squeeze, 1 - squeeze)
as by Dinh et al. 2017, arXiv:1605.08803, so that bits per dimension are those of the images.

Source: Pang et al. 2020, arXiv:2007.03317, Section 5.3.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from scorejax.capabilities import Draw, require_one_step
from scorejax.choices import require
from scorejax.data.view import VIEW_DEFAULTS, VIEW_OPTIONS, ImageView
from scorejax.evaluate import progress
from scorejax.evaluate.held_out import HeldOut
from scorejax.evaluate.progress import Metric, Metrics
from scorejax.likelihood import bits_per_dim
from scorejax.models.nice import NICE
from scorejax.numerics import sum_except_batch
from scorejax.random import Rng
from scorejax.systems.fd_score_matching import training
from scorejax.train.initial import make_init
from scorejax.train.system import System
from scorejax.typing import Array, Batch, LossFn, Params, PRNGKeyArray, PyTree, Variables

NETWORK_OPTIONS = ("num_couplings", "hidden", "num_hidden")
KEYS = (
    *VIEW_OPTIONS, "model", "squeeze", *NETWORK_OPTIONS, *training.OPTIONS,
    *training.OPTIMIZER_OPTIONS, "eval_examples", "eval_exact_examples", "eval_samples",
)  # fmt: skip
"""Keys that a config needs, beside `system` and those of the training loop."""
OPTIONS = VIEW_DEFAULTS
"""Keys that it may have."""


def build(config: ConfigDict) -> System:
    """The training of a config. Raises: ValueError, or FileNotFoundError without its data."""
    return training.image_system(make_model(config), config)


def make_model(config: ConfigDict) -> "Flow":
    """The model of a config. Raises: ValueError for an impossible value."""
    data = ImageView.from_options(config)
    if data.centered or not data.uniform_dequantization:
        raise ValueError(
            "a flow of logits needs centered=False and uniform_dequantization=True; got "
            f"{data.centered} and {data.uniform_dequantization}"
        )
    require(config, NETWORK_OPTIONS, lambda v: v >= 1, "to be at least 1")
    require(config, ("squeeze",), lambda v: 0 < v < 0.5, "to lie between 0 and 0.5")
    dim = math.prod(data.shape)
    return Flow(
        data=data,
        network=NICE(dim=dim, **{option: config[option] for option in NETWORK_OPTIONS}),
        squeeze=config.squeeze,
        objective=training.make_objective(config, (dim,), normalised=True),
        tx=training.optimizer(config),
        held_out=HeldOut.from_options(config, data),
    )


@dataclasses.dataclass(frozen=True)
class Flow:
    """A density of dequantised images in [0, 1], by a flow of their logits."""

    data: ImageView
    network: NICE
    squeeze: float
    objective: training.EnergyObjective
    tx: optax.GradientTransformation
    held_out: HeldOut
    sampler_names: ClassVar[tuple[str, ...]] = ("inverse",)

    @property
    def init(self) -> Callable[[PRNGKeyArray], tuple[Params, PyTree]]:
        """rng -> (params, model_state)."""
        return make_init(self.network, np.ones((1, *self.data.shape), np.float32))

    @property
    def loss(self) -> LossFn:
        """The objective on the logits of a batch."""
        return training.make_loss(self.losses)

    def energy(self, params: Params, y: Array) -> Array:
        """-log density of logits y (b, h, w, c), in nats: (b,)."""
        return -self.network.apply({"params": params}, y)

    def losses(self, params: Params, rng: Rng, images: Array) -> Array:
        """The objective of each image, on its logits: (b,)."""
        energy = functools.partial(self.energy, params)
        return self.objective(energy, rng, logit(images, self.squeeze))

    def likelihood(self, *, exact: bool = False) -> Callable[[Variables, Batch], dict[str, Array]]:
        """measure(variables, {"image", ...}) -> bits_per_dim, log_prob of the logits in nats, nfe.

        The likelihood is exact with or without `exact`.
        """
        del exact
        units = {"levels": self.data.levels, "data_range": self.data.data_range}

        def measure(variables: Variables, batch: Batch) -> dict[str, Array]:
            x = batch["image"]
            with jax.default_matmul_precision("highest"):
                log_prob = -self.energy(variables[0], logit(x, self.squeeze))
            of_images = log_prob + log_det_logit(x, self.squeeze)
            bits = bits_per_dim(of_images, self.network.dim, **units)
            one = jnp.ones(len(x), jnp.int32)
            return {"bits_per_dim": bits, "log_prob": log_prob, "nfe": one, "success": one == 1}

        return measure

    def sampler(self, name: str = "", **options: Any) -> Draw:
        """The inverse flow of draws of its base.

        Raises: ValueError for any sampler but "inverse", more than one step, or a condition.
        """
        require_one_step("inverse", name, **options)
        shape = (1, *self.data.shape)

        def draw(variables: Variables, rngs: PRNGKeyArray) -> dict[str, Array]:
            bound = {"params": variables[0]}
            one = lambda rng: self.network.apply(bound, rng, shape, method="sample")[0]
            y = jax.vmap(one)(rngs)
            return {"image": unlogit(y, self.squeeze), "nfe": jnp.ones(len(rngs), jnp.int32)}

        return draw

    def metrics(self) -> Metrics:
        """By name: held-out loss, exact likelihood, exact score-matching loss of a few, samples."""
        held_out = self.held_out

        def exact() -> Metric:
            few = logit(held_out.images(held_out.eval_exact_examples), self.squeeze)
            return training.exact_metric(self.energy, few)

        builders: Metrics = {
            "loss": lambda: training.held_out_loss(self.losses, held_out),
            "bits_per_dim": lambda: progress.held_out_density(
                self.likelihood(),
                held_out.images(),
                names=["bits_per_dim", "log_prob"],
                batch_size=held_out.examples_at_once,
            ),
        }
        if held_out.eval_exact_examples:
            builders["score_matching"] = exact
        if held_out.eval_samples:
            builders["samples"] = lambda: progress.sample_pictures(
                self.sampler(),
                held_out.eval_samples,
                batch_size=held_out.examples_at_once,
                sampler=self.sampler_names[0],
            )
        return builders


def logit(x: Array, squeeze: float) -> Array:
    """log(p / (1 - p)) of p = squeeze + (1 - 2 squeeze) x, for x in [0, 1]."""
    p = squeeze + (1 - 2 * squeeze) * x
    return jnp.log(p) - jnp.log1p(-p)


def unlogit(y: Array, squeeze: float) -> Array:
    """The inverse of `logit`; logits of no image go somewhat beyond [0, 1]."""
    return (jax.nn.sigmoid(y) - squeeze) / (1 - 2 * squeeze)


def log_det_logit(x: Array, squeeze: float) -> Array:
    """Log-determinant of the Jacobian of `logit` at each image: (b,)."""
    p = squeeze + (1 - 2 * squeeze) * x
    return sum_except_batch(math.log(1 - 2 * squeeze) - jnp.log(p) - jnp.log1p(-p))
