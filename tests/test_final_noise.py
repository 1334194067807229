# SPDX-License-Identifier: Apache-2.0
"""The noise that samples keep: all of level sigma_min without `denoise`, none of it with it.

Data N(MEAN, s^2 I) have a known score along the VE SDE. Those of s = 0 are a single point, and the
distance of a sample from it is noise that was left.
"""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from scorejax.data.vectors import VectorView
from scorejax.score_model import ChainOptions, ScoreModel, noise_levels
from scorejax.score_model.noise_levels import Ladder
from tests.slow import deep_where

MEAN, SIGMA = 0.3, 0.01
ROWS, DIM = 64, 64
LADDER = Ladder(
    SIGMA,
    5.0,
    num_scales=60,
    steps_per_level=40,
    step_size=0.05 * SIGMA**2,
    denoise=True,
    rule=False,
)
DENOISING_COSTS = {"ald": 1, "pc": 0, "ode": 1, "heun": 1, "dpm++": 1, "sde-dpm++": 1}
"""Evaluations that a sampler makes for it. A chain makes its last step in any case."""
BY_DEPTH = deep_where(lambda name: name in ("ald", "sde-dpm++"), DENOISING_COSTS)


class Score(nn.Module):
    """The exact score of N(MEAN, s^2 I) plus noise of level sigma(t), for the parameter s."""

    @nn.compact
    def __call__(self, x, t):
        s = self.param("s", nn.initializers.zeros, ())
        return (MEAN - x) / (s**2 + LADDER.sde.sigma(t) ** 2)[:, None]


def make_model(denoise):
    ladder = dataclasses.replace(LADDER, denoise=denoise)
    rows = np.zeros((2, DIM), np.float32)
    return ScoreModel(
        sde=ladder.sde,
        data=VectorView(rows, rows),
        network=Score(),
        to_score=lambda network: network,
        example_loss=lambda network, rng, x: x[:, 0],
        tx=optax.sgd(1.0),
        chain=ChainOptions(corrector="annealed_langevin", denoise=denoise, num_sampling_steps=100),
        **noise_levels.langevin_fields(ladder),
    )


@functools.cache
def drawer(name, denoise):
    return jax.jit(make_model(denoise).sampler(name))


def variables(s):
    return {"s": jnp.float32(s)}, {}


def draw(name, denoise, s):
    drawn = drawer(name, denoise)(variables(s), jax.random.split(jax.random.key(0), ROWS))
    return float(np.std(drawn["x"] - MEAN)), drawn["nfe"]


def test_the_table_has_every_sampler():
    assert DENOISING_COSTS.keys() == make_model(True).samplers.keys()


@pytest.mark.deep
@pytest.mark.parametrize("name", BY_DEPTH)
def test_a_sampler_keeps_or_removes_the_last_noise_as_it_is_told(name):
    noisy, noisy_nfe = draw(name, False, 0.0)
    clean, clean_nfe = draw(name, True, 0.0)
    # Five standard errors of the std of 4096 numbers, and 1.5 % for Langevin moves, which at a size
    # of 0.05 sigma^2 inflate the std by 1.3 %.
    assert noisy == pytest.approx(SIGMA, rel=0.055 + 0.015)
    # The ODE's tolerance is 1e-5 of values near 0.3.
    assert clean < 0.01 * SIGMA
    assert set(np.asarray(clean_nfe - noisy_nfe).tolist()) == {DENOISING_COSTS[name]}


@pytest.mark.parametrize("name", BY_DEPTH)
def test_what_is_removed_is_the_noise_alone(name):
    # Tweedie's formula shrinks x - MEAN, of variance s^2 + sigma^2, by s^2 / (s^2 + sigma^2).
    s = 2 * SIGMA
    expected = s**2 / math.sqrt(s**2 + SIGMA**2)
    # As above; the std with the noise that was left, or with it taken twice, is 20 % away.
    assert draw(name, True, s)[0] == pytest.approx(expected, rel=0.055 + 0.015)


@pytest.mark.slow
def test_latents_are_decoded_with_the_noise_of_the_data():
    # The model denoises its samples. Encoding and decoding has to return each example as it was:
    # one that were denoised would move by a fifth of x - MEAN, 0.004.
    s = 2 * SIGMA
    noise = jax.random.normal(jax.random.key(1), (2, 8, DIM))
    start, end = MEAN + math.sqrt(s**2 + SIGMA**2) * noise
    path = jax.jit(make_model(True).interpolation(2))
    frames = path(variables(s), {"start": start, "end": end})["x"]
    # Ten times the tolerance of the solver.
    np.testing.assert_allclose(frames[:, 0], start, atol=1e-4)
    np.testing.assert_allclose(frames[:, 1], end, atol=1e-4)
