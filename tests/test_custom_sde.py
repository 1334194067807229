# SPDX-License-Identifier: Apache-2.0
"""A user's SDE without a discrete chain: rectified flow, x_t = (1 - t) x_0 + t z, as an SDE."""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import Gaussian

from scorejax import inverse, likelihood
from scorejax.numerics import expand, gaussian_log_prob
from scorejax.objectives.denoising import denoising_score_matching
from scorejax.parameterize import score_to_denoiser
from scorejax.random import normal, row_keys
from scorejax.samplers import correctors, predictors
from scorejax.samplers.dpm_solver import dpm_solver_pp, sde_dpm_solver_pp
from scorejax.samplers.few_step import Churn, euler, heun
from scorejax.samplers.predictor_corrector import predictor_corrector
from scorejax.samplers.probability_flow import decode, probability_flow_ode
from scorejax.sdes import SDE, VESDE, VPSDE, DiscreteChain, SubVPSDE
from tests.compilation import optimised_jit
from tests.slow import deep_where


@dataclasses.dataclass(frozen=True)
class RectifiedFlow:
    """dx = -x / (1 - t) dt + sqrt(2 t / (1 - t)) dw. Source: Liu et al. 2022, arXiv:2209.03003."""

    t_min: float = 1e-3
    t_max: float = 0.99
    sampling_t_min: ClassVar[float] = 1e-3

    def drift(self, x, t):
        return -x / expand(1 - t, x)

    def diffusion(self, t):
        return jnp.sqrt(2 * t / (1 - t))

    def marginal(self, t):
        return 1 - t, t

    def time_of_sigma(self, sigma):
        return sigma / (1 + sigma)

    def sample_prior(self, rng, shape):
        return self.t_max * normal(rng, shape)

    def prior_log_prob(self, z):
        return gaussian_log_prob(z, self.t_max)


FLOW, MEAN, STD = RectifiedFlow(), 0.3, 0.5
DATA = Gaussian.isotropic(MEAN, STD, 2)
SCORE = DATA.score_fn(FLOW)
pc = functools.partial(
    predictor_corrector, predictor=predictors.euler_maruyama, num_steps=400, snr=0.1
)


def test_the_protocols_tell_a_chain_from_its_limit():
    assert isinstance(FLOW, SDE) and not isinstance(FLOW, DiscreteChain)
    for sde in (VPSDE(), SubVPSDE(), VESDE()):
        assert isinstance(sde, SDE) and isinstance(sde, DiscreteChain)


def test_its_marginal_solves_its_moment_equations(x64):
    # a' = f a and (std^2)' = 2 f std^2 + g^2 with the drift f x; exact, so float64 rounding.
    t = jnp.linspace(0.01, 0.99, 50)
    (scale, std), (slopes, std_slopes) = jax.jvp(FLOW.marginal, (t,), (jnp.ones_like(t),))
    rate = FLOW.drift(jnp.ones((50, 1)), t)[:, 0]
    np.testing.assert_allclose(slopes, rate * scale, rtol=1e-12)
    variance_slopes = 2 * rate * std**2 + FLOW.diffusion(t) ** 2
    np.testing.assert_allclose(2 * std * std_slopes, variance_slopes, rtol=1e-10)


SAMPLERS = {
    "ode": probability_flow_ode,
    "ode, denoised": functools.partial(probability_flow_ode, denoise=True),
    "heun": functools.partial(heun, num_steps=40),
    "heun, churned": functools.partial(heun, num_steps=60, churn=Churn(10.0)),
    "euler": functools.partial(euler, num_steps=300),
    "dpm++": functools.partial(dpm_solver_pp, num_steps=60),
    "sde-dpm++": functools.partial(sde_dpm_solver_pp, num_steps=100),
    "euler_maruyama": pc,
    "euler_flow": functools.partial(pc, predictor=predictors.euler_flow),
    "annealed_langevin": functools.partial(pc, corrector=correctors.annealed_langevin),
    "batch_langevin": functools.partial(pc, corrector=correctors.batch_langevin),
}


@pytest.mark.parametrize(
    "name", deep_where(lambda name: name not in ("heun", "dpm++", "euler_maruyama"), SAMPLERS)
)
def test_samples_of_gaussian_data_have_its_moments(name):
    # 5000 rows of two numbers: four standard errors; 3 % for the steps of the first-order methods.
    rngs = row_keys(jax.random.key(3), 5000)
    # The optimisations take 2 s; they pay where each of hundreds of steps draws for each row.
    compiled = optimised_jit if SAMPLERS[name] is pc or "langevin" in name else jax.jit
    x = compiled(lambda rngs: SAMPLERS[name](rngs, SCORE, (5000, 2), sde=FLOW).x)(rngs)
    np.testing.assert_allclose(np.mean(x), MEAN, atol=4 * STD / 100 + 0.01)
    np.testing.assert_allclose(np.var(x), STD**2, rtol=4 * np.sqrt(2 / 10_000) + 0.03)


@pytest.mark.deep
def test_likelihoods_are_those_of_the_flow_of_gaussian_data():
    x = DATA.sample(jax.random.key(0), 5)
    drawn = likelihood.log_prob(jax.random.key(1), FLOW, SCORE, x, divergence=likelihood.exact)
    # Ten times the solver's tolerance of 1e-5, on numbers up to about 10.
    np.testing.assert_allclose(drawn.log_prob, DATA.flow_log_prob(FLOW, x, FLOW.t_min), atol=1e-3)


@pytest.mark.deep
def test_the_end_of_the_flow_is_denoised_by_tweedies_formula():
    z = FLOW.sample_prior(jax.random.key(0), (4, 2))
    x, nfe = decode(SCORE, z, sde=FLOW)
    denoised, nfe_denoised = decode(SCORE, z, sde=FLOW, denoise=True)
    t = jnp.full(4, FLOW.sampling_t_min)
    np.testing.assert_array_equal(denoised, score_to_denoiser(FLOW, t, x, SCORE(x, t)))
    np.testing.assert_array_equal(nfe_denoised, nfe + 1)


def test_correctors_take_the_limit_of_many_steps_for_alpha():
    t = jnp.linspace(0.1, 0.9, 5)
    np.testing.assert_array_equal(correctors.alpha(FLOW, t, 100), 1.0)
    # For VP alpha is 1 - beta_i, which tends to 1 as 1 / num_steps.
    gaps = [1 - correctors.alpha(VPSDE(), t, num_steps) for num_steps in (1000, 2000)]
    np.testing.assert_allclose(gaps[0] / gaps[1], 2, rtol=0.01)


def test_the_minimum_of_its_loss_is_the_known_one():
    # At the exact score the loss is E_t[(1 - t)^2 s^2 / ((1 - t)^2 s^2 + t^2)], the noise that x_t
    # does not reveal. 40,000 losses of standard deviation below 1: four standard errors.
    num = 40_000
    x = DATA.sample(jax.random.key(0), num)
    loss = denoising_score_matching(SCORE, FLOW, jax.random.key(1), x)
    t = np.linspace(FLOW.t_min, FLOW.t_max, 10_001)
    signal = (1 - t) ** 2 * STD**2
    np.testing.assert_allclose(np.mean(loss), np.mean(signal / (signal + t**2)), atol=4 / num**0.5)


@pytest.mark.parametrize("name", ["reverse_diffusion", "ancestral", "reverse_diffusion_flow"])
def test_samplers_that_invert_a_chain_name_those_that_need_none(name):
    message = f"^{name} inverts a discrete chain, and RectifiedFlow has no .*use euler_maruyama"
    with pytest.raises(ValueError, match=message) as error:
        pc(jax.random.key(0), SCORE, (2, 2), sde=FLOW, predictor=predictors.get_predictor(name))
    assert "\n" not in str(error.value)


def test_inverse_problems_take_its_euler_maruyama():
    image, mask = jnp.full((3, 2), 0.7), np.array([1.0, 0.0])
    fill = functools.partial(inverse.inpaint, jax.random.key(0), SCORE, image, mask, sde=FLOW)
    with pytest.raises(ValueError, match="use euler_maruyama"):
        fill(num_steps=20)
    x = fill(num_steps=20, predictor=predictors.euler_maruyama).x
    np.testing.assert_array_equal(x[:, 0], image[:, 0])
