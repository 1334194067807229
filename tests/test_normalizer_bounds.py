# SPDX-License-Identifier: Apache-2.0
"""Bounds of log Z from both sides, against closed forms and quadrature."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorejax.density.annealed_importance import (
    hamiltonian_annealing,
    importance_normalizer,
    make_hamiltonian_transition,
    tuned_step_sizes,
)
from scorejax.density.annealing_path import geometric_path, sigmoid_betas
from scorejax.density.bidirectional import (
    bidirectional_normalizer,
    confidence_interval,
    sandwich,
    verdict,
    walk,
)
from scorejax.numerics import gaussian_log_prob
from scorejax.random import row_keys
from tests.compilation import optimised_jit
from tests.slow import deep_where

RNG = jax.random.key(0)
NUM = 1000
# Two modes at +-3 (1, 1), of width .5; p~ = exp(2) times their density.
MEAN, STD, SHARE, LOG_Z = 3.0, 0.5, 0.3, 2.0


def mixture(x):
    left, right = gaussian_log_prob(x + MEAN, STD), gaussian_log_prob(x - MEAN, STD)
    return LOG_Z + jnp.logaddexp(math.log(SHARE) + left, math.log(1 - SHARE) + right)


def mixture_draws(rng, num, share):
    """Draws with a `share` in the left mode; of the mixture, for that of its own."""
    mode_rng, noise_rng = jax.random.split(rng)
    left = jax.random.bernoulli(mode_rng, share, (num, 1))
    return jnp.where(left, -MEAN, MEAN) + STD * jax.random.normal(noise_rng, (num, 2))


RADIUS, WIDTHS = (1.0, 2.5), (0.1, 0.2)


def rings(x):
    r = jnp.sqrt(jnp.sum(x**2, axis=1) + 1e-12)
    return jnp.logaddexp(
        *(-((r - a) ** 2) / (2 * s**2) for a, s in zip(RADIUS, WIDTHS, strict=True))
    )


def rings_by_quadrature():
    """log Z of two rings, and radii of draws of them, by the trapezoidal rule over the radius."""
    r = np.linspace(0, 6, 60_001)
    density = 2 * np.pi * r * sum(
        np.exp(-((r - a) ** 2) / (2 * s**2)) for a, s in zip(RADIUS, WIDTHS, strict=True)
    )  # fmt: skip
    cumulative = np.cumsum((density[1:] + density[:-1]) / 2) * (r[1] - r[0])
    return math.log(cumulative[-1]), r[1:], cumulative / cumulative[-1]


def ring_draws(rng, num):
    _, r, cumulative = rings_by_quadrature()
    level, turn = jax.random.uniform(rng, (2, num))
    radius = jnp.interp(level, jnp.asarray(cumulative), jnp.asarray(r))
    return radius[:, None] * jnp.stack(
        [jnp.cos(turn * 2 * math.pi), jnp.sin(turn * 2 * math.pi)], 1
    )


def bounds(rng, log_prob, draws, *, num_betas, base_mean=0.0, base_std=4.0):
    """Bounds by NUM walks each way from N(base_mean, base_std^2 I), two-dimensional."""
    base = lambda x: gaussian_log_prob((x - base_mean) / base_std, 1.0) - 2 * jnp.log(base_std)
    path = geometric_path(base, log_prob, sigmoid_betas(num_betas))
    base_draws = lambda rng, num: base_mean + base_std * jax.random.normal(rng, (num, 2))
    options = {"num_steps": 3, "jitter": 0.5}
    tune, tune_start, start, back_start, there, back = jax.random.split(rng, 6)
    sizes = tuned_step_sizes(tune, path, base_draws(tune_start, 100), num_steps=3, target=0.9)
    return bidirectional_normalizer(
        row_keys(there, NUM), row_keys(back, NUM), path, base_draws(start, NUM),
        draws(back_start, NUM), step_sizes=sizes, **options,
    )  # fmt: skip


@functools.partial(jax.jit, static_argnames="num_betas")
def mixture_bounds(rng, share, base_mean, base_std, *, num_betas):
    """Bounds of the mixture's log Z, by walks back from draws with a `share` in the left mode."""
    draws = lambda rng, num: mixture_draws(rng, num, share)
    options = {"num_betas": num_betas, "base_mean": base_mean, "base_std": base_std}
    return bounds(rng, mixture, draws, **options)


def from_a_wide_base(share):
    return mixture_bounds(RNG, share, 0.0, 4.0, num_betas=200)


def from_the_left_mode(share):
    """In too few temperatures to find the other."""
    return mixture_bounds(RNG, share, -MEAN, 0.8, num_betas=20)


@pytest.mark.parametrize("name", deep_where(lambda name: name == "rings", ["mixture", "rings"]))
def test_the_bounds_meet_at_the_normaliser(name):
    if name == "mixture":
        expected, found = LOG_Z, from_a_wide_base(SHARE)
    else:
        expected = rings_by_quadrature()[0]
        found = jax.jit(lambda rng: bounds(rng, rings, ring_draws, num_betas=200, base_std=2.0))(
            RNG
        )
    # Four standard errors, which at such effective sizes are themselves right to 10 %.
    assert min(found.lower_effective_size, found.upper_effective_size) > 200
    assert abs(found.lower - expected) < 4 * found.lower_error
    assert abs(found.upper - expected) < 4 * found.upper_error
    assert found.met
    assert "meet within 0.2, if the starts" in verdict(found)
    interval = confidence_interval(found)
    assert interval.low < expected < interval.high


@pytest.mark.deep
def test_bounds_fail_as_rarely_as_stated():
    # p~ = exp(-(x - 2)^2 / 2) from N(0, 1) in three steps, 20 walks by leapfrogs of two steps of
    # random length: far from equilibrium, so that weights vary by orders of magnitude (like those
    # of walks that stand still, exp(2 x), they have all moments). 2000 repetitions: the means of w
    # and of w_back are Z and 1 / Z, bounds are on their sides of log Z on average, and beyond by b
    # in a share e^-b at most (plus four standard errors of a share of 2000).
    shift, num, repeats = 2.0, 20, 2000
    log_z = math.log(2 * math.pi) / 2
    log_prob = lambda x: -((x[:, 0] - shift) ** 2) / 2
    path = geometric_path(lambda x: gaussian_log_prob(x, 1.0), log_prob, sigmoid_betas(4))
    sizes = jnp.full(4, 0.3)

    @jax.jit
    def run(rng):
        starts = jax.random.normal(jax.random.fold_in(rng, 1), (2, num * repeats, 1))
        keys = row_keys(rng, num * repeats), row_keys(jax.random.fold_in(rng, 2), num * repeats)
        options = {"num_steps": 2, "jitter": 0.5, "chunk": 4000}
        there = walk(keys[0], path, starts[0], step_sizes=sizes, **options)
        back = walk(
            keys[1], path.reversed(), starts[1] + shift, step_sizes=sizes[::-1],
            **options,
        )  # fmt: skip
        rows = lambda walks: walks.log_weights.reshape(repeats, num)
        return rows(there), rows(back), jax.vmap(sandwich)(rows(there), rows(back))

    there, back, found = run(RNG)
    for log_weights, expected in ((there, log_z), (back, -log_z)):
        weights = np.exp(np.asarray(log_weights, np.float64).ravel() - expected)
        assert abs(weights.mean() - 1) < 4 * weights.std() / math.sqrt(num * repeats)
        assert weights.std() > 1
    excess = {"lower": found.lower - log_z, "upper": log_z - found.upper}
    interval = confidence_interval(found, level=0.6)  # each end fails in a fifth at most
    assert np.mean((interval.low > log_z) | (interval.high < log_z)) < 0.4
    for value in excess.values():
        value = np.asarray(value)
        assert value.mean() < -4 * value.std() / math.sqrt(repeats)  # a strict bound here
        for b in (0.25, 0.5, 1.0):
            assert np.mean(value > b) < math.exp(-b) + 4 * math.sqrt(0.25 / repeats)


def test_standard_errors_are_those_of_repetitions():
    # Log-normal weights of width s: log mean w over 1000 draws has the error sqrt((e^{s^2} - 1) /
    # 1000) and the mean -e^{s^2 - 1} / 2000. 300 repetitions: the mean square of standardised
    # errors is one to four of its errors, sqrt(2 / 300).
    s, log_z = 0.8, 3.0
    draw = np.random.default_rng(0).normal(size=(2, 300, 1000))
    log_weights = log_z - s**2 / 2 + s * draw[0]
    back_log_weights = -log_z - s**2 / 2 + s * draw[1]
    found = jax.vmap(sandwich)(jnp.asarray(log_weights), jnp.asarray(back_log_weights))
    for bound, error in ((found.lower, found.lower_error), (found.upper, found.upper_error)):
        off = (np.asarray(bound) - log_z) / np.asarray(error)
        assert abs(np.mean(off**2) - 1) < 4 * math.sqrt(2 / 300)
    size = 1000 / math.exp(s**2)
    np.testing.assert_allclose(np.mean(found.lower_effective_size), size, rtol=0.02)


def test_bounds_that_a_missed_mode_keeps_apart_do_not_meet():
    # The lower bound is that of the mode, log 0.3 short. Exact draws are in both modes, and the
    # bound of walks back from them the truth.
    found = from_the_left_mode(SHARE)
    assert abs(found.lower - (LOG_Z + math.log(SHARE))) < 4 * found.lower_error
    assert abs(found.upper - LOG_Z) < 4 * found.upper_error
    assert not found.met
    assert "do not meet" in verdict(found)
    interval = confidence_interval(found)
    assert interval.low < LOG_Z < interval.high


def test_draws_of_one_mode_make_the_bounds_meet_at_the_wrong_number():
    # The limit of the method, as its docstring says: nothing has seen the mode of share .7.
    found = from_the_left_mode(1.0)
    wrong = LOG_Z + math.log(SHARE)
    assert abs(found.lower - wrong) < 4 * found.lower_error
    assert abs(found.upper - wrong) < 4 * found.upper_error
    assert found.met


def test_draws_of_another_density_are_noticed_where_they_put_the_bounds_upside_down():
    # Walks back from a density q weigh E q(x_k) / p(x_k) / Z on average, over the ends x_k of walks
    # there, unweighted. Between .4 and .6 of those end in the left mode, so that draws of it alone
    # put the upper bound .3 to .7 too low.
    found = from_a_wide_base(1.0)
    assert abs(found.lower - LOG_Z) < 4 * found.lower_error
    assert LOG_Z - 0.8 < found.upper < LOG_Z - 0.2
    assert not found.met
    assert "only the lower bound holds" in verdict(found)


def test_too_few_walks_are_told_from_bounds_that_do_not_meet():
    log_weights = np.random.default_rng(0).normal(size=(2, 20))
    found = sandwich(*jnp.asarray(log_weights), tolerance=0.6)
    assert not found.met
    assert "too few walks, or too few temperatures, for 0.6 nats" in verdict(found)
    nothing = sandwich(jnp.full(5, -jnp.inf), jnp.zeros(5))
    assert not nothing.met
    assert verdict(nothing).startswith("log Z is not known")


def test_chunks_change_no_walk():
    path = geometric_path(lambda x: gaussian_log_prob(x, 4.0), mixture, sigmoid_betas(5))
    x, keys, sizes = 4 * jax.random.normal(RNG, (6, 2)), row_keys(RNG, 6), jnp.full(5, 0.5)
    run = lambda chunk: walk(keys, path, x, step_sizes=sizes, num_steps=2, chunk=chunk)
    whole, chunks = run(None), run(2)
    # The draws are the same bits. Logarithms of 6 rows are rounded otherwise than those of 2: 50
    # units of the last digit, where other draws would change every digit.
    for one, other in zip(chunks, whole, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="chunk needs to divide 6 walks; got 4"):
        run(4)


def test_impossible_tolerances_and_levels_are_refused():
    with pytest.raises(ValueError, match="tolerance needs to be positive, in nats; got 0"):
        sandwich(jnp.zeros(3), jnp.zeros(3), tolerance=0.0)
    with pytest.raises(ValueError, match=r"jitter needs to lie in \[0, 1\); got 1"):
        make_hamiltonian_transition(jnp.ones(3), num_steps=2, jitter=1.0)
    with pytest.raises(ValueError, match="level needs to lie between 0 and 1; got 1"):
        confidence_interval(sandwich(jnp.zeros(3), jnp.zeros(3)), level=1.0)


def blackjax_log_z(rng, log_prob, *, dim, base_std, num=2000):
    """log Z by blackjax's adaptive tempered SMC from N(0, base_std^2 I)."""
    blackjax = pytest.importorskip("blackjax", minversion="1.7.1")  # before, it may stall (#914)
    from blackjax.smc import extend_params, resampling

    base = lambda x: gaussian_log_prob(x[None], base_std)[0]
    kernel = blackjax.hmc.build_kernel()
    smc = blackjax.adaptive_tempered_smc(
        base, lambda x: log_prob(x[None])[0] - base(x), kernel, blackjax.hmc.init,
        extend_params({
            "step_size": 0.2, "inverse_mass_matrix": jnp.ones(dim), "num_integration_steps": 5,
        }),
        resampling.systematic, target_ess=0.9, num_mcmc_steps=5,
    )  # fmt: skip
    start_rng, rng = jax.random.split(rng)
    state, step, log_z = smc.init(base_std * jax.random.normal(start_rng, (num, dim))), 0, 0.0
    move = jax.jit(smc.step)
    while state.tempering_param < 1:
        assert step < 200
        state, info = move(jax.random.fold_in(rng, step), state)
        log_z, step = log_z + float(info.log_likelihood_increment), step + 1
    return log_z


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rings", "ten dimensions"])
def test_blackjax_finds_the_same_normaliser(name):
    pytest.importorskip("blackjax", minversion="1.7.1")
    wide = lambda x: (
        math.log(5)
        + jnp.logaddexp(
            math.log(0.3) + gaussian_log_prob(x + 1, 0.5),
            math.log(0.7) + gaussian_log_prob(x - 1, 0.5),
        )
    )
    if name == "rings":
        log_prob, dim, base_std, expected = rings, 2, 2.0, rings_by_quadrature()[0]
    else:
        log_prob, dim, base_std, expected = wide, 10, 1.5, math.log(5)
    base = lambda x: gaussian_log_prob(x, base_std)
    path = geometric_path(base, log_prob, sigmoid_betas(200))
    draw = lambda rng: base_std * jax.random.normal(rng, (2000, dim))
    run = optimised_jit(lambda rng: hamiltonian_annealing(rng, path, draw).log_weights)
    ours = importance_normalizer(run(RNG))
    theirs = [
        blackjax_log_z(key, log_prob, dim=dim, base_std=base_std)
        for key in jax.random.split(RNG, 3)
    ]
    assert abs(ours.log_z - expected) < 4 * ours.standard_error
    # Their estimates spread by .05: four errors of a mean of three.
    assert np.abs(np.mean(theirs) - expected) < 4 * 0.05 / math.sqrt(3)
