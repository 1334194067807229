# SPDX-License-Identifier: Apache-2.0
"""Metrics of univariate conditional scores: held-out loss, exact densities, samples, denoising."""

import functools
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from scorejax.data.tables import TableView
from scorejax.data.view import ImageView
from scorejax.evaluate import progress
from scorejax.evaluate.chunks import joined, make_stream
from scorejax.evaluate.progress import Metric, Metrics
from scorejax.numerics import mean_except_batch, sum_except_batch
from scorejax.random import normal
from scorejax.report import Evaluation
from scorejax.score_model.evaluation import frechet_distance
from scorejax.typing import Array, Batch, PRNGKeyArray, Variables

if TYPE_CHECKING:
    from scorejax.systems.ar_csm.model import ConditionalModel

NUM_SHOWN = 128
"""Points along each side of a picture of a density."""


def metrics(model: "ConditionalModel") -> Metrics:
    """By name: "loss"; "bits_per_dim" of images, "log_prob" of vectors, "valid_log_prob" of tables;
    "samples" and "frechet" of images; "divergence" of points of the plane.

    Those whose number of examples in `model.eval_options` is 0 are left out. Models with contexts
    of noisy values have the loss and, of images, "psnr".
    """
    options, data = model.eval_options, model.data
    at_once = {"batch_size": options.examples_at_once}
    pictured = isinstance(data, ImageView)

    numbers = options.eval_examples, options.eval_bits_examples, options.batch_size
    held_out = functools.cache(lambda: progress.held_out_examples(data, *numbers))

    def loss() -> Metric:
        return progress.held_out_loss(model.losses, held_out()[0], field=data.field, **at_once)

    def density(name: str) -> Metric:
        return exact_density(model, held_out()[1], name)

    def samples() -> Metric:
        shown = {"sampler": model.sampler_names[0], **at_once}
        return progress.sample_pictures(model.sampler(), options.eval_samples, **shown)

    builders: Metrics = {"loss": loss}
    if model.noisy_context:
        return builders | ({"psnr": lambda: denoising(model, held_out()[0])} if pictured else {})
    if isinstance(data, TableView):
        builders["valid_log_prob"] = lambda: exact_density(model, data.valid, "valid_log_prob")
    if options.eval_bits_examples:
        name = "bits_per_dim" if pictured else "log_prob"
        builders[name] = functools.partial(density, name)
    if pictured and options.eval_samples:
        builders["samples"] = samples
    if pictured and options.eval_frechet_samples:
        builders["frechet"] = lambda: frechet_distance(model.sampler(), data, options)
    if model.truth is not None:
        builders["divergence"] = lambda: plane_divergence(model)
    return builders


def exact_density(model: "ConditionalModel", x: np.ndarray, name: str) -> Metric:
    """Mean log-density or bits/dim of examples, and the largest error of a quadrature, in nats."""
    at_once, field = model.eval_options.examples_at_once, model.data.field
    measured = progress.held_out_rows(model.likelihood(), x, batch_size=at_once, field=field)

    def metric(rng: PRNGKeyArray, variables: Variables) -> Evaluation:
        rows = measured(variables)
        values = rows[name.removeprefix("valid_")]
        scalars = progress.summary(name, values[None])
        return Evaluation(scalars | {f"{name}_largest_error": float(rows["error"].max())}, {})

    return metric


def denoising(model: "ConditionalModel", x: np.ndarray) -> Metric:
    """PSNR in dB of causally denoised images at three noise levels, and of the noisy images."""
    levels = model.sigmas[[0, len(model.sigmas) // 2, -1]]
    peak = float(np.ptp(model.data.data_range))

    def measure(variables: Variables, rows: Batch) -> dict[str, Array]:
        clean, z = rows["image"], normal(rows["rng"], rows["image"].shape)
        errors = {}
        for i, sigma in enumerate(levels):
            noisy = clean + sigma * z
            denoised = model.denoised(variables, noisy, jnp.full(len(clean), sigma, clean.dtype))
            errors[f"noisy_{i}"] = mean_except_batch((noisy - clean) ** 2)
            errors[f"denoised_{i}"] = mean_except_batch((denoised - clean) ** 2)
        return errors

    measured = progress.held_out_rows(measure, x, batch_size=model.eval_options.examples_at_once)

    def metric(rng: PRNGKeyArray, variables: Variables) -> Evaluation:
        errors = measured(variables)
        decibels = lambda error: float(10 * np.log10(peak**2 / error.mean(dtype=float)))
        scalars = {}
        for i, sigma in enumerate(levels):
            scalars[f"psnr_noisy_{sigma:.3g}"] = decibels(errors[f"noisy_{i}"])
            scalars[f"psnr_denoised_{sigma:.3g}"] = decibels(errors[f"denoised_{i}"])
        scalars["psnr"] = scalars[f"psnr_denoised_{levels[1]:.3g}"]
        return Evaluation(scalars, {})

    return metric


def plane_divergence(model: "ConditionalModel") -> Metric:
    """KL(truth || model) in nats over held-out draws, with a picture of both densities.

    Draws and truth have the noise of the data that the model has learned.
    """
    from scorejax.evaluate import plane

    options, sigma = model.eval_options, model.noise
    truth, limit = model.truth.noised(1.0, sigma), max(-model.low, model.high)
    rng = np.random.default_rng(0)
    x = model.data.density_examples(rng, options.eval_examples)
    x = x + np.float32(sigma) * rng.standard_normal(x.shape, dtype=np.float32)

    def log_prob(variables: Variables, x: Array) -> Array:
        return sum_except_batch(model.conditionals(variables, x).log_prob)

    def measure(variables: Variables, rows: Batch) -> dict[str, Array]:
        return {"difference": truth.log_prob(rows["x"]) - log_prob(variables, rows["x"])}

    stream = make_stream(measure)
    true_grid = plane.grid_log_prob(truth.log_prob, limit=limit, num=NUM_SHOWN)

    def metric(rng: PRNGKeyArray, variables: Variables) -> Evaluation:
        rows = joined(stream(variables, {"x": x}, options.examples_at_once))
        scalars = progress.summary("divergence", rows["difference"][None])
        at = functools.partial(log_prob, variables)
        grids = {"truth": true_grid, "model": plane.grid_log_prob(at, limit=limit, num=NUM_SHOWN)}
        return Evaluation(scalars, {"density": plane.plane_picture(grids, limit=limit)})

    return metric
