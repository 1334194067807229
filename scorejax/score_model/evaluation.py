# SPDX-License-Identifier: Apache-2.0
"""What a score model is judged by: bits per dimension, held-out loss, samples."""

import functools
import math
from collections.abc import Callable, Collection

import jax
import jax.numpy as jnp
import numpy as np

from scorejax import likelihood as likelihoods
from scorejax.choices import require, unknown
from scorejax.data.images import Images
from scorejax.data.source import padded_batches
from scorejax.evaluate import progress
from scorejax.report import Evaluation
from scorejax.samplers import predictor_corrector as pc
from scorejax.score_model import ScoreModel
from scorejax.score_model.sampling import chain_options, sampler
from scorejax.train import parallel
from scorejax.train.state import TrainState
from scorejax.typing import Array, Batch, PRNGKeyArray, Variables

NUM_FRAMES = 10


def likelihood(model: ScoreModel, *, exact: bool = False) -> Callable:
    """measure(variables, {"image": (b, h, w, c), "rng": keys (b,)}) -> bits_per_dim, nfe, success.

    The images are as `ImageView.dequantized` returns them. An answer depends on its own image and
    key alone. The divergence is estimated with one random probe, or `exact`.
    """
    images = model.images
    divergence = likelihoods.exact if exact else likelihoods.hutchinson
    solve = functools.partial(likelihoods.log_prob, divergence=divergence, **model.tolerances)
    dim, units = math.prod(images.shape), {"levels": images.levels, "data_range": images.data_range}

    def measure(variables: Variables, batch: Batch) -> dict[str, Array]:
        score_fn = model.score(variables)
        one = lambda rng, x: jax.tree.map(jnp.squeeze, solve(rng, model.sde, score_fn, x[None]))
        rows = jax.vmap(one)(batch["rng"], batch["image"])
        bits = likelihoods.bits_per_dim(rows.log_prob, dim, **units)
        return {"bits_per_dim": bits, "nfe": rows.nfe, "success": rows.success}

    return measure


RowLosses = Callable[[Variables, PRNGKeyArray, Array], Array]
"""(variables, rng, x (b, h, w, c)) -> the loss of each image, (b,)."""
Trajectory = Callable[[Variables, PRNGKeyArray], Array]
"""(variables, rng) -> frames of samples (frames, b, h, w, c) in [0, 1], the last one their end."""


def metrics(
    model: ScoreModel,
    row_losses: RowLosses,
    trajectory: Trajectory | None = None,
    draw: Callable | None = None,
) -> dict[str, progress.Metric]:
    """By name: held-out loss, bits/dim of a few test images, samples, their way and distance.

    The way from noise is that of the predictor-corrector chain, unless there is another
    `trajectory`; the samples whose distance is taken are that chain's too, unless there is another
    `draw`, as `sampling.sampler` makes it.
    """
    options, images, noise = model.options, model.images, np.random.default_rng(0)
    require(options, ("eval_examples",), lambda v: v >= 1, "to be at least 1")
    counts = ("eval_bits_examples", "eval_samples", "eval_frechet_samples")
    require(options, counts, lambda v: v >= 0, "to be at least 0")
    num_bits = options["eval_bits_examples"]
    test = images.stored("test", max(options["eval_examples"], num_bits))
    few = Images(*(field[: options["eval_examples"]] for field in test))
    batches = [
        batch | {"image": images.as_trained(noise, batch["image"])}
        for batch in padded_batches(few, options["batch_size"])
    ]
    found = {"loss": progress.held_out_loss(jax.jit(row_losses), batches)}
    if num_bits:
        measure = parallel.map_over_devices(likelihood(model))
        x = images.dequantized(noise, test.image[:num_bits])
        found["bits_per_dim"] = progress.held_out_bits(measure, x)
    if options["eval_samples"]:
        shown = trajectory or _predictor_corrector_trajectory(model)
        found["samples"] = progress.chain_pictures(jax.jit(shown))
    if options["eval_frechet_samples"]:
        # Half a second of SciPy and Inception that other runs need not pay.
        from scorejax.evaluate.sample_distance import image_features, sample_distance

        found["frechet"] = sample_distance(
            draw or sampler(model, ""),
            image_features(options["eval_features"]),
            images,
            num=options["eval_frechet_samples"],
            batch=options["batch_size"],
        )
    return found


def make_evaluate(
    found: dict[str, progress.Metric],
    best_metric: str,
    *,
    unranked: Collection[str] = ("samples",),
) -> Callable[[PRNGKeyArray, TrainState], Evaluation]:
    """All the metrics, of the averaged parameters; `unranked` are those without a number.

    Raises: ValueError for a best metric that is not among those with one.
    """
    ranked = found.keys() - set(unranked)
    if best_metric not in ("", *ranked):
        raise unknown("best_metric", best_metric, ranked)

    def evaluate(rng: PRNGKeyArray, state: TrainState) -> Evaluation:
        variables = state.ema_params, state.model_state
        parts = [metric(rng, variables) for metric in found.values()]
        scalars = {name: value for part in parts for name, value in part.scalars.items()}
        return Evaluation(scalars, {k: v for part in parts for k, v in part.pictures.items()})

    return evaluate


def _predictor_corrector_trajectory(model: ScoreModel) -> Trajectory:
    chain, shape = chain_options(model), (model.options["eval_samples"], *model.images.shape)
    options = chain | {"num_frames": min(NUM_FRAMES, chain["num_steps"])}

    def trajectory(variables: Variables, rng: PRNGKeyArray) -> Array:
        score_fn = model.score(variables)
        chained = pc.predictor_corrector_trajectory(rng, score_fn, shape, **options)
        return model.images.to_unit(chained.x)

    return trajectory
