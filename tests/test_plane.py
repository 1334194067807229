# SPDX-License-Identifier: Apache-2.0
"""Quadrature on the plane against closed forms of Gaussians."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from scorejax.data.toy import toy_distribution
from scorejax.evaluate.plane import compare, grid_log_prob, log_integral, plane_picture


def gaussian(mean, std, log_mass=0.0):
    """Log-density of N(mean, diag(std^2)), times exp(log_mass)."""
    mean, std = np.asarray(mean, float), np.asarray(std, float)

    def log_prob(x):
        z = (x - jnp.asarray(mean, x.dtype)[None]) / jnp.asarray(std, x.dtype)[None]
        return log_mass - jnp.sum(z**2, axis=1) / 2 - math.log(2 * math.pi * std.prod())

    return log_prob


def test_gaussians_have_their_divergence_and_normaliser(x64):
    (m, s), (n, r) = (np.array([0.2, -0.3]), np.array([0.3, 0.4])), (np.zeros(2), np.full(2, 0.5))
    result = compare(gaussian(m, s), gaussian(n, r, log_mass=3.0), limit=4.0, num=160)
    divergence = np.sum(np.log(r / s) + (s**2 + (m - n) ** 2) / (2 * r**2) - 0.5)
    # Spacing 0.05, a sixth of the least std: sums are exact to rounding; eight std to the border.
    assert abs(result.divergence.value - divergence) < 1e-9 and result.divergence.error < 1e-9
    assert abs(result.log_normalizer.value - 3.0) < 1e-9
    assert abs(result.true_outside) < 1e-9 and abs(result.model_outside) < 1e-9


def test_the_error_that_is_reported_bounds_the_error(x64):
    # Spacings of 1 and 2 noise levels, where the coarse sum is wrong and the fine one is not.
    log_prob = toy_distribution("eight_gaussians").log_prob
    values = grid_log_prob(log_prob, limit=1.62, num=36)
    integral = log_integral(values, limit=1.62)
    assert abs(integral.value) < 1e-7 < 1e-4 < integral.error


def test_equal_gaussians_apart_have_their_total_variation(x64):
    result = compare(gaussian([0.5, 0], [0.5, 0.5]), gaussian([-0.5, 0], [0.5, 0.5]), limit=4.0)
    # 2 Phi(d / 2) - 1 for means d = 2 std apart. |p - q| has a kink at x = 0, where a grid point
    # lies, so that the rule keeps its order: (1 / 32 / 0.5)^2 / 12 of the value.
    expected = scipy.special.erf(1 / math.sqrt(2))
    assert abs(result.total_variation.value - expected) < 5e-4
    assert abs(result.total_variation.value - expected) <= result.total_variation.error


def test_a_density_is_at_no_distance_from_itself():
    log_prob = toy_distribution("eight_gaussians").log_prob
    result = compare(log_prob, lambda x: log_prob(x) - 7.0, num=100)
    # Single precision: log-densities of a few nats less 7, and the normaliser of the same.
    assert abs(result.log_normalizer.value + 7) < 1e-5
    assert abs(result.divergence.value) < 1e-5 and result.total_variation.value < 1e-5


def test_where_the_model_has_no_mass_the_divergence_is_infinite_and_the_other_way_not():
    square = lambda x: jnp.where(jnp.max(jnp.abs(x), axis=1) <= 0.5, 0.0, -jnp.inf)
    assert compare(gaussian([0, 0], [0.3, 0.3]), square).divergence.value == np.inf
    # The rule puts half of the mass of an edge outside: a share of 4 * 1/128 at this spacing.
    back = compare(square, gaussian([0, 0], [0.3, 0.3]), num=512)
    expected = math.log(2 * math.pi * 0.3**2) + (2 / 12) / (2 * 0.3**2)
    assert abs(back.divergence.value - expected) < back.divergence.error + 0.02


def test_mass_outside_the_window_is_measured_and_warned_about(x64):
    inside = lambda limit: scipy.special.erf(limit / 0.5 / math.sqrt(2)) ** 2
    with pytest.warns(UserWarning) as warned:
        result = compare(gaussian([0, 0], [0.5, 0.5]), gaussian([0, 0], [0.5, 0.5], 2.0), limit=1.0)
    assert [str(w.message).split(" is outside")[0] for w in warned] == [
        "8.89% of the mass of the truth", "8.88% of the mass of the model",
    ]  # fmt: skip
    # Densities do not vanish at the border: the rule is of second order, h^2 / 12 p' per side.
    assert abs(result.true_outside - (1 - inside(1.0))) < 1e-4
    assert abs(result.model_outside - (1 - inside(1.0) / inside(2.0))) < 1e-4


def test_the_integral_of_nothing_is_nothing():
    assert log_integral(np.full((9, 9), -np.inf), limit=1.0) == (-np.inf, 0.0)


def test_impossible_grids_and_densities_are_refused():
    log_prob = gaussian([0, 0], [1, 1])
    with pytest.raises(ValueError, match="limit needs to be a positive number; got 0"):
        grid_log_prob(log_prob, limit=0)
    with pytest.raises(ValueError, match="multiple of 4; got 250, try 248"):
        grid_log_prob(log_prob, limit=1, num=250)
    with pytest.raises(ValueError, match=r"below \+inf; got nan at \(-1\.0, -1\.0\)"):
        grid_log_prob(lambda x: jnp.sqrt(x[:, 0]), limit=1, num=4)
    with pytest.raises(ValueError, match="at least one density"):
        plane_picture({}, limit=1.0)


def test_pictures_have_x_to_the_right_and_y_upwards():
    values = grid_log_prob(gaussian([0.5, 0.7], [0.1, 0.1]), limit=1.0, num=64)
    points = np.full((50, 2), [0.5, 0.7])
    picture = plane_picture({"truth": values}, limit=1.0, samples={"samples": points})
    height, width, _ = picture.shape
    assert picture.dtype == np.uint8
    heat, dots = picture[:, : width // 2].astype(int), picture[:, width // 2 :].astype(int)
    yellow = (heat[..., 0] > 200) & (heat[..., 1] > 200) & (heat[..., 2] < 80)
    blue = np.abs(dots - np.array([31, 95, 168])).sum(axis=2) < 60
    for mask in (yellow, blue):
        row, column = (mean.mean() for mean in np.nonzero(mask))
        # 85 % of the height, and 75 % of the panel's width, up to its margins.
        assert row < 0.35 * height and 0.6 < column / (width / 2) < 0.9
