# SPDX-License-Identifier: Apache-2.0
"""Metrics of annealed Langevin dynamics, and the ladder that suits a data set.

Source: Song & Ermon 2020, arXiv:2006.09011, Section 3 and Appendix.
"""

import functools
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from scorejax.data.view import ImageView
from scorejax.evaluate.chunks import joined, make_stream
from scorejax.evaluate.ladder import ladder_report
from scorejax.evaluate.progress import Metric, Metrics
from scorejax.random import row_keys
from scorejax.report import Evaluation
from scorejax.samplers import langevin
from scorejax.score_model.noise_levels import Ladder, by_sigma
from scorejax.typing import Array, Batch, PRNGKeyArray, Variables

if TYPE_CHECKING:
    from scorejax.score_model import ScoreModel

NUM_ROWS, NUM_INTERPOLATED = 6, 10
MAX_IMAGES = 20_000
"""Images of a set too large for memory from which the ladder is chosen."""


def along_chain(ladder: Ladder, model: "ScoreModel") -> Metrics:
    """ "langevin", norms along the chain, and "interpolation", rows of interpolated noise."""
    if not model.eval_options.eval_samples:
        return {}
    return {
        "langevin": functools.partial(chain_norms, ladder, model),
        "interpolation": functools.partial(interpolated_noise, ladder, model),
    }


def chain_norms(ladder: Ladder, model: "ScoreModel") -> Metric:
    """Norms along the chain, means over `eval_samples` chains, as curves over the levels."""
    options, shape = model.eval_options, (1, *model.data.shape)

    def norms(variables: Variables, rows: Batch) -> dict[str, Array]:
        score_fn, chain = by_sigma(model.sde, model.chain_score(variables)), ladder.chain()

        def of_one(rng: Array) -> dict[str, Array]:
            trace = langevin.annealed_langevin_trace(rng, score_fn, shape, **chain)[1]
            return {"score_norm": trace.score_norm, "snr": trace.snr}

        return jax.vmap(of_one)(rows["rng"])

    stream = make_stream(norms)

    def metric(rng: PRNGKeyArray, variables: Variables) -> Evaluation:
        from scorejax.evaluate import pictures  # A second of matplotlib, once it is needed.

        rows = {"rng": row_keys(rng, options.eval_samples)}
        chains = joined(stream(variables, rows, options.examples_at_once))
        score_norm, snr = (chains[name].mean(axis=0) for name in ("score_norm", "snr"))
        levels = np.arange(1, ladder.num_scales + 1)
        curves = {"|score| sigma / sqrt(d)": score_norm, "signal to noise": snr}
        picture = pictures.curve_picture(levels, curves, xlabel="level")
        ends = {"first_level": 0, "last_level": -1}
        scalars = {f"score_norm_{name}": float(score_norm[i]) for name, i in ends.items()}
        return Evaluation(scalars, {"langevin": picture})

    return metric


def interpolated_noise(ladder: Ladder, model: "ScoreModel") -> Metric:
    """Rows of samples whose noise goes from one stream to another, as a picture."""
    at_once = max(model.eval_options.examples_at_once // NUM_INTERPOLATED, 1)

    def interpolate(variables: Variables, rows: Batch) -> dict[str, Array]:
        score_fn, rngs = by_sigma(model.sde, model.chain_score(variables)), rows["rng"]
        shape, num = (len(rngs), *model.data.shape), NUM_INTERPOLATED
        drawn = langevin.interpolate(rngs, score_fn, shape, num, **ladder.chain())
        return {"image": model.data.to_data(drawn.x)}

    stream = make_stream(interpolate)

    def metric(rng: PRNGKeyArray, variables: Variables) -> Evaluation:
        from scorejax.evaluate import pictures

        rows = joined(stream(variables, {"rng": row_keys(rng, NUM_ROWS)}, at_once))["image"]
        flat = rows.reshape(-1, *model.data.shape)
        grid = pictures.image_grid(flat, num_columns=NUM_INTERPOLATED)
        return Evaluation({}, {"interpolation": grid})

    return metric


def chosen_ladder(data: ImageView, ladder: Ladder) -> Metric:
    """The ladder that the techniques choose for the training images, or the first `MAX_IMAGES`."""
    stored = data.streamed("train")
    if not isinstance(stored, np.ndarray):
        stored = stored[range(min(len(stored), MAX_IMAGES))]

    def metric(rng: PRNGKeyArray, variables: Any) -> Evaluation:
        return ladder_report(
            rng,
            data.as_trained(np.random.default_rng(0), stored),
            sigma_min=ladder.sigma_min,
            steps_per_level=ladder.steps_per_level,
            flips=data.random_flip,
        )

    return metric
