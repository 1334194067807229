# SPDX-License-Identifier: Apache-2.0
"""Exact, sliced and denoising objectives of energies against closed forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorejax.energies import score_of
from scorejax.objectives import ENERGY_OBJECTIVES, SCORE_OBJECTIVES, expected_multiple, sliced
from scorejax.objectives import finite_difference as fd
from scorejax.objectives.denoising import energy_denoising
from scorejax.objectives.directions import DIRECTIONS, draw_directions

RNG = jax.random.key(0)
DIM, NUM = 4, 6


def log_cosh(weight):
    """The energy sum_j log cosh(w_j . x): smooth, all its derivatives bounded, known by hand."""
    return lambda x: jnp.sum(jnp.log(jnp.cosh(x @ weight.T)), axis=-1)


def log_cosh_score_matching(weight, x):
    """SM of that energy by hand: its gradient is W^T tanh, its Hessian W^T diag(sech^2) W."""
    slope = np.tanh(x @ weight.T)
    trace = -(1 - slope**2) @ np.sum(weight**2, axis=1)
    return trace + np.sum((slope @ weight) ** 2, axis=1) / 2


def weights_and_data():
    generator = np.random.default_rng(0)
    return generator.normal(size=(7, DIM)), generator.normal(size=(NUM, DIM))


@pytest.mark.parametrize("name", DIRECTIONS)
@pytest.mark.parametrize("per_row", [False, True], ids=["one_key", "a_key_per_row"])
def test_directions_have_second_moment_identity_over_dimension(name, per_row):
    # 20 000 directions of a 2 x 3 example: entries of the mean of u u^T have a standard error of
    # at most sqrt(2) / 6 / sqrt(20 000) (Gaussian, diagonal); 36 entries stay within 4 of them but
    # for a chance of 0.3 %.
    num, shape = 20_000, (1, 2, 3)
    rng = jax.random.split(RNG, 1) if per_row else RNG
    u = np.asarray(draw_directions(DIRECTIONS[name], rng, jnp.zeros(shape), num)).reshape(num, 6)
    np.testing.assert_allclose(u.T @ u / num, np.eye(6) / 6, atol=4 * math.sqrt(2 / num) / 6)
    if name != "gaussian":
        np.testing.assert_allclose(np.sum(u**2, axis=1), 1, rtol=1e-6)  # float32


@pytest.mark.parametrize("name", DIRECTIONS)
def test_trace_variance_is_as_the_docstring_says(name):
    # 100 000 draws. The variance of a sample variance is at most (kurtosis - 1) / n of its square;
    # with the kurtosis of a Gaussian quadratic form, below 15, that is 1.2 %; 5 % is 4 of them.
    generator = np.random.default_rng(1)
    hessian = generator.normal(size=(DIM, DIM))
    hessian = hessian + hessian.T
    u = np.asarray(draw_directions(DIRECTIONS[name], RNG, jnp.zeros((1, DIM)), 100_000))[:, 0]
    square, trace = np.sum(hessian**2), np.trace(hessian)
    expected = {
        "gaussian": 2 * square,
        "sphere": 2 * (DIM * square - trace**2) / (DIM + 2),
        "rademacher": 2 * (square - np.sum(np.diag(hessian) ** 2)),
    }
    variance = np.var(DIM * np.einsum("ni,ij,nj->n", u, hessian, u))
    np.testing.assert_allclose(variance, expected[name], rtol=0.05)


def test_rows_with_keys_of_their_own_do_not_depend_on_their_batch_mates():
    keys = jax.random.split(RNG, 4)
    draw = jax.jit(lambda keys: draw_directions(DIRECTIONS["sphere"], keys, jnp.zeros((2, 3)), 2))
    u = draw(keys[:2])
    np.testing.assert_array_equal(draw(keys[jnp.asarray([2, 1])])[:, 1], u[:, 1])


def test_exact_and_sliced_score_matching_are_the_closed_form(x64):
    # Averages over the D unit vectors are exact: SSM / its multiple and SSM-VR are both SM.
    weight, x = weights_and_data()
    expected = log_cosh_score_matching(weight, x)
    energy, axes = log_cosh(jnp.asarray(weight)), np.eye(DIM)
    u = jnp.asarray(np.repeat(axes[:, None], NUM, axis=1))

    @jax.jit
    def objectives(x):
        score = score_of(energy)
        return (
            sliced.exact_score_matching(energy, RNG, x),
            DIM * sliced.sliced_along(energy, u, x),
            DIM * sliced.score_sliced_along(score, u, x),
            sliced.score_sliced_vr_along(score, u, x),
        )

    for value in objectives(jnp.asarray(x)):
        np.testing.assert_allclose(value, expected, rtol=1e-12)  # Double precision.


def test_exact_score_matching_takes_the_trace_over_all_axes_of_an_image(x64):
    weight, x = weights_and_data()
    energy = lambda images: log_cosh(jnp.asarray(weight))(images.reshape(-1, DIM))
    value = jax.jit(lambda x: sliced.exact_score_matching(energy, RNG, x))(x.reshape(NUM, 2, 2))
    np.testing.assert_allclose(value, log_cosh_score_matching(weight, x), rtol=1e-12)


# In double precision the bias at this step is 1e-6, far below the standard errors of 1e-2.
OPTIONS = {"fd_ssm": {"eps": 1e-3}, "fd_ssm_vr": {"eps": 1e-3}, "fd_dsm": {"eps": 1e-3}}
SLICED = [("energy", name) for name in ("ssm", "ssm_vr", "fd_ssm")]
SLICED += [("score", name) for name in SCORE_OBJECTIVES]


def test_sliced_objectives_are_unbiased(x64):
    # 10 000 draws at one point, each a row of its own; the mean over draws is compared with the
    # exact value in units of its own standard error. All 7 x 3 comparisons stay within 4 but for a
    # chance of 0.14 %.
    weight, x = weights_and_data()
    energy = log_cosh(jnp.asarray(weight))
    rows = jnp.asarray(np.repeat(x[:1], 10_000, axis=0))
    tables = {"energy": (ENERGY_OBJECTIVES, energy), "score": (SCORE_OBJECTIVES, score_of(energy))}

    @jax.jit
    def values(u):
        given = lambda rng, shape, dtype: u
        return [
            tables[kind][0][name](
                tables[kind][1], RNG, rows, direction=given, **OPTIONS.get(name, {})
            )
            for kind, name in SLICED
        ]

    exact = log_cosh_score_matching(weight, x[:1])[0]
    for direction in DIRECTIONS.values():
        found = np.asarray(values(direction(RNG, rows.shape, rows.dtype)))
        for (_, name), draws in zip(SLICED, found, strict=True):
            error = np.mean(draws) - exact * expected_multiple(name, DIM)
            assert abs(error) < 4 * np.std(draws) / math.sqrt(len(draws)), (direction, name)


def test_directions_of_the_denoising_form_average_to_denoising_score_matching(x64):
    # Over the D unit vectors the average is exact; the bias at eps 1e-4 is 1e-8.
    weight, x = weights_and_data()
    energy, sigma = log_cosh(jnp.asarray(weight)), 0.3
    displacement = sigma * np.random.default_rng(2).normal(size=x.shape)
    score = -np.tanh((x + displacement) @ weight.T) @ weight
    expected = np.sum((score + displacement / sigma**2) ** 2, axis=1) / 2
    u = jnp.asarray(np.repeat(np.eye(DIM)[:, None], NUM, axis=1))
    along = jax.jit(
        lambda d, x: fd.fd_denoising_along(energy, u, d, x, target_sigma=sigma, eps=1e-4)
    )
    value = along(displacement, x)
    np.testing.assert_allclose(value / expected_multiple("fd_dsm", DIM), expected, rtol=1e-6)


# The minimisers on Gaussian models, energy x^T P x / 2: with S the second moment of the data, each
# objective is quadratic in P, so that a zero gradient is its minimum; SM has -tr P + tr(P S P) / 2.


def gaussian_energy(precision):
    return lambda x: jnp.sum((x @ precision) * x, axis=-1) / 2


def along_axes(objective):
    """Averaged over the unit vectors, which is exactly the average over directions."""
    u = lambda x: jnp.asarray(np.repeat(np.eye(DIM)[:, None], x.shape[0], axis=1))
    return lambda precision, x: objective(gaussian_energy(precision), u(x), x)


MINIMISED = {
    "sm": lambda p, x: sliced.exact_score_matching(gaussian_energy(p), RNG, x),
    "ssm": along_axes(sliced.sliced_along),
    "ssm_vr": along_axes(lambda e, u, x: sliced.score_sliced_vr_along(score_of(e), u, x)),
    "fd_ssm": along_axes(lambda e, u, x: fd.fd_sliced_along(e, u, x, eps=0.5)),
    "fd_ssm_vr": along_axes(lambda e, u, x: fd.fd_sliced_vr_along(score_of(e), u, x, eps=0.5)),
    "score_fd_ssm": along_axes(
        lambda e, u, x: fd.score_fd_sliced_along(score_of(e), u, x, eps=0.5)
    ),
}


def test_every_objective_is_least_at_the_inverse_of_the_sample_covariance(x64):
    x = np.random.default_rng(3).normal(size=(20, DIM)) @ np.diag([0.5, 1.0, 1.5, 2.0])
    covariance = x.T @ x / len(x)
    precision = jnp.asarray(np.linalg.inv(covariance))

    @jax.jit
    def gradients(precision):
        return [
            jax.grad(lambda p, loss=loss: jnp.mean(loss(p, jnp.asarray(x))))(precision)
            for loss in MINIMISED.values()
        ]

    # P enters through x^T P x alone, so the gradient is compared in its symmetric part. Double
    # precision; the curvature of the losses is S / D or more, so 1e-9 is 1e-8 in P.
    for name, gradient in zip(MINIMISED, gradients(precision), strict=True):
        np.testing.assert_allclose(gradient + gradient.T, 0, atol=1e-9, err_msg=name)
    for name, gradient in zip(MINIMISED, gradients(1.1 * precision), strict=True):
        assert np.abs(gradient + gradient.T).max() > 1e-2, name
    value = np.mean(MINIMISED["sm"](precision, jnp.asarray(x)))
    np.testing.assert_allclose(value, -np.trace(precision) / 2, rtol=1e-12)


def test_denoising_objectives_are_least_at_the_smoothed_covariance_at_the_known_value(x64):
    # Noise +-sigma sqrt(D) e_i in turn at every example has the moments of sigma N(0, I) exactly,
    # so that the minimum is P = (S + sigma^2 I)^-1 and DSM there (D / sigma^2 - tr P) / 2.
    sigma = 0.6
    data = np.random.default_rng(4).normal(size=(20, DIM)) @ np.diag([0.5, 1.0, 1.5, 2.0])
    axes = sigma * math.sqrt(DIM) * np.concatenate([np.eye(DIM), -np.eye(DIM)])
    x = jnp.asarray(np.repeat(data, len(axes), axis=0))
    displacement = jnp.asarray(np.tile(axes, (len(data), 1)))
    covariance = data.T @ data / len(data)
    precision = jnp.asarray(np.linalg.inv(covariance + sigma**2 * np.eye(DIM)))
    u = jnp.asarray(np.repeat(np.eye(DIM)[:, None], len(x), axis=1))

    @jax.jit
    @jax.value_and_grad
    def loss(precision):
        energy = gaussian_energy(precision)
        value = fd.fd_denoising_along(energy, u, displacement, x, target_sigma=sigma, eps=0.5)
        return jnp.mean(value) / expected_multiple("fd_dsm", DIM)

    value, gradient = loss(precision)
    np.testing.assert_allclose(value, (DIM / sigma**2 - np.trace(precision)) / 2, rtol=1e-12)
    np.testing.assert_allclose(gradient + gradient.T, 0, atol=1e-10)  # Double precision.


def test_denoising_at_the_true_score_has_the_known_value():
    # x ~ N(0, S): DSM at P = (S + sigma^2 I)^-1 is (D / sigma^2 - tr P) / 2 in the mean; 20 000
    # rows, within 4 standard errors but for a chance of 6e-5. Levels are given per example.
    scales, sigma = np.array([0.5, 1.0, 1.5, 2.0]), 0.7
    x = (scales * np.random.default_rng(5).normal(size=(20_000, DIM))).astype(np.float32)
    precision = np.diag(1 / (scales**2 + sigma**2)).astype(np.float32)
    energy, level = gaussian_energy(precision), jnp.full(len(x), sigma)
    loss = jax.jit(lambda x: energy_denoising(energy, RNG, x, sigma=level))(x)
    expected = (DIM / sigma**2 - np.trace(precision)) / 2
    assert abs(np.mean(loss) - expected) < 4 * np.std(loss) / math.sqrt(len(x))
