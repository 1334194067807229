# SPDX-License-Identifier: Apache-2.0
"""Tempered Langevin dynamics: its moments on a quadratic energy, its temperatures, its cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorejax.samplers.tempered_langevin import temperatures, tempered_langevin


def test_temperatures_stay_then_fall_to_one_and_towards_zero():
    table = temperatures(2, 4, 2, hottest=9.0)
    np.testing.assert_allclose(table, [9, 9, 9, 7, 5, 3, 1, 0.5])


def test_moments_on_a_quadratic_energy_follow_their_recursion():
    # E = x^2 / (2 v): mean <- r mean and variance <- r^2 variance + h T with r = 1 - h / (2 v),
    # h the square of the step. The last frame is shrunk by 1 - sigma^2 / v. Of n draws the standard
    # errors are std / sqrt(n) and variance sqrt(2 / n): five of each.
    n, v, step, sigma = 40_000, 2.0, 0.7, 0.5
    table = temperatures(2, 3, 1, hottest=4.0)
    mean, variance, expected = 3.0, 0.0, []
    for temperature in table:
        ratio = 1 - step**2 / (2 * v)
        mean, variance = ratio * mean, ratio**2 * variance + step**2 * temperature
        expected.append((mean, variance))
    last = 1 - sigma**2 / v
    expected[-1] = (last * mean, last**2 * variance)
    energy = lambda x: jnp.sum(x**2, axis=1) / (2 * v)
    frames = tempered_langevin(
        jax.random.key(0), energy, jnp.full((n, 1), 3.0),
        step_size=step, temperatures=table, sigma=sigma, num_frames=3,
    )  # fmt: skip
    for frame, (mean, variance) in zip(frames, expected[1::2], strict=True):
        assert abs(frame.mean() - mean) < 5 * np.sqrt(variance / n)
        assert abs(frame.var() - variance) < 5 * variance * np.sqrt(2 / n)


def test_more_frames_than_steps_are_refused():
    with pytest.raises(ValueError, match=r"num_frames needs to lie in 1 \.\. 2; got 3"):
        tempered_langevin(
            jax.random.key(0), lambda x: x.sum(1), jnp.ones((1, 1)),
            step_size=0.1, temperatures=np.ones(2), num_frames=3,
        )  # fmt: skip
