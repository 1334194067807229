# SPDX-License-Identifier: Apache-2.0
"""With a key for each row, every sampler draws a row from that key alone, and by the right law."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import Gaussian

from scorejax import inverse, latent
from scorejax.density.annealed_importance import (
    annealed_importance,
    make_hamiltonian_transition,
)
from scorejax.density.annealing_path import geometric_path
from scorejax.linear_operators import average_pool_operator, mask_operator
from scorejax.numerics import expand, gaussian_log_prob
from scorejax.random import draw_rows, row_keys
from scorejax.samplers import langevin
from scorejax.samplers.correctors import CORRECTORS
from scorejax.samplers.dpm_solver import dpm_solver_pp, sde_dpm_solver_pp
from scorejax.samplers.few_step import Churn, euler, heun
from scorejax.samplers.hamiltonian import hamiltonian_transition
from scorejax.samplers.long_run import long_run
from scorejax.samplers.predictor_corrector import (
    predictor_corrector,
    predictor_corrector_trajectory,
)
from scorejax.samplers.predictors import PREDICTORS, euler_maruyama
from scorejax.samplers.probability_flow import probability_flow_ode
from scorejax.samplers.tempered_langevin import temperatures, tempered_langevin
from scorejax.schedules import geometric_sigmas, langevin_step_sizes
from scorejax.sdes import VESDE, VPSDE, SubVPSDE
from tests.compilation import optimised_jit
from tests.slow import slow_where

SDE, MEAN, STD = VPSDE(), 0.3, 0.5
DATA = Gaussian.isotropic(MEAN, STD, 2)
LADDER, STEP = geometric_sigmas(0.1, 2.0, 12), 0.003
TEMPERATURES = temperatures(2, 3, 1, hottest=4.0)


def score_fn(x, t):
    """The score of p_t for isotropic Gaussian data of any shape."""
    scale, std = (expand(value, x) for value in SDE.marginal(t))
    return (scale * MEAN - x) / (scale**2 * STD**2 + std**2)


def level_score_fn(x, sigma):
    return (MEAN - x) / expand(STD**2 + sigma**2, x)


def log_prob(x):
    return gaussian_log_prob(x - MEAN, STD)


def by_sde(sampler, *, example=(2,), **options):
    """(rng, num) -> x of a sampler (rng, score_fn, shape, *, sde)."""
    return lambda rng, num: sampler(rng, score_fn, (num, *example), sde=SDE, **options).x


def by_ladder(sampler, *, keep=lambda drawn: drawn, **options):
    """(rng, num) -> what is to `keep` of what a sampler of annealed Langevin dynamics draws."""
    chain = {"sigmas": LADDER, "step_size": STEP, "steps_per_level": 3} | options
    return lambda rng, rows: keep(sampler(rng, level_score_fn, (rows, 2), **chain))


def trajectory(rng, num):
    frames = predictor_corrector_trajectory(
        rng, score_fn, (num, 2), sde=SDE, num_frames=3, num_steps=30
    ).x
    return jnp.moveaxis(frames, 0, 1)


def frames(rng, num):
    sample = by_ladder(langevin.annealed_langevin_frames, num_frames=3)
    return jnp.moveaxis(sample(rng, num), 0, 1)


def measured(rng, num):
    y = jnp.full((num, 2), 0.7)
    operator = mask_operator(np.array([1.0, 0.0]))
    return by_ladder(langevin.sample_given, operator=operator, y=y)(rng, num).x


def tempered(rng, num):
    options = {"step_size": 0.2, "temperatures": TEMPERATURES, "sigma": 0.1}
    energy = lambda x: -log_prob(x)
    return tempered_langevin(rng, energy, jnp.full((num, 2), 3.0), **options)[0]


def start_of_chains(num):
    return MEAN + STD * jax.random.normal(jax.random.key(99), (1, 2)) + jnp.zeros((num, 1))


def hamiltonian(rng, num):
    x = start_of_chains(num)
    return hamiltonian_transition(rng, log_prob, x, step_size=0.3, num_steps=3).x


def corrected_chain(rng, num):
    chain = {"adjust": "mala", "step_size": 0.5, "record_at": np.array([3, 10])}
    return long_run(rng, log_prob, start_of_chains(num), **chain).x[-1]


def annealed(rng, num):
    path = geometric_path(lambda x: gaussian_log_prob(x, 1.0), log_prob, np.linspace(0, 1, 5))
    move = make_hamiltonian_transition(jnp.full(5, 0.3), num_steps=2)
    return annealed_importance(rng, path, start_of_chains(num), transition=move).x


def inpainted(rng, num, **chain):
    image, mask = jnp.full((num, 2), 0.7), np.array([1.0, 0.0])
    return inverse.inpaint(rng, score_fn, image, mask, sde=SDE, **chain).x


def colorized(rng, num):
    return inverse.colorize(rng, score_fn, jnp.full((num, 2, 2, 1), 0.5), sde=SDE, num_steps=30).x


def super_resolved(rng, num):
    operator, shape = average_pool_operator(2), (num, 2, 2, 1)
    y = jnp.full((num, 1, 1, 1), 0.5)
    return inverse.sample_given(
        rng, score_fn, shape, sde=SDE, operator=operator, y=y, num_steps=30,
        corrector=CORRECTORS["annealed_langevin"],
    ).x  # fmt: skip


pc = functools.partial(by_sde, predictor_corrector, snr=0.1, num_inner=2)
SAMPLERS = {
    **{f"predictor {name}": pc(num_steps=30, predictor=PREDICTORS[name]) for name in PREDICTORS},
    # batch_langevin is left out: it couples the rows, and its docstring says so.
    **{
        f"corrector {name}": pc(num_steps=30, corrector=CORRECTORS[name])
        for name in CORRECTORS
        if name != "batch_langevin"
    },
    "trajectory": trajectory,
    "ode": by_sde(probability_flow_ode, denoise=True),
    "heun": by_sde(heun, num_steps=5),
    "heun, churned": by_sde(heun, num_steps=5, churn=Churn(10.0)),
    "euler": by_sde(euler, num_steps=5),
    "dpm++": by_sde(dpm_solver_pp, num_steps=5),
    "sde-dpm++": by_sde(sde_dpm_solver_pp, num_steps=5),
    "annealed langevin": by_ladder(langevin.annealed_langevin, keep=lambda drawn: drawn.x),
    "annealed langevin, frames": frames,
    "annealed langevin, trace": by_ladder(
        langevin.annealed_langevin_trace, keep=lambda drawn: drawn[0].x
    ),
    "annealed langevin, given": measured,
    "annealed langevin, interpolated": by_ladder(
        langevin.interpolate, num=3, keep=lambda drawn: drawn.x
    ),
    "tempered langevin": tempered,
    "hamiltonian": hamiltonian,
    "long run": corrected_chain,
    "annealed importance": annealed,
    "inpaint": functools.partial(inpainted, num_steps=30),
    "colorize": colorized,
    "sample_given": super_resolved,
    "latent.tempered": by_sde(latent.tempered, temperature=0.8),
    **{
        f"prior of {sde.name}": lambda rng, num, sde=sde: sde.sample_prior(rng, (num, 2))
        for sde in (VPSDE(), SubVPSDE(), VESDE())
    },
}  # fmt: skip


@pytest.mark.deep
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_row_is_a_function_of_its_own_key(x64, name):
    sample = jax.jit(lambda rngs: SAMPLERS[name](rngs, len(rngs)))
    rngs = jax.random.split(jax.random.key(5), 3)
    batch = np.asarray(sample(rngs))
    # Other keys beside it, or another place in the batch. One program, which may yet round the rows
    # of a vector and those that are left over in two ways.
    tolerance = {"rtol": 1e-9, "atol": 1e-9}
    for order in ([2, 0, 1], [1, 1, 1]):
        np.testing.assert_allclose(sample(rngs[np.array(order)]), batch[order], **tolerance)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(batch[i] - batch[j]).max() > 1e-3, "two keys draw one row"


@pytest.mark.parametrize(
    "name", slow_where(lambda name: name not in ("trajectory", "dpm++"), SAMPLERS)
)
def test_a_row_does_not_depend_on_the_size_of_its_batch(x64, name):
    sample = jax.jit(lambda rngs: SAMPLERS[name](rngs, len(rngs)))
    rngs = jax.random.split(jax.random.key(5), 3)
    # One program per batch size: XLA may round differently, by 1e-16 at each of some thousand
    # operations on numbers up to 152. In float64, for in float32 a rounding can make the adaptive
    # solver accept a step that it else rejects, and the two answers differ by the solver's error.
    alone = np.concatenate([sample(rngs[i : i + 1]) for i in range(3)])
    np.testing.assert_allclose(alone, sample(rngs), rtol=1e-9, atol=1e-9)


def langevin_moments():
    """Mean and variance of annealed Langevin dynamics on the data, denoised: an exact recursion."""
    mean, variance = 0.0, LADDER[0] ** 2
    for sigma, alpha in zip(LADDER, langevin_step_sizes(LADDER, STEP), strict=True):
        slope = 1 - alpha / (STD**2 + sigma**2)
        for _ in range(3):
            mean = MEAN + slope * (mean - MEAN)
            variance = slope**2 * variance + 2 * alpha
    shrink = 1 - LADDER[-1] ** 2 / (STD**2 + LADDER[-1] ** 2)
    return MEAN + shrink * (mean - MEAN), shrink**2 * variance


def tempered_moments():
    """Mean and variance of tempered Langevin dynamics on the data's energy: an exact recursion."""
    mean, variance, slope = 3.0, 0.0, 1 - 0.2**2 / (2 * STD**2)
    for temperature in TEMPERATURES:
        mean = MEAN + slope * (mean - MEAN)
        variance = slope**2 * variance + 0.2**2 * temperature
    shrink = 1 - 0.1**2 / STD**2
    return MEAN + shrink * (mean - MEAN), shrink**2 * variance


def hamiltonian_rows(rng, num):
    # A transition of exact draws, which come from other keys, leaves their law as it is.
    x = MEAN + STD * jax.random.normal(jax.random.key(8), (num, 2))
    return hamiltonian_transition(rng, log_prob, x, step_size=0.3, num_steps=3).x


# (draw, mean, variance, slack of both for the bias of the steps)
LAWS = {
    **{
        f"predictor {name}": (pc(num_steps=200, predictor=PREDICTORS[name]), MEAN, STD**2, 0.04)
        for name in PREDICTORS
        if name not in ("none", "reverse_diffusion_flow")  # "none" stays at the prior
    },
    # 200 steps of it leave the variance 23 % too large.
    "predictor reverse_diffusion_flow": (
        pc(num_steps=1000, predictor=PREDICTORS["reverse_diffusion_flow"]), MEAN, STD**2, 0.05,
    ),
    # "langevin" is left out: its moves are only right in many dimensions.
    "corrector annealed_langevin": (
        pc(num_steps=200, corrector=CORRECTORS["annealed_langevin"]), MEAN, STD**2, 0.04,
    ),
    "ode": (by_sde(probability_flow_ode), MEAN, STD**2, 0.01),
    "heun": (by_sde(heun, num_steps=40), MEAN, STD**2, 0.01),
    "heun, churned": (by_sde(heun, num_steps=60, churn=Churn(10.0)), MEAN, STD**2, 0.01),
    "euler": (by_sde(euler, num_steps=200), MEAN, STD**2, 0.04),
    "dpm++": (by_sde(dpm_solver_pp, num_steps=60), MEAN, STD**2, 0.01),
    "sde-dpm++": (by_sde(sde_dpm_solver_pp, num_steps=100), MEAN, STD**2, 0.01),
    "annealed langevin": (SAMPLERS["annealed langevin"], *langevin_moments(), 0.0),
    "annealed langevin, interpolated": (
        by_ladder(langevin.interpolate, num=3, keep=lambda drawn: drawn.x[:, 1]),
        *langevin_moments(), 0.0,
    ),
    "tempered langevin": (tempered, *tempered_moments(), 0.0),
    "hamiltonian": (hamiltonian_rows, MEAN, STD**2, 0.0),
    "inpaint": (
        lambda rng, num: inpainted(rng, num, num_steps=200, predictor=euler_maruyama)[:, 1:],
        MEAN, STD**2, 0.03,
    ),
    "latent.tempered": (by_sde(latent.tempered, temperature=0.5), MEAN, STD**2 / 4, 0.01),
}  # fmt: skip


# By default one of each kind. For the others the test above has it that keys are used row by row,
# and the files of the samplers have their laws.
ONE_OF_A_KIND = {
    "predictor reverse_diffusion", "corrector annealed_langevin", "ode", "heun, churned",
    "sde-dpm++", "annealed langevin", "tempered langevin", "hamiltonian", "inpaint",
}  # fmt: skip
assert set(LAWS) >= ONE_OF_A_KIND


@pytest.mark.deep
@pytest.mark.parametrize("name", slow_where(lambda name: name not in ONE_OF_A_KIND, LAWS))
def test_rows_of_their_own_keys_have_the_right_law(name):
    # 5000 rows: five standard errors of the mean and of the variance, and the slack for the bias
    # of the steps. A false alarm in 1e-5 of all seeds; the seed is fixed.
    draw, mean, variance, slack = LAWS[name]
    # The optimisations take 2 s. Without them the chains that draw most run for 3 s, others for
    # fractions of one.
    draws_most = name in ("corrector annealed_langevin", "inpaint")
    compiled = optimised_jit if draws_most else jax.jit
    draw_rows_of = compiled(lambda rngs: draw(rngs, len(rngs)))
    x = np.asarray(draw_rows_of(row_keys(jax.random.key(6), 5000)))
    x = x.reshape(5000, -1)
    shift = slack * np.sqrt(variance)
    np.testing.assert_allclose(x.mean(), mean, atol=5 * np.sqrt(variance / x.size) + shift)
    np.testing.assert_allclose(x.var(), variance, rtol=5 * np.sqrt(2 / x.size) + slack)


def test_as_many_keys_as_rows_are_needed():
    rngs = row_keys(jax.random.key(0), 3)
    with pytest.raises(ValueError, match="2 rows need one key, or 2 keys; got 3 keys"):
        draw_rows(jax.random.normal, rngs, (2, 4))
    with pytest.raises(ValueError, match="2 rows need one key, or 2 keys; got 3 keys"):
        predictor_corrector(rngs, score_fn, (2, 4), sde=SDE, num_steps=30)
