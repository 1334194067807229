# SPDX-License-Identifier: Apache-2.0
"""Metrics of annealed Langevin dynamics, and the ladder that suits a data set.

Source: Song & Ermon 2020, arXiv:2006.09011, Section 3 and Appendix.
"""

import functools
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from scorejax.data.view import ImageView
from scorejax.evaluate.ladder import ladder_report
from scorejax.evaluate.progress import Metric, Metrics
from scorejax.report import Evaluation
from scorejax.samplers import langevin
from scorejax.score_model.noise_levels import Ladder, by_sigma
from scorejax.typing import Array, PRNGKeyArray, Variables

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
    """Norms along the chain, as curves over the levels."""
    shape = (model.eval_options.eval_samples, *model.data.shape)

    @jax.jit
    def trace(variables: Variables, rng: PRNGKeyArray) -> langevin.Trace:
        score_fn = by_sigma(model.sde, model.score(variables))
        return langevin.annealed_langevin_trace(rng, score_fn, shape, **ladder.chain())[1]

    def metric(rng: PRNGKeyArray, variables: Variables) -> Evaluation:
        from scorejax.evaluate import pictures  # A second of matplotlib, once it is needed.

        norms = jax.device_get(trace(variables, rng))
        levels = np.arange(1, ladder.num_scales + 1)
        curves = {"|score| sigma / sqrt(d)": norms.score_norm, "signal to noise": norms.snr}
        picture = pictures.curve_picture(levels, curves, xlabel="level")
        ends = {"first_level": 0, "last_level": -1}
        scalars = {f"score_norm_{name}": float(norms.score_norm[i]) for name, i in ends.items()}
        return Evaluation(scalars, {"langevin": picture})

    return metric


def interpolated_noise(ladder: Ladder, model: "ScoreModel") -> Metric:
    """Rows of samples whose noise goes from one stream to another, as a picture."""
    shape = (NUM_ROWS, *model.data.shape)

    @jax.jit
    def rows(variables: Variables, rng: PRNGKeyArray) -> Array:
        score_fn = by_sigma(model.sde, model.score(variables))
        drawn = langevin.interpolate(rng, score_fn, shape, NUM_INTERPOLATED, **ladder.chain())
        return model.data.to_data(drawn.x.reshape(-1, *shape[1:]))

    def metric(rng: PRNGKeyArray, variables: Variables) -> Evaluation:
        from scorejax.evaluate import pictures

        grid = pictures.image_grid(rows(variables, rng), num_columns=NUM_INTERPOLATED)
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
