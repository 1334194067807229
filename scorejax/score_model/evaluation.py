# SPDX-License-Identifier: Apache-2.0
"""Metrics of a score model: held-out loss, likelihood, samples and their Fréchet distance."""

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from scorejax import likelihood as likelihoods
from scorejax.data.view import ImageView
from scorejax.evaluate import progress
from scorejax.evaluate.progress import Metric, Metrics
from scorejax.score_model import sampling
from scorejax.score_model.binding import bind
from scorejax.score_model.options import EvaluationOptions
from scorejax.score_model.sampling import Draw
from scorejax.typing import Array, Batch, Variables

if TYPE_CHECKING:
    from scorejax.score_model import ScoreModel


def likelihood(
    model: "ScoreModel", *, exact: bool = False
) -> Callable[[Variables, Batch], dict[str, Array]]:
    """measure(variables, {"image": (b, h, w, c), "rng": keys (b,)}) -> log_prob, nfe, success.

    `log_prob` (b,) is in nats in the model's units; images have "bits_per_dim" (b,) too, and are as
    `ImageView.dequantized` returns them. Models of vectors read "x" (b, d) in place of "image". An
    answer depends on its own example and key, and on the batch by rounding alone, which the choice
    of steps amplifies (docs/start.md). The divergence is estimated with one random probe, or
    `exact`.
    """
    data, dim = model.data, math.prod(model.data.shape)
    solve = functools.partial(
        likelihoods.log_prob,
        divergence=likelihoods.exact if exact else likelihoods.hutchinson,
        **model.solver_options(),
    )

    def measure(variables: Variables, batch: Batch) -> dict[str, Array]:
        score_fn = model.score(variables)
        one = lambda rng, x: jax.tree.map(jnp.squeeze, solve(rng, model.sde, score_fn, x[None]))
        rows = jax.vmap(one)(batch["rng"], batch[data.field])
        measured = {"log_prob": rows.log_prob, "nfe": rows.nfe, "success": rows.success}
        if isinstance(data, ImageView):
            units = {"levels": data.levels, "data_range": data.data_range}
            measured["bits_per_dim"] = likelihoods.bits_per_dim(rows.log_prob, dim, **units)
        return measured

    return measure


def metrics(model: "ScoreModel") -> Metrics:
    """By name: "loss", "bits_per_dim" ("log_prob" of vectors), "samples" and "frechet".

    Those whose number of examples in `model.eval_options` is 0 are left out. Samples and their
    distance are of images only, by the model's trajectory and first sampler. No device computes
    more examples at a time than it trains on.
    """
    options, data = model.eval_options, model.data

    chunks = {"batch_size": options.examples_at_once}

    numbers = options.eval_examples, options.eval_bits_examples, options.batch_size
    held_out = functools.cache(lambda: progress.held_out_examples(data, *numbers))

    def loss() -> Metric:
        def losses(variables: Variables, rngs: Array, x: Array) -> Array:
            return model.example_loss(bind(model.network, variables), rngs, x)

        return progress.held_out_loss(losses, held_out()[0], field=data.field, **chunks)

    def density(name: str) -> Metric:
        named = {"names": [name], "field": data.field}
        return progress.held_out_density(likelihood(model), held_out()[1], **named, **chunks)

    def samples() -> Metric:
        shown = {"caption": sampling.default_caption(model), **chunks}
        return progress.chain_pictures(model.trajectory(model), options.eval_samples, **shown)

    builders: Metrics = {"loss": loss}
    pictured = isinstance(data, ImageView)
    if options.eval_bits_examples:
        name = "bits_per_dim" if pictured else "log_prob"
        builders[name] = functools.partial(density, name)
    if pictured and options.eval_samples:
        builders["samples"] = samples
    if pictured and options.eval_frechet_samples:
        builders["frechet"] = lambda: frechet_distance(model.sampler(), data, options)
    return builders


def frechet_distance(draw: Draw, images: ImageView, options: EvaluationOptions) -> Metric:
    """The metric "frechet" of samples, by their number and features in the options."""
    # Half a second of SciPy and Inception that other runs need not pay.
    from scorejax.evaluate.sample_distance import image_features, sample_distance

    features = image_features(options.eval_features, options.eval_matmul_precision)
    num, batch = options.eval_frechet_samples, options.examples_at_once
    return sample_distance(draw, features, images, num=num, batch=batch)
