# SPDX-License-Identifier: Apache-2.0
"""What a run of the score SDE is judged by: bits per dimension, held-out loss, samples."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from scorejax import likelihood as likelihoods
from scorejax.choices import require, unknown
from scorejax.data.source import padded_batches
from scorejax.evaluate import progress
from scorejax.evaluate.report import Evaluation
from scorejax.samplers import predictor_corrector as pc
from scorejax.systems.score_sde.model import (
    Variables,
    bind,
    image_view,
    make_example_loss,
    make_network,
    make_sde,
    score_of,
    tolerances,
)
from scorejax.systems.score_sde.sampling import chain_options
from scorejax.train import parallel
from scorejax.train.state import TrainState
from scorejax.typing import Array, Batch, PRNGKeyArray

NUM_FRAMES = 10


def likelihood(config: ConfigDict, *, exact: bool = False) -> Callable:
    """measure(variables, {"image": (b, h, w, c), "rng": keys (b,)}) -> bits_per_dim, nfe, success.

    The images are as `ImageView.dequantized` returns them. An answer depends on its own image and
    key alone. The divergence is estimated with one random probe, or `exact`.
    """
    sde, images, score = make_sde(config), image_view(config), score_of(config)
    divergence = likelihoods.exact if exact else likelihoods.hutchinson
    solve = functools.partial(likelihoods.log_prob, divergence=divergence, **tolerances(config))
    dim, units = math.prod(images.shape), {"levels": images.levels, "data_range": images.data_range}

    def measure(variables: Variables, batch: Batch) -> dict[str, Array]:
        score_fn = score(variables)
        one = lambda rng, x: jax.tree.map(jnp.squeeze, solve(rng, sde, score_fn, x[None]))
        rows = jax.vmap(one)(batch["rng"], batch["image"])
        bits = likelihoods.bits_per_dim(rows.log_prob, dim, **units)
        return {"bits_per_dim": bits, "nfe": rows.nfe, "success": rows.success}

    return measure


def metrics(config: ConfigDict) -> dict[str, progress.Metric]:
    """By name: held-out loss, bits/dim of a few test images, samples and their way from noise."""
    require(config, ("eval_examples",), lambda v: v >= 1, "to be at least 1")
    counts = ("eval_bits_examples", "eval_samples")
    require(config, counts, lambda v: v >= 0, "to be at least 0")
    images, noise = image_view(config), np.random.default_rng(0)
    test = images.stored("test", max(config.eval_examples, config.eval_bits_examples))
    batches = [
        batch | {"image": images.as_trained(noise, batch["image"])}
        for batch in padded_batches(test, config.batch_size)
    ]
    found = {"loss": progress.held_out_loss(_row_losses(config), batches)}
    if config.eval_bits_examples:
        measure = parallel.map_over_devices(likelihood(config))
        x = images.dequantized(noise, test.image[: config.eval_bits_examples])
        found["bits_per_dim"] = progress.held_out_bits(measure, x)
    if config.eval_samples:
        found["samples"] = progress.chain_pictures(_trajectory(config))
    return found


def make_evaluate(config: ConfigDict) -> Callable[[PRNGKeyArray, TrainState], Evaluation]:
    """All metrics, of the averaged parameters. Raises: ValueError for an unknown best_metric."""
    found = metrics(config)
    if config.best_metric not in ("", *found) or config.best_metric == "samples":
        raise unknown("best_metric", config.best_metric, found.keys() - {"samples"})

    def evaluate(rng: PRNGKeyArray, state: TrainState) -> Evaluation:
        variables = state.ema_params, state.model_state
        parts = [metric(rng, variables) for metric in found.values()]
        scalars = {name: value for part in parts for name, value in part.scalars.items()}
        return Evaluation(scalars, {k: v for part in parts for k, v in part.pictures.items()})

    return evaluate


def _row_losses(config: ConfigDict) -> Callable[[Variables, PRNGKeyArray, Array], Array]:
    model, example_loss = make_network(config), make_example_loss(config, make_sde(config))
    return jax.jit(lambda variables, rng, x: example_loss(bind(model, variables), rng, x))


def _trajectory(config: ConfigDict) -> Callable[[Variables, PRNGKeyArray], Array]:
    sde, images, score = make_sde(config), image_view(config), score_of(config)
    chain, shape = chain_options(config, sde), (config.eval_samples, *images.shape)
    options = chain | {"num_frames": min(NUM_FRAMES, chain["num_steps"])}

    @jax.jit
    def trajectory(variables: Variables, rng: PRNGKeyArray) -> Array:
        score_fn = score(variables)
        chained = pc.predictor_corrector_trajectory(rng, score_fn, shape, **options)
        return images.to_unit(chained.x)

    return trajectory
