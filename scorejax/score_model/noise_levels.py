# SPDX-License-Identifier: Apache-2.0
"""Scores at a ladder of noise levels, and annealed Langevin dynamics down it.

A network of NCSN's family becomes a `ScoreModel` along the VE SDE of its ladder, so that all other
samplers and the likelihood serve as well. A `Chain` gives the options of
`samplers.langevin.annealed_langevin` for a number of steps per level, 0 for the model's own.

Source: Song & Ermon 2019, arXiv:1907.05600, and 2020, arXiv:2006.09011.
"""

from collections.abc import Callable, Mapping
from typing import Any

from scorejax import parameterize
from scorejax.data.view import ImageView
from scorejax.models.refinenet import NCSNv2
from scorejax.samplers import langevin
from scorejax.score_model import ScoreModel, bind, evaluation, sampling
from scorejax.sdes import SDE, VESDE
from scorejax.typing import Array, PRNGKeyArray, Sampled, ScoreFn, Shape, Variables

Chain = Callable[[int], dict[str, Any]]


def score_model(network: NCSNv2, images: ImageView, options: Mapping[str, Any]) -> ScoreModel:
    """The score of a network by its options: model, sigma_min, sigma_max, num_scales.

    Raises: ValueError for levels that cannot be.
    """
    sde = VESDE(options["sigma_min"], options["sigma_max"])

    def score(variables: Variables) -> ScoreFn:
        bound = bind(network, variables)
        if options["model"] == "ncsn":
            return parameterize.discrete_sigma_conditioned(sde, bound, options["num_scales"])
        return parameterize.sigma_conditioned(sde, parameterize.divided_by_sigma(bound))

    return ScoreModel(sde, images, score, options)


def by_sigma(model: ScoreModel, variables: Variables) -> ScoreFn:
    """The score as a function of (x, sigma)."""
    return _of_sigma(model.sde, model.score(variables))


def sampler(model: ScoreModel, chain: Chain, name: str, **options: Any) -> Callable:
    """As `sampling.sampler`, which "ald", annealed Langevin dynamics, joins as the first."""
    known = {"ald": lambda model: _annealed_langevin(model, chain), **sampling.SAMPLERS}
    return sampling.sampler(model, name, samplers=known, **options)


def trajectory(model: ScoreModel, chain: Chain) -> evaluation.Trajectory:
    """Frames of `eval_samples` samples on their way down the ladder."""
    shape, options = (model.options["eval_samples"], *model.images.shape), chain(0)
    num_frames = min(evaluation.NUM_FRAMES, len(options["sigmas"]))

    def frames(variables: Variables, rng: PRNGKeyArray) -> Array:
        x = langevin.annealed_langevin_frames(
            rng, by_sigma(model, variables), shape, num_frames=num_frames, **options
        )
        return model.images.to_unit(x)

    return frames


def _annealed_langevin(model: ScoreModel, chain: Chain) -> sampling.Stepper:
    own = chain(0)

    def sample(rng: PRNGKeyArray, score_fn: ScoreFn, shape: Shape, *, num_steps: int) -> Sampled:
        score = _of_sigma(model.sde, score_fn)
        return langevin.annealed_langevin(rng, score, shape, **chain(num_steps))

    steps_of_nfe = lambda nfe: (nfe - int(own["denoise"])) // len(own["sigmas"])
    return sampling.Stepper(sample, own["steps_per_level"], steps_of_nfe, fewest=1)


def _of_sigma(sde: SDE, score_fn: ScoreFn) -> ScoreFn:
    return lambda x, sigma: score_fn(x, sde.time_of_sigma(sigma))
