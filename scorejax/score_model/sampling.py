# SPDX-License-Identifier: Apache-2.0
"""Samplers by name, with a number of steps or of network evaluations, for any score model."""

import functools
import itertools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from scorejax.choices import choose
from scorejax.samplers import dpm_solver, few_step
from scorejax.samplers import predictor_corrector as pc
from scorejax.samplers.correctors import get_corrector, no_corrector
from scorejax.samplers.predictors import get_predictor, no_predictor
from scorejax.samplers.probability_flow import probability_flow_ode
from scorejax.sdes import DiscreteChain
from scorejax.typing import Array, PRNGKeyArray, Sampled, ScoreFn, Variables

if TYPE_CHECKING:
    from scorejax.score_model import ScoreModel

NUM_FRAMES = 10

Condition = Callable[..., ScoreFn]
"""(score_fn, sde, number of samples, *arguments) -> the score to draw from."""
Draw = Callable[..., dict[str, Array]]
"""(variables, keys (b,), *arguments) -> {"image" or "x": (b, *d), "nfe": (b,)}."""
Trajectory = Callable[[Variables, Array], Array]
"""(variables, keys (b,)) -> frames (frames, b, *d) of samples on their way from noise, the end
last."""
MakeTrajectory = Callable[["ScoreModel"], Trajectory]


class Stepper(NamedTuple):
    """A sampler, its default `num_steps` (0 if it is adaptive), and steps_of_nfe(nfe) -> steps."""

    sample: Callable[..., Sampled]
    num_steps: int
    steps_of_nfe: Callable[[int], int]
    fewest: int = 2
    on_chain: bool = False
    """Whether it walks the discrete chain, by the score `ScoreModel.chain_score`."""


MakeStepper = Callable[["ScoreModel"], Stepper]


def sampler(
    model: "ScoreModel",
    name: str = "",
    *,
    num_steps: int = 0,
    nfe: int = 0,
    condition: Condition = lambda score_fn, sde, num, *arguments: score_fn,
) -> Draw:
    """draw(variables, rngs, *arguments) -> {"image": (b, h, w, c) in [0, 1], not clipped, "nfe"}.

    Each sample is a function of its own key, `rngs` (b,), unless the corrector is batch_langevin.
    Models of vectors return "x" (b, d) in
    place of images. `arguments` go to `condition`, which turns the score into a conditional one.
    The empty name is the model's first sampler. A sampler makes at most `nfe` evaluations of the
    network, or `num_steps` steps; with neither, its default: the model's number for "pc", 35
    evaluations for "heun", 20 steps for "dpm++".

    Raises: ValueError for an unknown sampler, a chain that the SDE does not have, or too few steps.
    """
    name = name or next(iter(model.samplers))
    stepper = choose("sampler", name, model.samplers)(model)
    sample = _with_steps(name, stepper, num_steps, nfe)
    if stepper.num_steps:  # An adaptive solver can always begin, and takes a second to trace.
        require_drawable(model, sample)
    data, score = model.data, model.chain_score if stepper.on_chain else model.score

    def draw(variables: Variables, rngs: PRNGKeyArray, *arguments: Any) -> dict[str, Array]:
        if not jnp.issubdtype(rngs.dtype, jax.dtypes.prng_key) or rngs.ndim != 1:
            raise ValueError(
                "a sampler needs a key for each sample, as jax.random.split(jax.random.key(0), b) "
                f"makes them; got {rngs.dtype}{list(rngs.shape)}"
            )
        score_fn = condition(score(variables), model.sde, len(rngs), *arguments)
        x, nfe = sample(rngs, score_fn, (len(rngs), *data.shape))
        return {data.field: data.to_data(x), "nfe": jnp.broadcast_to(nfe, len(rngs))}

    return draw


def chain_arguments(model: "ScoreModel") -> dict[str, Any]:
    """Arguments of `predictor_corrector` from the model's options.

    Raises: ValueError if the SDE has no such chain.
    """
    options = model.chain
    inverts_chain = isinstance(model.sde, DiscreteChain)
    predictor = options.predictor or ("reverse_diffusion" if inverts_chain else "euler_maruyama")
    arguments = {
        "sde": model.sde,
        "predictor": get_predictor(predictor),
        "corrector": get_corrector(options.corrector),
        "num_steps": options.num_sampling_steps,
        "snr": options.snr,
        "num_inner": options.num_corrector_steps,
        "denoise": options.denoise,
    }
    require_drawable(model, functools.partial(pc.predictor_corrector, **arguments))
    return arguments


def chain_trajectory(model: "ScoreModel") -> Trajectory:
    """Frames of the predictor-corrector chain. Raises: ValueError as `chain_arguments`."""
    chain, shape = chain_arguments(model), model.data.shape
    num_frames = min(NUM_FRAMES, chain["num_steps"])

    def trajectory(variables: Variables, rngs: Array) -> Array:
        chained = pc.predictor_corrector_trajectory(
            rngs, model.chain_score(variables), (len(rngs), *shape), num_frames=num_frames, **chain
        )
        return model.data.to_data(chained.x)

    return trajectory


def default_caption(model: "ScoreModel") -> str:
    """Names the model's first sampler and the evaluations of its default number of steps."""
    name = model.sampler_names[0]
    stepper = model.samplers[name](model)
    if not stepper.num_steps:  # adaptive
        return name
    enough = (n for n in itertools.count(1) if stepper.steps_of_nfe(n) >= stepper.num_steps)
    return f"{name}, {next(enough)} evaluations each"


def require_drawable(model: "ScoreModel", sample: Callable[..., Sampled]) -> None:
    """Traces the sampler. Raises: ValueError if the SDE lacks what it needs."""
    shape = (1, *model.data.shape)
    jax.eval_shape(lambda: sample(jax.random.key(0), lambda x, t: -x, shape))


def _pc(model: "ScoreModel") -> Stepper:
    arguments = chain_arguments(model)
    num_steps = arguments.pop("num_steps")
    predicts = arguments["predictor"] is not no_predictor
    corrects = arguments["corrector"] is not no_corrector
    cost = max(predicts + corrects * arguments["num_inner"], 1)
    sample = functools.partial(pc.predictor_corrector, **arguments)
    return Stepper(sample, num_steps, lambda nfe: nfe // cost, on_chain=True)


def _ode(model: "ScoreModel") -> Stepper:
    options = {"sde": model.sde, "denoise": model.chain.denoise, **model.solver_options()}
    return Stepper(functools.partial(probability_flow_ode, **options), 0, lambda nfe: 0)


def _heun(model: "ScoreModel") -> Stepper:
    denoise = model.chain.denoise
    sample = functools.partial(few_step.heun, sde=model.sde, denoise=denoise)
    return Stepper(sample, 18, lambda nfe: (nfe - int(denoise)) // 2 + 1)


def _dpm_solver(sample: Callable[..., Sampled]) -> MakeStepper:
    def make_stepper(model: "ScoreModel") -> Stepper:
        denoise = model.chain.denoise
        solve = functools.partial(sample, sde=model.sde, denoise=denoise)
        return Stepper(solve, 20, lambda nfe: nfe - int(denoise))

    return make_stepper


SAMPLERS: dict[str, MakeStepper] = {
    "pc": _pc,
    "ode": _ode,
    "heun": _heun,
    "dpm++": _dpm_solver(dpm_solver.dpm_solver_pp),
    "sde-dpm++": _dpm_solver(dpm_solver.sde_dpm_solver_pp),
}


def first(name: str) -> Mapping[str, MakeStepper]:
    """All samplers, with the one of that name first, as the default."""
    return {name: SAMPLERS[name], **SAMPLERS}


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
