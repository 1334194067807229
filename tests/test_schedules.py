# SPDX-License-Identifier: Apache-2.0
"""Ladders and grids against the official tables and against what defines them."""

import numpy as np
import pytest

from scorejax import schedules


@pytest.mark.parametrize(
    ("name", "sigma_max", "num_scales"),
    [("cifar", 50.0, 1000), ("ffhq256", 348.0, 2000), ("ncsnv2_celeba", 90.0, 500)],
)
def test_geometric_sigmas_are_the_official_tables(golden, name, sigma_max, num_scales):
    # Both are float64; the official tables go through exp of a float64 linspace as ours do.
    expected = golden("b_tables")[f"out64/sigmas_{name}"]
    sigmas = schedules.geometric_sigmas(0.01, sigma_max, num_scales)
    np.testing.assert_allclose(sigmas, expected, rtol=1e-13)


def test_linear_betas_and_their_products_are_the_official_tables(golden):
    # A cumulative product of 1000 float64 factors keeps 1000 roundings of 1e-16.
    expected = golden("b_tables")
    betas = schedules.linear_betas(0.1, 20.0, 1000)
    products = schedules.alpha_products(betas)
    np.testing.assert_allclose(betas, expected["out64/ddpm_betas"], rtol=1e-13)
    np.testing.assert_allclose(products, expected["out64/ddpm_alphas_cumprod"], rtol=1e-12)
    np.testing.assert_allclose(
        np.sqrt(1 - products), expected["out64/ddpm_sqrt_1m_alphas_cumprod"], rtol=1e-12
    )


def test_geometric_sigmas_descend_by_one_ratio():
    sigmas = schedules.geometric_sigmas(0.3, 7.0, 11)
    assert sigmas[0] == pytest.approx(7.0, rel=1e-15)
    assert sigmas[-1] == pytest.approx(0.3, rel=1e-15)
    np.testing.assert_allclose(sigmas[1:] / sigmas[:-1], (0.3 / 7.0) ** 0.1, rtol=1e-14)


def test_time_grid_has_both_ends_and_even_steps():
    grid = schedules.time_grid(1.0, 1e-3, 7)
    assert grid[0] == 1.0 and grid[-1] == 1e-3
    np.testing.assert_allclose(np.diff(grid), -(1 - 1e-3) / 6, rtol=1e-13)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: schedules.geometric_sigmas(2.0, 1.0, 10), "sigma_min=2.0, sigma_max=1.0"),
        (lambda: schedules.geometric_sigmas(0.0, 1.0, 10), "0 < sigma_min"),
        (lambda: schedules.geometric_sigmas(0.1, 1.0, 1), "num_scales >= 2; got 1"),
        (lambda: schedules.linear_betas(0.1, 20.0, 20), "num_scales=20"),
        (lambda: schedules.linear_betas(3.0, 2.0, 20), "beta_min=3.0"),
        (lambda: schedules.time_grid(1.0, 1.0, 5), "t_min=1.0, t_max=1.0"),
        (lambda: schedules.time_grid(1.0, 0.1, 0), "num_steps >= 2; got 0"),
    ],
)
def test_impossible_ladders_are_refused_by_name_and_value(call, message):
    with pytest.raises(ValueError, match=message):
        call()
