# SPDX-License-Identifier: Apache-2.0
"""Heads against closed forms: mixtures are densities, scores their derivatives, and tails fall."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from scipy import integrate, special, stats

from scorejax.models.univariate import MixtureHead, ScoreHead
from tests.random_variables import random_variables

MIXTURE, LOGISTICS = MixtureHead(3, "gaussian"), MixtureHead(3, "logistic")
PLAIN = ScoreHead(6, 2)
FOURIER = ScoreHead(6, 3, num_frequencies=3, activation="swish")
GRID = np.linspace(-40, 40, 4001)


def numbers(*shape, seed=0, scale=1.0):
    return jnp.asarray(np.random.default_rng(seed).normal(0, scale, shape))


def with_random_parameters(head, u, c, sigma=None, std=0.4):
    return random_variables(head, u, c, sigma, seed=2, mean=0.0, std=std)


@functools.partial(jax.jit, static_argnums=0)
def measures(head, variables, u, c, sigma=None):
    """Components, log-density, distribution function, score, and gradient of the log-density."""
    apply = lambda method, *inputs: head.apply(variables, *inputs, sigma, method=method)
    gradient = jax.grad(lambda u: jnp.sum(apply("log_prob", u, c)))
    broadcast = jnp.broadcast_to(u, np.broadcast_shapes(u.shape, c.shape[:-1]))
    return (
        apply("components", c),
        *(apply(method, u, c) for method in ("log_prob", "cdf", "__call__")),
        gradient(broadcast),
    )


def on_the_grid(head, sigma=None):
    """Measures at GRID in three contexts; components (3, 1, k), the others (3, len(GRID))."""
    u, c = jnp.asarray(GRID[None]), numbers(3, 1, 2, seed=1)
    return measures(head, with_random_parameters(head, u, c), u, c, sigma)


@pytest.mark.parametrize("head", [MIXTURE, LOGISTICS], ids=lambda head: head.kind)
def test_mixtures_are_those_of_scipy_and_the_density_the_derivative_of_their_cdf(x64, head):
    # Three terms in double precision. Simpson's rule at a tenth of the scale errs by 1e-7.
    (log_weights, means, scales), log_prob, cdf, score, gradient = on_the_grid(head)
    assert scales.min() > 0.2
    law = {"gaussian": stats.norm, "logistic": stats.logistic}[head.kind]
    z = GRID[None, :, None], means, scales
    expected = special.logsumexp(log_weights + law.logpdf(*z), axis=-1)
    np.testing.assert_allclose(log_prob, expected, rtol=1e-12, atol=1e-12)
    expected = np.sum(np.exp(log_weights) * law.cdf(*z), axis=-1)
    np.testing.assert_allclose(cdf, expected, rtol=1e-11, atol=1e-300)
    np.testing.assert_allclose(score, gradient, rtol=1e-10, atol=1e-10)
    integral = integrate.cumulative_simpson(np.exp(log_prob), x=GRID, initial=0)
    np.testing.assert_allclose(integral, cdf, atol=1e-7)
    np.testing.assert_allclose(cdf[:, -1], 1, atol=1e-12)


def test_noise_convolves_a_gaussian_mixture(x64):
    # The trapezoidal rule at a tenth of the smallest std is exact in double precision.
    sigma = 0.25
    log_prob = on_the_grid(MIXTURE)[1]
    components, noisy, cdf, score, gradient = on_the_grid(MIXTURE, sigma)
    assert components.scales.min() > sigma
    step = GRID[1] - GRID[0]
    kernel = step * stats.norm.pdf(step * np.arange(-150, 151), scale=sigma)
    expected = [np.convolve(p, kernel, "same") for p in np.exp(log_prob)]
    np.testing.assert_allclose(np.exp(noisy), expected, atol=1e-13)
    np.testing.assert_allclose(score, gradient, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(np.gradient(cdf, step, axis=1), expected, atol=1e-3)


@pytest.mark.deep
@pytest.mark.parametrize("head", [MIXTURE, LOGISTICS], ids=lambda head: head.kind)
def test_far_tails_and_least_scales_are_finite_in_single_precision(head):
    # Scales of 1e-3 at |u| = 1e3 square to 1e12; the score is then -z / scale, or -1 / scale.
    u, c = jnp.array([-1e3, -1.0, 0.0, 1e3]), jnp.ones((4, 2))
    variables = with_random_parameters(head, u, c, std=0.0)
    variables["params"]["out"]["bias"][6:] = -50.0
    (_, _, scales), *found = measures(head, variables, u, c)
    np.testing.assert_allclose(scales, 1e-3, rtol=1e-6)
    slopes = jax.jit(jax.grad(lambda v: sum(map(jnp.sum, measures(head, v, u, c)[1:]))))(variables)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((found, slopes)))
    _, cdf, score, _ = found
    size = 1e9 if head.kind == "gaussian" else 1e3
    np.testing.assert_allclose(score[jnp.array([0, 3])], [size, -size], rtol=2e-3)
    np.testing.assert_allclose(cdf[jnp.array([0, 3])], [0, 1])


@pytest.mark.parametrize("num", [1, 10])
def test_a_new_mixture_covers_the_standard_normal_density(num):
    # Its components differ, and its variance is 1 within a third.
    head, c = MixtureHead(num), jnp.zeros((1, 2))
    init = lambda rng: head.init_with_output(rng, c, method="components")[0]
    log_weights, means, scales = (np.asarray(a)[0] for a in jax.jit(init)(jax.random.key(0)))
    assert len(np.unique(means)) == num
    variance = np.exp(log_weights) @ (means**2 + scales**2)
    np.testing.assert_allclose([means.mean(), variance], [0, 1], atol=1 / 3)


@pytest.mark.parametrize("noisy", [False, True])
def test_the_linear_part_of_a_score_head_is_that_of_a_noisy_gaussian(x64, noisy):
    # With r = 0, at every noise level the score of N(m, v + sigma^2). Parameters are single.
    u, c = numbers(3, 2, scale=2.0), numbers(3, 2, 2, seed=1)
    sigma = jnp.array([[0.05], [0.5], [3.0]]) if noisy else None
    variables = with_random_parameters(FOURIER, u, c, sigma)
    params = variables["params"]
    params["out"] = jax.tree.map(np.zeros_like, params["out"])
    affine = lambda name: np.asarray(c) @ params[name]["kernel"][:, 0] + params[name]["bias"]
    least = FOURIER.min_variance
    variance = least + np.log1p(np.exp(affine("spread")) * np.expm1(1 - least))
    expected = (affine("mean") - u) / (variance + (np.asarray(sigma) ** 2 if noisy else 0))
    found = jax.jit(FOURIER.apply)(variables, u, c, sigma)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_new_score_head_is_standard_normal():
    # Its last layers start with weights of 1e-5 in place of zero, for contexts of size 3.
    head, u, c = ScoreHead(8, 1), numbers(7), numbers(7, 3, seed=1)
    found = jax.jit(lambda rng: head.init_with_output(rng, u, c, 0.5)[0])(jax.random.key(0))
    np.testing.assert_allclose(found, -u / 1.25, atol=3e-4)


@pytest.mark.parametrize(("head", "sigma"), [(PLAIN, None), (FOURIER, 0.2)])
def test_score_heads_fall_linearly_far_out_and_so_can_be_normalised(x64, head, sigma):
    # Whatever the parameters. r is bounded by the sum of its last weights, about 10, so that from
    # 1e6 to 2e6 it changes slopes of 1e-2 or more by at most 1e-2.
    u, c = jnp.array([[-2e6, -1e6, 1e6, 2e6]]), numbers(5, 1, 2)
    variables = with_random_parameters(head, u, c, sigma, std=2.0)
    s = np.asarray(jax.jit(head.apply)(variables, u, c, sigma))
    slopes = np.diff(s, axis=1)[:, ::2] / 1e6
    assert (slopes < -1e-2).all()
    np.testing.assert_allclose(slopes[:, 0], slopes[:, 1], rtol=1e-2)
    assert (s[:, :2] > 0).all() and (s[:, 2:] < 0).all()


@pytest.mark.parametrize(("head", "sigma"), [(PLAIN, None), (FOURIER, 0.2), (MIXTURE, None)])
def test_scores_are_twice_differentiable(x64, head, sigma):
    # Central differences at 1e-4 err by 1e-8 of the next derivative but one; those of fourth order
    # reach 1e5 with these weights.
    u, c = numbers(6), numbers(6, 2, seed=1)
    variables = with_random_parameters(head, u, c, sigma)
    score = lambda u: head.apply(variables, u, c, sigma)
    slope = lambda u: jax.jvp(score, (u,), (jnp.ones_like(u),))[1]
    curvature = lambda u: jax.jvp(slope, (u,), (jnp.ones_like(u),))[1]
    all_three = jax.jit(lambda u: (score(u), slope(u), curvature(u)))
    (s1, d1, _), (s0, d0, _), (_, d, dd) = map(all_three, (u + 1e-4, u - 1e-4, u))
    np.testing.assert_allclose((s1 - s0) / 2e-4, d, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose((d1 - d0) / 2e-4, dd, rtol=1e-3, atol=1e-3)
    assert (dd != 0).all()


def test_axes_of_size_one_broadcast(x64):
    # A grid of numbers in each context, as if each number had the context to itself; and one number
    # at a time, the contexts being held.
    u, c, sigma = numbers(1, 1, 5), numbers(2, 3, 1, 2, seed=1), numbers(2, 1, 1, seed=2) ** 2
    variables = with_random_parameters(FOURIER, u, c, sigma)

    @jax.jit
    def three_ways(u, c, sigma):
        repeated = (jnp.broadcast_to(a, (2, 3, 5)) for a in (u, sigma))
        wide = next(repeated), jnp.broadcast_to(c, (2, 3, 5, 2)), next(repeated)
        one = lambda u: FOURIER.apply(variables, u[None, None], c[..., 0, :], sigma[..., 0])
        direct = FOURIER.apply(variables, u, c, sigma)
        return FOURIER.apply(variables, *wide), direct, jax.vmap(one, out_axes=-1)(u[0, 0])

    expected, *found = three_ways(u, c, sigma)
    for s in found:
        np.testing.assert_allclose(s, expected, rtol=1e-11)


def num_multiplications(jaxpr):
    """Multiplications in the matrix products of a program."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            sizes = [equation.invars[0].aval.shape[i] for i in contracted]
            total += equation.outvars[0].aval.size * int(np.prod(sizes))
        total += sum(map(num_multiplications, jaxprs_in_params(equation.params)))
    return total


def test_over_a_grid_what_depends_on_the_context_alone_is_computed_once():
    shapes = {"u": (1, 1, 50), "c": (2, 3, 1, 2), "sigma": (2, 1, 1)}
    arguments = [jax.ShapeDtypeStruct(shape, "float32") for shape in shapes.values()]

    def cost(head):
        variables = jax.eval_shape(head.init, jax.random.key(0), *arguments)
        return num_multiplications(jax.make_jaxpr(head.apply)(variables, *arguments).jaxpr)

    # For 6 contexts: two rows of 9 parameters; m, v and three layers of 6 units.
    assert cost(MIXTURE) == 6 * 2 * 9
    contexts = 6 * 2 * (1 + 1 + 3 * 6)
    # For 2 levels: 7 features to three layers, and 6 Fourier features of each u, damped by sigma.
    levels = 2 * 7 * 3 * 6 + 2 * 50 * 6 * 6
    # For 300 pairs of number and context: 1 to 6, twice 6 to 6, and 6 to 1.
    assert cost(FOURIER) == contexts + levels + 300 * (6 + 2 * 36 + 6)


def test_fourier_features_resolve_grey_levels(x64):
    # Random hidden units and a last layer by least squares, for 17 levels with noise of a sixth of
    # their distance: hardly any of the variance is explained without, most of it with the features.
    levels, sigma = np.linspace(-1, 1, 17), 0.02
    u, c = jnp.linspace(-1, 1, 401), jnp.zeros((1, 1))
    weights = np.exp(-((np.asarray(u)[:, None] - levels) ** 2) / (2 * sigma**2))
    target = (weights @ levels / weights.sum(axis=1) - u) / sigma
    unexplained = []
    for num_frequencies in (0, 8):
        head = ScoreHead(32, 1, num_frequencies=num_frequencies, max_frequency=16.0)
        params = with_random_parameters(head, u, c, sigma)["params"]
        affine = functools.partial(last_layer, head, params, u, c, sigma)
        rows = np.asarray(jax.jit(jax.vmap(affine))(np.eye(33, 32)))
        features = (rows[:-1] - rows[-1]).T
        fit = np.linalg.lstsq(features, target, rcond=1e-9)[0]
        unexplained.append(np.mean((features @ fit - target) ** 2) / np.mean(target**2))
    assert unexplained[0] > 0.9 and unexplained[1] < 0.15


def last_layer(head, params, u, c, sigma, kernel):
    """The score with the kernel in the last layer, of which it is an affine function."""
    params = params | {"out": {"kernel": kernel[:, None], "bias": np.zeros(1)}}
    return head.apply({"params": params}, u, c, sigma)


def test_what_a_head_cannot_do_is_refused_in_one_line():
    u, c = jnp.ones(2), jnp.ones((2, 3))
    with pytest.raises(ValueError, match="sigma needs a mixture of kind 'gaussian'"):
        jax.eval_shape(LOGISTICS.init, jax.random.key(0), u, c, u)
    for make, message in (
        (lambda: MixtureHead(3, "logistics"), "kind of mixture 'logistics': did you mean"),
        (lambda: MixtureHead(0), "num_components needs to be at least 1; got 0"),
        (lambda: MixtureHead(3, min_scale=0.0), "min_scale needs to be a positive number; got 0.0"),
        (lambda: ScoreHead(activation="relu"), "unknown activation 'relu'"),
        (lambda: ScoreHead(num_hidden=0), "num_hidden needs to be at least 1; got 0"),
        (lambda: ScoreHead(num_frequencies=-1), "num_frequencies needs to be at least 0; got -1"),
        (lambda: ScoreHead(max_frequency=0.0), "max_frequency needs to be a positive number"),
        (lambda: ScoreHead(min_variance=1.0), r"min_variance needs to lie in \(0, 1\); got 1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
