# SPDX-License-Identifier: Apache-2.0
"""The adaptive solver against closed forms; and that whatever does not get there says so, soon."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback

from scorejax import ode

EPS = float(jnp.finfo(jnp.float32).eps)
CUTS = jnp.linspace(0.01, 0.99, 99)


def solve(drift_fn, start, t_from=0.0, t_to=1.0, **options):
    options = {"first_step": 1e-2, "rtol": 1e-5, "atol": 1e-5, "max_steps": 4096} | options
    return ode.dormand_prince(drift_fn, start, t_from, t_to, **options)


@pytest.mark.parametrize("t_from, t_to", [(0.2, 1.0), (1.0, 0.2)])
def test_a_pair_of_states_follows_its_closed_form_either_way(x64, t_from, t_to):
    # d(x, q) / dt = (-2 t x, t): x = x_0 exp(t_0^2 - t^2), q = (t^2 - t_0^2) / 2.
    drift_fn = lambda state, t: (-2 * t * state[0], t * jnp.ones_like(state[1]))
    x = jnp.array([1.0, -2.0, 0.5])
    solved = solve(drift_fn, (x, jnp.zeros(())), t_from, t_to, rtol=1e-10, atol=1e-10)
    # Some 100 steps of at most 1e-10 (1 + |x|) each, and the flow stretches them by exp(0.96).
    np.testing.assert_allclose(solved.state[0], x * np.exp(t_from**2 - t_to**2), atol=1e-7)
    np.testing.assert_allclose(solved.state[1], (t_to**2 - t_from**2) / 2, atol=1e-7)
    assert solved.success


def test_nfe_counts_every_call_and_steps_the_rejected_ones_too():
    calls = []

    def count(t):
        calls.append(float(t))
        return t

    def drift_fn(x, t):
        t = io_callback(count, jax.ShapeDtypeStruct((), x.dtype), t)
        # The jump is not seen before a step crosses it, and that one is rejected.
        return jnp.where(t > 0.5, 10.0, -1.0) * x

    solved = solve(drift_fn, jnp.ones(2))
    assert int(solved.nfe) == len(calls) == 1 + 6 * int(solved.steps)
    times = np.array(calls[1:]).reshape(-1, 6)
    # The last two stages of a step are at its end: where it goes back, the step was rejected.
    assert (np.diff(times[:, -1]) < 0).any()


def test_no_way_at_all_returns_the_start():
    solved = solve(lambda x, t: x, jnp.array([1.0, 2.0]), 0.5, 0.5)
    np.testing.assert_array_equal(solved.state, [1.0, 2.0])
    assert solved.success and solved.steps == 0


def test_the_state_keeps_its_precision(x64):
    assert solve(lambda x, t: -x, jnp.ones(2, jnp.float32)).state.dtype == jnp.float32


@pytest.mark.deep
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
@pytest.mark.parametrize("t_from, t_to", [(0.0, 1.0), (1.0, 0.0)])
def test_a_drift_that_is_not_finite_from_some_time_on_ends_the_solve_soon(bad, t_from, t_to):
    def solved(cut):
        drift_fn = lambda x, t: jnp.where((t > cut) == (t_to > t_from), bad, -x)
        return solve(drift_fn, jnp.ones(3), t_from, t_to)

    solved = jax.jit(jax.vmap(solved))(CUTS)
    assert not solved.success.any() and np.isnan(solved.state).all()
    # Twice the 75 that were measured: each step towards the cut is followed by some rejections.
    assert solved.steps.max() < 150


@pytest.mark.deep
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_step_of_just_the_smallest_size_is_not_let_pass_for_ever(bad):
    # The first rejection takes 5 EPS to just EPS, which diffrax's dtmin = EPS would keep for ever.
    solved = solve(lambda x, t: jnp.full_like(x, bad), jnp.ones(3), first_step=5 * EPS)
    assert not solved.success and np.isnan(solved.state).all() and solved.steps < 10


def test_one_part_that_is_not_finite_spoils_the_other():
    drift_fn = lambda state, t: (-state[0], jnp.where(t > 0.5, jnp.nan, t))
    solved = solve(drift_fn, (jnp.ones(3), jnp.zeros(())))
    assert not solved.success
    assert all(np.isnan(leaf).all() for leaf in solved.state)


@pytest.mark.deep
def test_a_pole_is_not_walked_across():
    # The integral of 1 / (cut - t) does not exist; the values on either side are finite.
    solved = jax.vmap(lambda cut: solve(lambda x, t: 0 * x + 1 / (cut - t), jnp.ones(1)))(CUTS)
    assert not solved.success.any() and np.isnan(solved.state).all()


def test_a_trial_step_that_overflows_is_shortened():
    # dx/dt = -x^3 from 100: x = 1 / sqrt(x_0^-2 + 2 t). The first trials reach infinity.
    solved = solve(lambda x, t: -(x**3), jnp.full(1, 100.0), first_step=1.0)
    # Ten times the tolerance, as the flow contracts.
    np.testing.assert_allclose(solved.state, 1 / np.sqrt(1e-4 + 2), atol=1e-4)
    assert solved.success


@pytest.mark.deep
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_start_that_is_not_finite_fails_alone(bad):
    start = jnp.ones((3, 2)).at[1, 0].set(bad)
    solved = jax.vmap(lambda x: solve(lambda x, t: -x, x))(start)
    np.testing.assert_array_equal(solved.success, [True, False, True])
    np.testing.assert_array_equal(np.isnan(solved.state).all(axis=1), [False, True, False])
    assert solved.steps.max() < 50


@pytest.mark.deep
def test_too_few_steps_are_a_failure():
    enough = solve(lambda x, t: -x, jnp.ones(2)).steps
    assert solve(lambda x, t: -x, jnp.ones(2), max_steps=int(enough)).success
    cut = solve(lambda x, t: -x, jnp.ones(2), max_steps=int(enough) - 1)
    assert not cut.success and np.isnan(cut.state).all()


def test_the_norm_is_what_the_tolerance_bounds():
    # A hundredfold norm asks for a hundredth of the error, so for more steps.
    scaled = lambda state: 100 * ode.root_mean_square(state)
    drift_fn = lambda x, t: jnp.cos(20 * t) * x
    assert solve(drift_fn, jnp.ones(2), norm=scaled).steps > solve(drift_fn, jnp.ones(2)).steps
