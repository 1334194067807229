# SPDX-License-Identifier: Apache-2.0
"""NICE trained by any objective, and judged by its exact likelihood.

The flow is of the logits of dequantised images. The published code clamps the images before the
logit, which heaps the density up at both ends; here they are squeezed into (squeeze, 1 - squeeze)
as by Dinh et al. 2017, arXiv:1605.08803, so that bits per dimension are those of the images.

Source: Pang et al. 2020, arXiv:2007.03317, Section 5.3.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from scorejax import systems
from scorejax.choices import require
from scorejax.data.view import ImageView
from scorejax.evaluate import progress
from scorejax.likelihood import bits_per_dim
from scorejax.models.nice import NICE
from scorejax.numerics import sum_except_batch
from scorejax.random import Rng
from scorejax.report import Evaluation
from scorejax.systems.fd_score_matching import training
from scorejax.typing import Array, Batch, LossFn, OfflineSource, Params, PRNGKeyArray, Variables

make_optimizer = training.make_optimizer

NETWORK_OPTIONS = ("num_couplings", "hidden", "num_hidden")
KEYS = (
    *(field.name for field in dataclasses.fields(ImageView)), "model", "squeeze", *NETWORK_OPTIONS,
    *training.OPTIONS, *training.OPTIMIZER_OPTIONS,
    "eval_examples", "eval_exact_examples", "eval_samples",
)  # fmt: skip
"""What is read of a config, beside `system` and what the training loop reads."""


def image_view(config: ConfigDict) -> ImageView:
    """The data of a config. Raises: ValueError unless it is dequantised images in [0, 1]."""
    view = ImageView.from_options(config)
    if view.centered or not view.uniform_dequantization:
        raise ValueError(
            "a flow of logits needs centered=False and uniform_dequantization=True; got "
            f"{view.centered} and {view.uniform_dequantization}"
        )
    return view


def make_network(config: ConfigDict) -> NICE:
    """Raises: ValueError for sizes below 1."""
    require(config, NETWORK_OPTIONS, lambda v: v >= 1, "to be at least 1")
    sizes = {option: config[option] for option in NETWORK_OPTIONS}
    return NICE(dim=math.prod(image_view(config).shape), **sizes)


def make_init(config: ConfigDict) -> Callable:
    """rng -> (params, model_state). Raises: as the network."""
    return systems.make_init(make_network(config), image_view(config).shape)


def make_source(config: ConfigDict) -> OfflineSource:
    """Training batches. Raises: as the data set."""
    return image_view(config).training_source(config.batch_size)


def make_loss(config: ConfigDict) -> LossFn:
    """The config's objective on the logits, as a training loss."""
    return training.make_loss(row_losses(config))


def row_losses(config: ConfigDict) -> training.RowLosses:
    """The config's objective of each image. Raises: ValueError for an impossible one."""
    model, squeeze = make_network(config), required_squeeze(config)
    objective = training.make_objective(config, (model.dim,), normalised=True)

    def losses(params: Params, rng: Rng, images: Array) -> Array:
        energy = lambda y: -model.apply({"params": params}, y)
        return objective(energy, rng, logit(images, squeeze))

    return losses


def logit(x: Array, squeeze: float) -> Array:
    """log(p / (1 - p)) of p = squeeze + (1 - 2 squeeze) x, for x in [0, 1]."""
    p = squeeze + (1 - 2 * squeeze) * x
    return jnp.log(p) - jnp.log1p(-p)


def unlogit(y: Array, squeeze: float) -> Array:
    """The x of which y is the logit; somewhat outside of [0, 1] if no x of it is."""
    return (jax.nn.sigmoid(y) - squeeze) / (1 - 2 * squeeze)


def log_det_logit(x: Array, squeeze: float) -> Array:
    """Logarithm of the volume that `logit` makes of a unit of it, for each image: (b,)."""
    p = squeeze + (1 - 2 * squeeze) * x
    return sum_except_batch(math.log(1 - 2 * squeeze) - jnp.log(p) - jnp.log1p(-p))


def required_squeeze(config: ConfigDict) -> float:
    """Raises: ValueError unless logits of black and white are finite."""
    require(config, ("squeeze",), lambda v: 0 < v < 0.5, "to lie between 0 and 0.5")
    return config.squeeze


def likelihood(config: ConfigDict, *, exact: bool = False) -> Callable:
    """measure(variables, {"image", ...}) -> rows bits_per_dim, log_prob of the logits in nats.

    Exact with or without `exact`.
    """
    model, view, squeeze = make_network(config), image_view(config), required_squeeze(config)
    units = {"levels": view.levels, "data_range": view.data_range}

    def measure(variables: Variables, batch: Batch) -> dict[str, Array]:
        x = batch["image"]
        log_prob = model.apply({"params": variables[0]}, logit(x, squeeze))
        bits = bits_per_dim(log_prob + log_det_logit(x, squeeze), model.dim, **units)
        one = jnp.ones(len(x), jnp.int32)
        return {"bits_per_dim": bits, "log_prob": log_prob, "nfe": one, "success": one == 1}

    return measure


def sampler(config: ConfigDict, name: str, *, num_steps: int = 0, nfe: int = 0) -> Callable:
    """draw(variables, rngs) -> {"image": in [0, 1], not clipped, "nfe"}: one pass, backwards.

    Raises: ValueError for any sampler but "inverse", or another number of evaluations.
    """
    training.require_one_step(name, "inverse", num_steps, nfe)
    model, shape, squeeze = make_network(config), image_view(config).shape, required_squeeze(config)

    def draw(variables: Variables, rngs: PRNGKeyArray) -> dict[str, Array]:
        one = lambda rng: model.apply({"params": variables[0]}, rng, (1, *shape), method="sample")[
            0
        ]
        y = jax.vmap(one)(rngs)
        return {"image": unlogit(y, squeeze), "nfe": jnp.ones(len(rngs), jnp.int32)}

    return draw


def metrics(config: ConfigDict) -> dict[str, progress.Metric]:
    """By name: held-out loss, exact likelihood, exact score-matching loss of a few, samples."""
    require(config, ("eval_examples",), lambda v: v >= 1, "to be at least 1")
    counts = ("eval_exact_examples", "eval_samples")
    require(config, counts, lambda v: v >= 0, "to be at least 0")
    batches = training.held_out_batches(config, image_view(config))
    model = make_network(config)
    found = {
        "loss": training.held_out_loss(row_losses(config), batches),
        "bits_per_dim": _likelihood_metric(jax.jit(likelihood(config)), batches),
    }
    if config.eval_exact_examples:
        few = training.first_images(batches, config.eval_exact_examples)
        y = logit(few, required_squeeze(config))
        energy = lambda params, y: -model.apply({"params": params}, y)
        found["score_matching"] = training.exact_metric(energy, y)
    if config.eval_samples:
        found["samples"] = _samples_metric(config)
    return found


def _likelihood_metric(measure: Callable, batches: list[Batch]) -> progress.Metric:
    def metric(rng: PRNGKeyArray, variables: Variables) -> Evaluation:
        parts = [(measure(variables, {"image": b["image"]}), b["mask"]) for b in batches]
        gather = lambda name: np.concatenate([np.asarray(p[name])[mask] for p, mask in parts])
        scalars = progress.summary("bits_per_dim", gather("bits_per_dim")[None])
        return Evaluation(scalars | progress.summary("log_prob", gather("log_prob")[None]), {})

    return metric


def _samples_metric(config: ConfigDict) -> progress.Metric:
    draw = jax.jit(sampler(config, ""))

    def metric(rng: PRNGKeyArray, variables: Variables) -> Evaluation:
        from scorejax.evaluate import pictures  # A second of matplotlib, once training runs.

        images = draw(variables, jax.random.split(rng, config.eval_samples))["image"]
        return Evaluation({}, {"samples": pictures.image_grid(images)})

    return metric
