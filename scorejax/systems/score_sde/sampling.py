# SPDX-License-Identifier: Apache-2.0
"""The samplers of the score SDE by name, with the number of steps or of evaluations asked for."""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from scorejax.choices import choose, require
from scorejax.samplers import dpm_solver, few_step
from scorejax.samplers import predictor_corrector as pc
from scorejax.samplers.correctors import get_corrector, no_corrector
from scorejax.samplers.predictors import get_predictor, no_predictor
from scorejax.samplers.probability_flow import probability_flow_ode
from scorejax.sdes import SDE
from scorejax.systems.score_sde.model import (
    Variables,
    image_view,
    make_sde,
    score_of,
    tolerances,
)
from scorejax.typing import Array, PRNGKeyArray, Sampled, ScoreFn

Condition = Callable[..., ScoreFn]
"""(score_fn, sde, number of samples, *given) -> the score to draw from."""


class Stepper(NamedTuple):
    """A sampler that takes `num_steps`, and how many of them n evaluations suffice for."""

    sample: Callable[..., Sampled]
    num_steps: int
    steps_of_nfe: Callable[[int], int]


def sampler(
    config: ConfigDict,
    name: str,
    *,
    num_steps: int = 0,
    nfe: int = 0,
    condition: Condition = lambda score_fn, sde, num, *given: score_fn,
) -> Callable:
    """draw(variables, rngs, *given) -> {"image": (b, h, w, c) in [0, 1], not clipped, "nfe": (b,)}.

    The first of the keys (b,) decides; the others count. What is `given` goes to `condition`, which
    makes another score of the model's. A sampler makes at most `nfe` evaluations of the network, or
    `num_steps` steps; with neither, as many as the config says for "pc", 35 evaluations for "heun",
    20 steps for "dpm++".

    Raises: ValueError for an unknown sampler, a chain that the SDE does not have, too few steps.
    """
    sde, images, score = make_sde(config), image_view(config), score_of(config)
    stepper = choose("sampler", name, SAMPLERS)(config, sde)
    sample = _with_steps(name, stepper, num_steps, nfe)
    if stepper.num_steps:  # An adaptive solver can always begin, and takes a second to trace.
        _require_drawable(config, sample)

    def draw(variables: Variables, rngs: PRNGKeyArray, *given: Any) -> dict[str, Array]:
        score_fn = condition(score(variables), sde, len(rngs), *given)
        x, nfe = sample(rngs[0], score_fn, (len(rngs), *images.shape))
        return {"image": images.to_unit(x), "nfe": jnp.broadcast_to(nfe, len(rngs))}

    return draw


def chain_options(config: ConfigDict, sde: SDE) -> dict[str, Any]:
    """Options of the predictor-corrector chain. Raises: ValueError for one that cannot be."""
    require(config, ("num_sampling_steps",), lambda v: v >= 2, "to be at least 2")
    require(config, ("num_corrector_steps",), lambda v: v >= 1, "to be at least 1")
    require(config, ("snr",), lambda v: 0 < v < math.inf, "to be a positive number")
    chain = {
        "sde": sde,
        "predictor": get_predictor(config.predictor),
        "corrector": get_corrector(config.corrector),
        "num_steps": config.num_sampling_steps,
        "snr": config.snr,
        "num_inner": config.num_corrector_steps,
    }
    _require_drawable(config, functools.partial(pc.predictor_corrector, **chain))
    return chain


def _require_drawable(config: ConfigDict, sample: Callable[..., Sampled]) -> None:
    """Raises ValueError for what the SDE cannot do: tracing finds it, whatever the score is."""
    shape = (1, *image_view(config).shape)
    jax.eval_shape(lambda: sample(jax.random.key(0), lambda x, t: -x, shape))


def _pc(config: ConfigDict, sde: SDE) -> Stepper:
    options = chain_options(config, sde)
    num_steps = options.pop("num_steps")
    predicts = options["predictor"] is not no_predictor
    corrects = options["corrector"] is not no_corrector
    cost = max(predicts + corrects * options["num_inner"], 1)
    sample = functools.partial(pc.predictor_corrector, **options, denoise=config.denoise)
    return Stepper(sample, num_steps, lambda nfe: nfe // cost)


def _ode(config: ConfigDict, sde: SDE) -> Stepper:
    sample = functools.partial(probability_flow_ode, sde=sde, **tolerances(config))
    return Stepper(sample, 0, lambda nfe: 0)


def _heun(config: ConfigDict, sde: SDE) -> Stepper:
    return Stepper(functools.partial(few_step.heun, sde=sde), 18, lambda nfe: (nfe + 1) // 2)


def _dpm_solver(sample: Callable[..., Sampled]) -> Callable[[ConfigDict, SDE], Stepper]:
    def make(config: ConfigDict, sde: SDE) -> Stepper:
        solve = functools.partial(sample, sde=sde, denoise=config.denoise)
        return Stepper(solve, 20, lambda nfe: nfe - int(config.denoise))

    return make


SAMPLERS = {
    "pc": _pc,
    "ode": _ode,
    "heun": _heun,
    "dpm++": _dpm_solver(dpm_solver.dpm_solver_pp),
    "sde-dpm++": _dpm_solver(dpm_solver.sde_dpm_solver_pp),
}


def _with_steps(name: str, stepper: Stepper, num_steps: int, nfe: int) -> Callable[..., Sampled]:
    """The sampler with its number of steps bound."""
    if num_steps and nfe:
        raise ValueError(f"give num_steps or nfe, not both; got {num_steps} and {nfe}")
    key, asked = ("nfe", nfe) if nfe else ("num_steps", num_steps)
    if not stepper.num_steps:  # adaptive
        if asked:
            raise ValueError(f"the sampler {name!r} chooses its own steps; got {key}={asked}")
        return stepper.sample
    steps_of = stepper.steps_of_nfe if nfe else lambda num: num
    steps = steps_of(asked) if asked else stepper.num_steps
    if steps < 2:
        fewest = next(num for num in itertools.count(2) if steps_of(num) >= 2)
        raise ValueError(f"the sampler {name!r} needs {key} of at least {fewest}; got {asked}")
    return functools.partial(stepper.sample, num_steps=steps)
