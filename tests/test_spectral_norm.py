# SPDX-License-Identifier: Apache-2.0
"""Spectral normalisation against the official code's numbers and NumPy's singular values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorejax.models.spectral_norm import (
    SpectralConv,
    SpectralDense,
    advance,
    power_iteration,
    to_at_most_unit,
    to_unit,
)

CASES = ("dense", "conv", "wide", "bounded_small", "bounded_large", "bounded_tiny")


def assert_golden(value, file, name, call, precision):
    expected, tolerance = file[f"out64/{name}"], file[f"tol/{name}"]
    if call is not None:
        expected, tolerance = expected[call], tolerance[call]
    if precision == "float64":
        tolerance = 1e-8 * np.abs(expected).max()
    excess = np.abs(np.asarray(value, np.float64) - expected) / tolerance
    assert value.shape == expected.shape and excess.max() <= 1, f"{name}: {excess.max():.3g}"


def rescale_of(case):
    return to_at_most_unit if case.startswith("bounded") else to_unit


@jax.jit
def iterations(kernel, u):
    return jax.lax.fori_loop(0, 197, lambda _, u: power_iteration(kernel, u)[1], u)


@pytest.mark.parametrize("case", CASES)
def test_kernels_vectors_and_gradients_are_the_official_ones(golden, precision, case):
    file, rescale = golden("j_spectral"), rescale_of(case)
    w, u, cotangent = (
        jnp.asarray(file[key], float)
        for key in (f"params/{case}/w", f"params/{case}/u", f"in/{case}/cotangent")
    )

    def used(w, u):
        sigma, u = power_iteration(w, u)
        kernel = rescale(w, sigma)
        return jnp.sum(cotangent * kernel), (kernel, u)

    call, u = jax.jit(jax.grad(used, has_aux=True)), u[0]
    for i in range(3):
        grad, (kernel, u) = call(w, u)
        assert_golden(kernel, file, f"{case}/kernel", i, precision)
        assert_golden(u[None], file, f"{case}/u", i, precision)
        assert_golden(grad, file, f"{case}/grad_w", i, precision)
    if case == "bounded_tiny":  # Below the floor of 1e-12 u has no direction to converge to.
        return
    grad, (kernel, u) = call(w, iterations(w, u))
    assert_golden(kernel, file, f"{case}/kernel_after_200", None, precision)
    assert_golden(u[None], file, f"{case}/u_after_200", None, precision)
    # Oracle 13 of the specification: NumPy's largest singular value, to 1e-4.
    largest = lambda a: np.linalg.norm(np.asarray(a).reshape(-1, a.shape[-1]), 2)
    expected = min(largest(w), 1) if case.startswith("bounded") else 1
    np.testing.assert_allclose(largest(kernel), expected, rtol=1e-4)


def test_a_fresh_vector_has_had_one_iteration():
    # After one iteration u lies in the 5-dimensional space of the kernel's rows; a fresh draw of 20
    # numbers does not.
    layer = SpectralDense(20)
    variables = layer.init(jax.random.key(0), jnp.ones((1, 5)))
    kernel, u = variables["params"]["kernel"], variables["spectral"]["u"]
    np.testing.assert_allclose(np.linalg.norm(u), 1, rtol=1e-5)
    inside = np.linalg.pinv(kernel) @ np.asarray(kernel)
    np.testing.assert_allclose(np.asarray(u) @ inside, u, atol=1e-5)


def test_advancing_converges_to_layers_of_norm_one():
    conv = SpectralConv(4, name="conv")
    x = jnp.zeros((1, 4, 4, 2))
    variables = conv.init(jax.random.key(1), x)
    params, spectral = {"conv": variables["params"]}, {"conv": variables["spectral"]}
    for _ in range(60):
        spectral = advance(params, spectral)
    kernel = np.asarray(params["conv"]["kernel"], float).reshape(-1, 4)
    _, singular, right = np.linalg.svd(kernel)
    # The error falls by the ratio of the first two singular values, squared, per iteration.
    assert (singular[1] / singular[0]) ** 120 < 1e-4
    np.testing.assert_allclose(np.abs(spectral["conv"]["u"] @ right[0]), 1, rtol=1e-5)
    impulse = x.at[0, 1, 1, 0].set(1.0)
    value = conv.apply({"params": params["conv"], "spectral": spectral["conv"]}, impulse)
    expected = np.flip(np.asarray(params["conv"]["kernel"])[:, :, 0], (0, 1)) / singular[0]
    np.testing.assert_allclose(value[0, :3, :3], expected, rtol=1e-4)


def test_a_strided_convolution_pads_the_right_and_the_bottom(x64):
    # By brute force: each output is the kernel times a 3 x 3 window that starts at twice its place.
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 6, 6, 2))
    layer = SpectralConv(3, down=True, rescale=None)
    variables = layer.init(jax.random.key(0), jnp.asarray(x))
    kernel = np.asarray(variables["params"]["kernel"])
    padded = np.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
    expected = [
        [np.einsum("ijc,ijcd", padded[0, i : i + 3, j : j + 3], kernel) for j in (0, 2, 4)]
        for i in (0, 2, 4)
    ]
    np.testing.assert_allclose(layer.apply(variables, x)[0], expected, rtol=1e-10)
