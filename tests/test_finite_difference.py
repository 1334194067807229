# SPDX-License-Identifier: Apache-2.0
"""Finite differences against the derivatives that they stand for."""

import math

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from scorejax.energies import score_of
from scorejax.objectives import (
    annealed,
    exact_score_matching,
    fd_gradient_penalty,
    fd_sliced,
    repeat_rows,
    sliced,
)
from scorejax.objectives import finite_difference as fd
from scorejax.objectives.denoising import energy_denoising
from scorejax.objectives.directions import draw_directions, sphere
from tests.smooth_energies import log_cosh, log_cosh_score, mlp, mlp_params, quadratic

RNG = jax.random.key(0)


# The difference of any order.


@pytest.mark.parametrize(
    ("order", "nodes", "weights"),
    [  # By hand; the weights of the paper's Vandermonde system times the factorial of the order.
        (1, [1], [1]),
        (2, [0, 1], [-2, 2]),
        (3, [1, 2], [-2, 1]),
        (4, [0, 1, 2], [6, -8, 2]),
    ],
)
def test_difference_weights_are_those_by_hand(order, nodes, weights):
    found_nodes, found = fd.difference_weights(order)
    np.testing.assert_array_equal(found_nodes, nodes)
    np.testing.assert_allclose(found, weights, rtol=1e-12)  # Small systems in double precision.


@pytest.mark.parametrize("extra_nodes", [0, 1, 2])
@pytest.mark.parametrize("order", range(1, 9))
def test_differences_are_exact_up_to_their_degree_and_no_further(order, extra_nodes):
    # On t^p the difference is p! for p = order and 0 for any other p of its degree or less.
    nodes, weights = fd.difference_weights(order, extra_nodes)
    sign = (-1) ** order
    difference = lambda p: np.sum(weights * (nodes**p + sign * (-nodes) ** p)) / 2
    degree = order + 1 + 2 * extra_nodes
    # Rounding: terms of up to 6^13 cancel in double precision, weights are known to 1e-12.
    size = lambda p: 1e-10 * np.sum(np.abs(weights) * nodes**p) + 1e-8
    for p in range(degree + 1):
        expected = math.factorial(order) if p == order else 0
        assert abs(difference(p) - expected) < size(p)
    assert abs(difference(degree + 1)) > 0.5
    assert 2 * len(nodes) - (nodes[0] == 0) == order + 1 + 2 * extra_nodes


@pytest.mark.parametrize("extra_nodes", [0, 1])
@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_directional_derivative_has_order_two_more_with_each_extra_node(x64, order, extra_nodes):
    # f(t) = exp(t u.x), whose derivatives are all itself. One call holds every step: eps is per
    # example. Halving a step of at most 0.4 divides the error by 2^(2 + 2 extra), to a few per cent
    # of higher orders; rounding, 1e-16 / eps^5, is below 1e-10 of it.
    eps = jnp.asarray([0.4, 0.2, 0.1])
    x, u = jnp.zeros((3, 2)), jnp.tile(jnp.asarray([0.6, 0.8]), (3, 1))
    f = lambda x: jnp.exp(x @ jnp.asarray([0.6, 0.8]))
    value = fd.directional_derivative(f, x, u, order=order, eps=eps, extra_nodes=extra_nodes)
    slopes = np.diff(np.log(np.abs(np.asarray(value) - 1))) / np.diff(np.log(eps))
    np.testing.assert_allclose(slopes, 2 + 2 * extra_nodes, atol=0.1)


def test_directional_derivative_of_a_field_keeps_its_axes(x64):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 2)))
    value = fd.directional_derivative(lambda x: x**3, x, jnp.ones_like(x), order=2, eps=0.1)
    np.testing.assert_allclose(value, 6 * x, rtol=1e-10)  # Of degree 3: exact.


# FD-SSM and its kin against their limits.


SIGMA = 0.4


@jax.jit
def differences_and_limits(x, displacement, eps):
    """Each finite-difference objective of the quadratic energy, and what it stands for."""
    energy, _ = quadratic()
    score = score_of(energy)
    u = draw_directions(sphere, RNG, x, 3)
    slope = -jax.vmap(lambda u: jnp.sum(u * -score(x + displacement), axis=1))(u)
    r = jax.vmap(lambda u: jnp.sum(u * displacement, axis=1))(u) / SIGMA**2
    denoising = jnp.mean((slope + r) ** 2, axis=0)
    fd_denoising = fd.fd_denoising_along(energy, u, displacement, x, target_sigma=SIGMA, eps=eps)
    return (
        (fd.fd_sliced_along(energy, u, x, eps=eps), sliced.sliced_along(energy, u, x)),
        (fd.score_fd_sliced_along(score, u, x, eps=eps), sliced.sliced_along(energy, u, x)),
        (fd.fd_sliced_vr_along(score, u, x, eps=eps), sliced.score_sliced_vr_along(score, u, x)),
        (fd_denoising, denoising),
    )


@pytest.mark.parametrize("eps", [0.01, 0.5, 3.0])
def test_on_quadratic_energies_every_step_is_exact(x64, eps):
    # Double precision: 1e-16 of an energy of about 10, over eps^2 >= 1e-4, is 1e-11.
    x = jnp.asarray(quadratic()[1])
    displacement = SIGMA * np.random.default_rng(1).normal(size=x.shape)
    for difference, limit in differences_and_limits(x, displacement, eps):
        np.testing.assert_allclose(difference, limit, rtol=0, atol=1e-10)


def test_on_quadratic_energies_a_step_of_a_tenth_is_exact_to_a_thousandth_in_single_precision():
    # Each energy is below 20, rounded at 1e-6 then, over eps^2 = 0.01: 1e-4 times sqrt(6), for
    # values of 1 to 100; the squared difference of FD-DSM doubles its relative error.
    x = quadratic()[1].astype(np.float32)
    displacement = (SIGMA * np.random.default_rng(1).normal(size=x.shape)).astype(np.float32)
    for difference, limit in differences_and_limits(x, displacement, 0.1):
        np.testing.assert_allclose(difference, limit, rtol=1e-3, atol=1e-3)


def test_the_error_of_fd_sliced_falls_as_eps_squared_with_the_known_coefficient(x64):
    # FD-SSM - SSM = eps^2 (d_4 / 12 + d_1 d_3 / 6) + O(eps^4). One example a step, all of one
    # point; the fourth-order term changes the slope by some eps^2, and eps is 0.1 and less.
    energy, x, derivatives = log_cosh()
    eps = np.array([0.1, 0.05, 0.025, 0.0125])
    u = np.random.default_rng(1).normal(size=x.shape)
    u /= np.linalg.norm(u)
    rows = lambda v: jnp.asarray(np.repeat(v, len(eps), axis=0))
    value = fd.fd_sliced_along(energy, rows(u)[None], rows(x), eps=jnp.asarray(eps))
    first, second, third, fourth = (d[0] for d in derivatives(x, u))
    error = np.asarray(value) - (second + first**2 / 2)
    np.testing.assert_allclose(np.diff(np.log(np.abs(error))) / np.diff(np.log(eps)), 2, atol=0.05)
    np.testing.assert_allclose(error[-1] / eps[-1] ** 2, fourth / 12 + first * third / 6, rtol=1e-3)


def test_the_error_of_fd_denoising_falls_as_eps_squared_with_the_known_coefficient(x64):
    energy, x, derivatives = log_cosh()
    eps, sigma = np.array([0.1, 0.05, 0.025, 0.0125]), 0.5
    u, noise = np.random.default_rng(1).normal(size=(2, *x.shape))
    u /= np.linalg.norm(u)
    rows = lambda v: jnp.asarray(np.repeat(v, len(eps), axis=0))
    value = fd.fd_denoising_along(
        energy, rows(u)[None], sigma * rows(noise), rows(x), target_sigma=sigma,
        eps=jnp.asarray(eps),
    )  # fmt: skip
    first, _, third, _ = (d[0] for d in derivatives(x + sigma * noise, u))
    residual = first + np.sum(u * noise) / sigma
    error = np.asarray(value) - residual**2
    np.testing.assert_allclose(np.diff(np.log(np.abs(error))) / np.diff(np.log(eps)), 2, atol=0.05)
    np.testing.assert_allclose(error[-1] / eps[-1] ** 2, residual * third / 3, rtol=1e-3)


def test_the_errors_of_score_differences_fall_as_eps_squared_with_the_known_coefficients(x64):
    # FD-SSM-VR - SSM-VR = eps^2 (s . d_u^2 s / 2 + (D / 6) u . d_u^3 s), and FD-SSM of a score the
    # same with u . s for s and 1 / 6 for D / 6.
    energy, x, _ = log_cosh()
    eps = np.array([0.1, 0.05, 0.025, 0.0125])
    u = np.random.default_rng(1).normal(size=x.shape)
    u /= np.linalg.norm(u)
    rows = lambda v: jnp.asarray(np.repeat(v, len(eps), axis=0))
    s, _, second, third = (d[0] for d in log_cosh_score(x, u))
    along, dim = u[0], x.shape[1]
    coefficients = {
        (fd.fd_sliced_vr_along, sliced.score_sliced_vr_along): s @ second / 2
        + dim / 6 * along @ third,
        (fd.score_fd_sliced_along, sliced.score_sliced_along): (along @ s) * (along @ second) / 2
        + along @ third / 6,
    }
    for (difference, limit), coefficient in coefficients.items():
        both = jax.jit(
            lambda u, x, eps, d=difference, e=limit: (
                d(score_of(energy), u[None], x, eps=eps) - e(score_of(energy), u[None], x)
            )
        )
        error = np.asarray(both(rows(u), rows(x), jnp.asarray(eps)))
        slopes = np.diff(np.log(np.abs(error))) / np.diff(np.log(eps))
        np.testing.assert_allclose(slopes, 2, atol=0.05)
        np.testing.assert_allclose(error[-1] / eps[-1] ** 2, coefficient, rtol=1e-3)


def test_parameter_gradients_converge_to_those_of_the_limit_as_eps_squared(x64):
    dim = 4
    params, x = (
        mlp_params(dim, 8, jnp.float64),
        jnp.asarray(np.random.default_rng(1).normal(size=(5, dim))),
    )
    u = draw_directions(sphere, RNG, x, 1)
    displacement = 0.3 * jnp.asarray(np.random.default_rng(2).normal(size=x.shape))
    energy = lambda p: lambda x: mlp(p, x)

    def residual(p):
        slope = jax.jvp(lambda y: -mlp(p, y), (x + displacement,), (u[0],))[1]
        return (slope + jnp.sum(u[0] * displacement, axis=1) / 0.09) ** 2

    vr = lambda p, eps: fd.fd_sliced_vr_along(score_of(energy(p)), u, x, eps=eps)
    objectives = [
        (lambda p, eps: fd.fd_sliced_along(energy(p), u, x, eps=eps),
         lambda p: sliced.sliced_along(energy(p), u, x)),
        (vr, lambda p: sliced.score_sliced_vr_along(score_of(energy(p)), u, x)),
        (lambda p, eps: fd.fd_denoising_along(
            energy(p), u, displacement, x, target_sigma=0.3, eps=eps), residual),
    ]  # fmt: skip

    @jax.jit
    def gradients(eps):
        flat = lambda loss: jnp.concatenate(
            [g.ravel() for g in jax.tree.leaves(jax.grad(lambda p: jnp.mean(loss(p)))(params))]
        )
        return [
            (flat(lambda p, d=difference: d(p, eps)), flat(limit))
            for difference, limit in objectives
        ]

    eps = np.array([0.1, 0.05, 0.025])
    found = [gradients(e) for e in eps]
    for index in range(len(objectives)):
        errors = [np.linalg.norm(step[index][0] - step[index][1]) for step in found]
        slopes = np.diff(np.log(errors)) / np.diff(np.log(eps))
        np.testing.assert_allclose(slopes, 2, atol=0.1)  # Next order: eps^2 of the slope.
        assert errors[0] < 0.02 * np.linalg.norm(found[0][index][1])


# No derivative of a derivative.


@jax.custom_jvp
def marked(x):
    """tanh whose first, second and third derivatives can be told apart in a program's text."""
    return jnp.tanh(x)


@jax.jit
def first_derivative_(x):
    return _first(x)


@jax.custom_jvp
def _first(x):
    return 1 - jnp.tanh(x) ** 2


@jax.jit
def second_derivative_(x):
    return -2 * jnp.tanh(x) * (1 - jnp.tanh(x) ** 2)


marked.defjvps(lambda t, ans, x: first_derivative_(x) * t)
_first.defjvps(lambda t, ans, x: second_derivative_(x) * t)


def names_in(jaxpr):
    """The names of the functions that a program calls, at any depth."""
    for equation in jaxpr.eqns:
        if "name" in equation.params:
            yield equation.params["name"]
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from names_in(inner)


def program(objective):
    weight = jnp.asarray(np.random.default_rng(0).normal(size=(6, 4)), jnp.float32)
    x = jnp.ones((3, 4))
    loss = lambda w: jnp.mean(objective(lambda x: jnp.sum(marked(x @ w.T), axis=-1), x))
    return set(names_in(jax.make_jaxpr(jax.grad(loss))(weight).jaxpr))


def test_finite_difference_objectives_differentiate_once_only():
    # The activation's derivative calls a function by name, and so does the derivative of that: the
    # second's name is in a training step exactly if a derivative is differentiated. The exact forms
    # show that it would be found.
    score = lambda energy: lambda x: -energy(x)[:, None] * x
    once = [
        lambda e, x: fd_sliced(e, RNG, x, eps=0.1, num_directions=2),
        lambda e, x: fd.fd_denoising(e, RNG, x, sigma=0.1, eps=0.1),
        lambda e, x: fd.fd_sliced_vr(score(e), RNG, x, eps=0.1),
        lambda e, x: fd.score_fd_sliced(score(e), RNG, x, eps=0.1),
        lambda e, x: fd_gradient_penalty(e, RNG, x, eps=0.1),
        lambda e, x: fd.directional_derivative(e, x, jnp.ones_like(x), order=4, eps=0.1),
    ]
    twice = [
        lambda e, x: exact_score_matching(e, RNG, x),
        lambda e, x: sliced.sliced_score_matching(e, RNG, x),
        lambda e, x: sliced.sliced_score_matching_vr(e, RNG, x),
        lambda e, x: sliced.score_sliced_score_matching(score(e), RNG, x),
        lambda e, x: energy_denoising(e, RNG, x, sigma=0.1),
    ]
    for objective in once:
        names = program(objective)
        assert "first_derivative_" in names and "second_derivative_" not in names
    for objective in twice:
        assert "second_derivative_" in program(objective)


# One call on a joined batch.


def test_the_energy_is_called_once_and_directions_share_the_centre():
    energy, x = quadratic()
    sizes = []

    def counted(x):
        sizes.append(x.shape[0])
        return energy(x)

    jax.eval_shape(lambda x: fd_sliced(counted, RNG, x, eps=0.1, num_directions=3), jnp.asarray(x))
    assert sizes == [(1 + 2 * 3) * len(x)]


def test_one_call_on_the_joined_batch_gives_what_separate_calls_give():
    # The formulas of the module's docstring, with a call for each member. Single precision, and a
    # joined product sums in another order: 1e-6 of values of size 10, over eps^2 = 1/4.
    params, eps, sigma, dim = mlp_params(4, 8, jnp.float32), 0.5, 0.3, 4
    energy = lambda x: mlp(params, x)
    generator = np.random.default_rng(1)
    x, displacement, u = (
        jnp.asarray(generator.normal(size=(6, dim)), jnp.float32) for _ in range(3)
    )
    u, score, v = u[None], score_of(energy), eps * u
    dot = lambda a, b: jnp.sum(a * b, axis=1)

    centre, plus, minus = (-jax.jit(energy)(y) for y in (x, x + v, x - v))
    serial = (plus + minus - 2 * centre + (plus - minus) ** 2 / 8) / eps**2
    joined = jax.jit(lambda x: fd.fd_sliced_along(energy, u, x, eps=eps))(x)
    np.testing.assert_allclose(joined, serial, rtol=1e-5, atol=1e-5)

    y = x + displacement
    plus, minus = (-jax.jit(energy)(at) for at in (y + v, y - v))
    serial = (plus - minus + 2 * dot(v, displacement) / sigma**2) ** 2 / (4 * eps**2)
    denoising = lambda d: fd.fd_denoising_along(energy, u, d, x, target_sigma=sigma, eps=eps)
    np.testing.assert_allclose(jax.jit(denoising)(displacement), serial, rtol=1e-5, atol=1e-5)

    plus, minus = (jax.jit(score)(at) for at in (x + v, x - v))
    serial = dot(plus + minus, plus + minus) / 8 + dim * dot(v, plus - minus) / (2 * eps**2)
    joined = jax.jit(lambda x: fd.fd_sliced_vr_along(score, u, x, eps=eps))(x)
    np.testing.assert_allclose(joined, serial, rtol=1e-5, atol=1e-5)


def test_values_of_examples_follow_them_into_the_joined_batch(x64):
    # Each example has an energy of its own, scales_i |x|^2 / 2: SSM is exact for any step.
    scales, x = (
        jnp.asarray([1.0, 2.0, 3.0]),
        jnp.asarray(np.random.default_rng(0).normal(size=(3, 2))),
    )
    energy = lambda x: repeat_rows(scales, len(x)) * jnp.sum(x**2, axis=-1) / 2
    u = np.random.default_rng(1).normal(size=(2, *x.shape))
    value = jax.jit(lambda u: fd.fd_sliced_along(energy, u, x, eps=0.5))(u)
    slope = np.asarray(scales) * np.sum(u * np.asarray(x), axis=-1)
    curvature = np.asarray(scales) * np.sum(u**2, axis=-1)
    np.testing.assert_allclose(value, np.mean(slope**2 / 2 - curvature, axis=0), rtol=1e-12)


def test_annealing_adds_noise_of_each_level_and_weighs_by_its_square(x64):
    # The score -x / sigma at level sigma has SM = -D / sigma + |x|^2 / (2 sigma^2); noise of
    # variance sigma^2 adds D / 2 in the mean over it, and for linear scores any step is exact.
    num, dim, sigma = 20_000, 3, jnp.asarray([0.1, 1.0])
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, dim)))
    objective = lambda score, rng, y: fd.fd_sliced_vr(score, rng, y, eps=0.5)
    score_fn = lambda y, sigma: -y / sigma[:, None]
    value = jax.jit(lambda x, sigma: annealed(objective, score_fn, RNG, x, sigma=sigma))(
        jnp.repeat(x, num, axis=0), jnp.repeat(sigma, num)
    ).reshape(2, num)
    square = np.sum(np.asarray(x) ** 2, axis=1)
    expected = sigma**2 * (-dim / sigma + square / (2 * sigma**2) + dim / 2)
    error = np.mean(value, axis=1) - expected
    assert np.all(np.abs(error) < 4 * np.std(value, axis=1) / math.sqrt(num))


def test_the_gradient_penalty_is_the_squared_gradient(x64):
    energy, x = quadratic()
    num = 4000
    rows = jnp.asarray(np.repeat(x[:1], num, axis=0))
    value = np.asarray(jax.jit(lambda x: fd_gradient_penalty(energy, RNG, x, eps=0.5))(rows))
    expected = np.sum(np.asarray(score_of(energy)(jnp.asarray(x[:1]))) ** 2)
    assert abs(value.mean() - expected) < 4 * value.std() / math.sqrt(num)
