# SPDX-License-Identifier: Apache-2.0
"""Keys, interpolation and completion by chains of recovery likelihood, on Gaussian data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorejax.linear_operators import mask_operator
from scorejax.objectives import recovery as objectives
from scorejax.samplers import recovery as samplers
from scorejax.samplers.recovery_ancestral import sample_ancestral
from scorejax.schedules import fine_recovery_levels
from tests.compilation import optimised_jit
from tests.test_recovery import DATA, LEVELS, assert_moments


@pytest.mark.deep
def test_rows_depend_on_their_own_keys():
    rngs = jax.random.split(jax.random.key(0), 6)
    energy_fn = DATA.energy_fn()
    draw = lambda rngs: samplers.sample(rngs, energy_fn, (len(rngs), 3), LEVELS, num_steps=2).x
    np.testing.assert_array_equal(draw(rngs)[3:], draw(rngs[3:]))
    x = jax.random.normal(jax.random.key(1), (6, 3))
    loss = lambda rngs, x, t: objectives.recovery_loss(energy_fn, rngs, x, LEVELS, t, num_steps=2)
    np.testing.assert_array_equal(
        loss(rngs, x, jnp.arange(6))[3:], loss(rngs[3:], x[3:], jnp.arange(3, 6))
    )


@pytest.mark.deep
def test_interpolation_ends_at_samples_of_its_streams():
    # Angles 0 and pi / 2 give the chains of the two streams alone; between them every noise has
    # variance 1, so that the law of the middle is that of samples.
    num, data = 2**14, DATA
    draw = lambda rng: (
        samplers.interpolate(rng, data.energy_fn(), (num, 1), 3, LEVELS, num_steps=5).x
    )
    x = np.asarray(optimised_jit(draw)(jax.random.key(0)), np.float64)[..., 0]
    alone = samplers.sample
    once = optimised_jit(lambda rng: alone(rng, data.energy_fn(), (num, 1), LEVELS, num_steps=5).x)
    other = np.asarray(once(jax.random.key(1)), np.float64)
    for column in x.T:
        # Difference of two variances of num draws: 4 standard errors are 4 sqrt(4 / num).
        assert abs(column.var() / other.var() - 1) < 4 * np.sqrt(4 / num)
    correlation = np.corrcoef(x.T)
    assert abs(correlation[0, 2]) < 4 / np.sqrt(num)
    # The chains are linear, so that the middle is (first + second) / sqrt(2) up to the means.
    np.testing.assert_allclose(correlation[0, 1], np.sqrt(0.5), atol=4 / np.sqrt(num))


def test_completion_imposes_the_measurement_at_every_step():
    # Two correlated coordinates, of which the first is measured. Every move is affine, so that mean
    # and covariance of (y, x_{t+1}) follow from matrices alone.
    num, num_steps, value = 2**14, 5, 0.6
    covariance = 0.25 * np.array([[1, 0.9], [0.9, 1]])
    spread = LEVELS.scales[:-1, None, None] ** 2 * covariance
    spread = spread + LEVELS.stds[:-1, None, None] ** 2 * np.eye(2)
    P = np.linalg.inv(LEVELS.energy_scales[:, None, None] ** 2 * spread)

    mean, cov = np.zeros(2), np.eye(2)
    for t in range(5, -1, -1):
        mean[0], cov[0] = LEVELS.scales[t + 1] * value, [LEVELS.stds[t + 1] ** 2, 0]
        cov[:, 0] = cov[0]
        mean, cov = np.tile(mean, 2), np.tile(cov, (2, 2))  # of y and x_{t+1}
        s2, scale = LEVELS.step_sizes[t], LEVELS.energy_scales[t]
        move = np.eye(4)
        move[:2, :2] -= s2 / 2 * (P[t] + LEVELS.recovery_precisions[t] * np.eye(2))
        move[:2, 2:] = s2 / 2 * LEVELS.recovery_precisions[t] * np.eye(2)
        for _ in range(num_steps):
            mean, cov = move @ mean, move @ cov @ move.T + s2 * np.diag([1, 1, 0, 0])
            mean[0] = scale * LEVELS.scales[t] * value
            cov[0], cov[:, 0] = 0, 0
            cov[0, 0] = (scale * LEVELS.stds[t]) ** 2
        mean, cov = mean[:2] / scale, cov[:2, :2] / scale**2

    precision = jnp.asarray(P, jnp.float32)
    energy_fn = lambda y, t: jnp.einsum("bi,bij,bj->b", y, precision[t], y) / 2
    operator = mask_operator(jnp.asarray([1.0, 0.0]))
    options = {"operator": operator, "y": operator.forward(jnp.full((num, 2), value))}

    def draw(rng):
        options["num_steps"] = num_steps
        return samplers.sample_given(rng, energy_fn, (num, 2), LEVELS, **options).x

    x = np.asarray(optimised_jit(draw)(jax.random.key(0)), np.float64)
    np.testing.assert_allclose(x[:, 0], value, atol=1e-6)
    assert_moments(x[:, 1], mean[1], cov[1, 1])


def test_ancestral_sampling_passes_over_levels():
    # Gaussian data: all moves are affine, and mean and variance of x follow level by level.
    num, levels = 2**14, fine_recovery_levels(100)
    mean, variance = 0.3, 0.25
    kept = [0, 25, 50, 74, 99]
    scales, stds = levels.scales, levels.stds
    centre, spread = 0.0, 1.0
    for below, above in zip(kept[-2::-1], kept[:0:-1], strict=True):
        decay = scales[above] / scales[below]
        added = 1 - decay**2
        precision = 1 / (scales[above] ** 2 * variance + stds[above] ** 2)
        factor = (1 - added * precision) / decay
        centre = factor * centre + added * precision * scales[above] * mean / decay
        spread = factor**2 * spread + added * (stds[below] / stds[above]) ** 2

    def energy_fn(x, t):
        scale, std = (jnp.asarray(table, x.dtype)[t + 1, None] for table in (scales, stds))
        return ((x - scale * mean) ** 2 / (2 * (scale**2 * variance + std**2))).sum(axis=1)

    draw = lambda rngs: sample_ancestral(rngs, energy_fn, (len(rngs), 2), levels, num_calls=4)
    rngs = jax.random.split(jax.random.key(0), num)
    drawn = jax.jit(draw)(rngs)
    assert drawn.nfe == 4
    assert_moments(drawn.x, centre, spread)
    np.testing.assert_allclose(drawn.x[-2:], draw(rngs[-2:]).x, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"num_calls needs to lie in 2 .. 99; got 100"):
        sample_ancestral(rngs, energy_fn, (num, 2), levels, num_calls=100)
