# SPDX-License-Identifier: Apache-2.0
"""The samplers of a score model by name, with the number of steps or of evaluations asked for."""

import functools
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from scorejax.choices import choose, require
from scorejax.samplers import dpm_solver, few_step
from scorejax.samplers import predictor_corrector as pc
from scorejax.samplers.correctors import get_corrector, no_corrector
from scorejax.samplers.predictors import get_predictor, no_predictor
from scorejax.samplers.probability_flow import probability_flow_ode
from scorejax.score_model import ScoreModel
from scorejax.typing import Array, PRNGKeyArray, Sampled, ScoreFn, Variables

Condition = Callable[..., ScoreFn]
"""(score_fn, sde, number of samples, *given) -> the score to draw from."""


class Stepper(NamedTuple):
    """A sampler that takes `num_steps`, and how many of them n evaluations suffice for."""

    sample: Callable[..., Sampled]
    num_steps: int
    steps_of_nfe: Callable[[int], int]
    fewest: int = 2


def sampler(
    model: ScoreModel,
    name: str,
    *,
    num_steps: int = 0,
    nfe: int = 0,
    condition: Condition = lambda score_fn, sde, num, *given: score_fn,
    samplers: Mapping[str, Callable[[ScoreModel], Stepper]] | None = None,
) -> Callable:
    """draw(variables, rngs, *given) -> {"image": (b, h, w, c) in [0, 1], not clipped, "nfe": (b,)}.

    The first of the keys (b,) decides; the others count. What is `given` goes to `condition`, which
    makes another score of the model's. A sampler makes at most `nfe` evaluations of the network, or
    `num_steps` steps; with neither, as many as the model says for "pc", 35 evaluations for "heun",
    20 steps for "dpm++". `samplers` are those to choose from, `SAMPLERS` by default; an empty name
    is the first of them.

    Raises: ValueError for an unknown sampler, a chain that the SDE does not have, too few steps.
    """
    known = samplers or SAMPLERS
    name = name or next(iter(known))
    stepper = choose("sampler", name, known)(model)
    sample = _with_steps(name, stepper, num_steps, nfe)
    if stepper.num_steps:  # An adaptive solver can always begin, and takes a second to trace.
        require_drawable(model, sample)

    def draw(variables: Variables, rngs: PRNGKeyArray, *given: Any) -> dict[str, Array]:
        score_fn = condition(model.score(variables), model.sde, len(rngs), *given)
        x, nfe = sample(rngs[0], score_fn, (len(rngs), *model.images.shape))
        return {"image": model.images.to_unit(x), "nfe": jnp.broadcast_to(nfe, len(rngs))}

    return draw


def chain_options(model: ScoreModel) -> dict[str, Any]:
    """Options of the predictor-corrector chain. Raises: ValueError for one that cannot be."""
    given = model.options
    require(given, ("num_sampling_steps",), lambda v: v >= 2, "to be at least 2")
    require(given, ("num_corrector_steps",), lambda v: v >= 1, "to be at least 1")
    require(given, ("snr",), lambda v: 0 < v < math.inf, "to be a positive number")
    chain = {
        "sde": model.sde,
        "predictor": get_predictor(given["predictor"]),
        "corrector": get_corrector(given["corrector"]),
        "num_steps": given["num_sampling_steps"],
        "snr": given["snr"],
        "num_inner": given["num_corrector_steps"],
    }
    require_drawable(model, functools.partial(pc.predictor_corrector, **chain))
    return chain


def require_drawable(model: ScoreModel, sample: Callable[..., Sampled]) -> None:
    """Raises ValueError for what the SDE cannot do: tracing finds it, whatever the score is."""
    shape = (1, *model.images.shape)
    jax.eval_shape(lambda: sample(jax.random.key(0), lambda x, t: -x, shape))


def _pc(model: ScoreModel) -> Stepper:
    options = chain_options(model)
    num_steps = options.pop("num_steps")
    predicts = options["predictor"] is not no_predictor
    corrects = options["corrector"] is not no_corrector
    cost = max(predicts + corrects * options["num_inner"], 1)
    sample = functools.partial(pc.predictor_corrector, **options, denoise=model.options["denoise"])
    return Stepper(sample, num_steps, lambda nfe: nfe // cost)


def _ode(model: ScoreModel) -> Stepper:
    sample = functools.partial(probability_flow_ode, sde=model.sde, **model.tolerances)
    return Stepper(sample, 0, lambda nfe: 0)


def _heun(model: ScoreModel) -> Stepper:
    return Stepper(functools.partial(few_step.heun, sde=model.sde), 18, lambda nfe: (nfe + 1) // 2)


def _dpm_solver(sample: Callable[..., Sampled]) -> Callable[[ScoreModel], Stepper]:
    def make(model: ScoreModel) -> Stepper:
        solve = functools.partial(sample, sde=model.sde, denoise=model.options["denoise"])
        return Stepper(solve, 20, lambda nfe: nfe - int(model.options["denoise"]))

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
    if steps < stepper.fewest:
        fewest = next(num for num in itertools.count(1) if steps_of(num) >= stepper.fewest)
        raise ValueError(f"the sampler {name!r} needs {key} of at least {fewest}; got {asked}")
    return functools.partial(stepper.sample, num_steps=steps)
