# SPDX-License-Identifier: Apache-2.0
"""Networks trained at the levels of DDPM's chain, drawn from by solvers of the continuous flow.

The network is the exact mean of the noise of Gaussian data at each level of the chain, so that the
score along the SDE is known.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import Gaussian

from configs.score_sde import vp_cifar10_ddpm
from scorejax.data.vectors import VectorView
from scorejax.numerics import expand
from scorejax.parameterize import discrete_noise_prediction
from scorejax.samplers.dpm_solver import dpm_solver_pp
from scorejax.samplers.few_step import heun
from scorejax.samplers.predictor_corrector import predictor_corrector
from scorejax.samplers.predictors import ancestral
from scorejax.samplers.probability_flow import decode
from scorejax.systems import load_model

NUM_SCALES = 1000
BETAS = np.linspace(0.1, 20.0, NUM_SCALES) / NUM_SCALES
ALPHA_BARS = np.cumprod(1 - BETAS)
MEAN, STD = 0.3, 0.01
"""The std of the data is that of the lowest level, where levels lie farthest apart."""
DATA = Gaussian.isotropic(MEAN, STD, 3)


def noise_of(x, alpha_bar):
    """Mean of the noise given x = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) noise."""
    alpha_bar = expand(alpha_bar, x)
    variance = alpha_bar * STD**2 + 1 - alpha_bar
    return jnp.sqrt(1 - alpha_bar) * (x - jnp.sqrt(alpha_bar) * MEAN) / variance


class Network(nn.Module):
    """That mean at the levels; in between the logarithm of 1 - alpha_bar is linear."""

    def __call__(self, x, label, dropout_rng=None):
        spread = np.log1p(-ALPHA_BARS)
        between = jnp.interp(label, np.arange(NUM_SCALES) + 0.0 * label[:1], spread)
        return noise_of(x, -jnp.expm1(between))


@pytest.fixture(scope="module")
def model():
    rows = np.zeros((2, 3), np.float32)
    published = load_model(vp_cifar10_ddpm.get_config("debug"))
    return dataclasses.replace(published, network=Network(), data=VectorView(rows, rows))


def test_the_score_at_the_noise_of_a_level_is_that_of_the_sde(model, x64):
    levels = np.array([0, 1, 2, 10, 100, 500, 998])
    labels = []

    def network(x, label):
        labels.append(label)
        return noise_of(x, jnp.asarray(ALPHA_BARS[levels]))

    sde = model.sde
    t = sde.time_of_sigma(jnp.asarray(np.sqrt((1 - ALPHA_BARS) / ALPHA_BARS)[levels]))
    x = MEAN + jax.random.normal(jax.random.key(0), (len(levels), 3))
    score = model.to_score(network)(x, t)
    # Rounding: 1 - alpha_bar = 1e-4 has lost four of the 16 digits.
    np.testing.assert_allclose(labels[0], levels, atol=1e-8)
    np.testing.assert_allclose(score, DATA.score_fn(sde)(x, t), rtol=1e-9)


def test_below_the_first_level_the_score_is_that_of_the_first_level(model, x64):
    t, x = jnp.asarray([1e-5, 5e-4]), jnp.asarray([[0.29], [0.33]])
    first = -noise_of(x, jnp.full(2, ALPHA_BARS[0])) / np.sqrt(1 - ALPHA_BARS[0])
    score = model.score(({}, {}))(x, t)
    np.testing.assert_allclose(score, first, rtol=1e-9)


SOLVERS = {
    "heun": lambda score_fn, z, sde: heun(
        jax.random.key(0), score_fn, z.shape, sde=sde, num_steps=60, denoise=False,
        x_init=z / sde.marginal(jnp.ones(1))[0][:, None],
    ),
    "dpm++": lambda score_fn, z, sde: dpm_solver_pp(
        jax.random.key(0), score_fn, z.shape, sde=sde, num_steps=100, denoise=False, x_init=z
    ),
    "ode": lambda score_fn, z, sde: decode(score_fn, z, sde=sde),
}  # fmt: skip


@pytest.mark.deep
@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_of_the_flow_ends_where_the_exact_flow_does(model, name):
    z = jax.random.normal(jax.random.key(1), (64, 3))
    score_fn, sde = model.score(({}, {})), model.sde
    x = jax.jit(lambda z: SOLVERS[name](score_fn, z, sde).x)(z)
    expected = DATA.flow_map(sde, z, sde.t_max, sde.sampling_t_min)
    # The network interpolates otherwise than the score: between the first two levels their
    # variances differ by 1.2e-5 in 2.5e-4, which moves the end by 1 % of its spread; 1 % for the
    # steps. By the score along the chain it moves by 16 %.
    spread = np.std(expected)
    np.testing.assert_allclose((x - expected) / spread, 0 * x, atol=0.02 * np.abs(z).max())


def test_chains_keep_the_published_score(model):
    rngs = jax.random.split(jax.random.key(2), 4)
    model = dataclasses.replace(
        model, chain=dataclasses.replace(model.chain, num_sampling_steps=40)
    )
    assert model.chain.predictor == "ancestral"
    drawn = jax.jit(model.sampler("pc"))(({}, {}), rngs)["x"]
    network = functools.partial(Network().apply, {})
    score_fn = discrete_noise_prediction(model.sde, network, NUM_SCALES)
    chain = functools.partial(predictor_corrector, sde=model.sde, predictor=ancestral, num_steps=40)
    expected = jax.jit(lambda rngs: chain(rngs, score_fn, (4, 3)).x)(rngs)
    np.testing.assert_array_equal(drawn, expected)
