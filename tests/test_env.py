# SPDX-License-Identifier: Apache-2.0
"""Environments against gymnasium's own steps, laws in closed form, and the promises they make."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from scorejax.random import row_keys
from scorejax.rl import env as rl_env
from scorejax.rl.env import Env, Transitioned, get_env, vectorize


def countdown(horizon=5, lethal_at=100) -> Env:
    """Observes (a number drawn for the episode, steps taken); terminates after `lethal_at`."""

    def reset(rng):
        state = jnp.stack([jax.random.uniform(rng), 0.0])
        return state, state

    def step(rng, state, action):
        state = state + jnp.array([0.0, 1.0])
        return Transitioned(state, state, jnp.ones(()), state[1] >= lethal_at)

    return Env("countdown", reset, step, horizon, 2, -np.ones(1), np.ones(1))


@pytest.mark.parametrize("name", ["pendulum", "mountain_car"])
def test_classic_tasks_are_those_of_gymnasium(golden, name):
    episode = {k.removeprefix(f"{name}_"): v for k, v in golden("classic_control").items()}
    env = get_env(name)

    @jax.jit
    def play(state, actions):
        def step(state, action):
            stepped = env.step(jax.random.key(0), state, action)
            return stepped.state, stepped[1:]

        return jax.lax.scan(step, state, actions)[1]

    start = jnp.asarray(episode["start"], jnp.float32)
    obs, reward, terminated = play(start, jnp.asarray(episode["actions"], jnp.float32)[:, None])
    # Single precision here, gymnasium's state in double for the pendulum: differences of 1e-7 a
    # step grow along the swings, to 3e-5 of velocities up to 8.
    np.testing.assert_allclose(obs, episode["observations"], rtol=0, atol=1e-4)
    # gymnasium charges the mountain car for the push as asked, which lies in the box here.
    np.testing.assert_allclose(reward, episode["rewards"], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(terminated, episode["terminated"])
    assert terminated.any() == (name == "mountain_car")


def test_in_double_precision_the_pendulum_is_gymnasiums_to_the_last_digits_it_reports(golden, x64):
    episode = {k.removeprefix("pendulum_"): v for k, v in golden("classic_control").items()}
    env = rl_env.pendulum()
    step = lambda state, action: env.step(jax.random.key(0), state, action)[:3]
    scan = jax.jit(lambda s, a: jax.lax.scan(lambda s, a: (step(s, a)[0], step(s, a)), s, a)[1])
    _, obs, reward = scan(jnp.asarray(episode["start"]), jnp.asarray(episode["actions"])[:, None])
    np.testing.assert_allclose(obs, episode["observations"], rtol=2e-7, atol=1e-7)  # in float32
    np.testing.assert_allclose(reward, episode["rewards"], rtol=1e-10)


def test_resets_are_where_they_should_be():
    keys = row_keys(jax.random.key(0), 2000)
    angle, velocity = jax.jit(jax.vmap(rl_env.pendulum().reset))(keys)[0].T
    position = jax.jit(jax.vmap(rl_env.mountain_car().reset))(keys)[0][:, 0]
    uniforms = [(angle, -np.pi, 2 * np.pi), (velocity, -1, 2), (position, -0.6, 0.2)]
    for values, low, width in uniforms:  # each fails by chance with probability 1e-4
        assert scipy.stats.kstest(values, "uniform", (low, width)).pvalue > 1e-4


def test_the_point_mass_is_the_linear_system_that_it_is():
    dt, noise = 0.1, 0.3
    A = np.block([[np.eye(2), dt * np.eye(2)], [np.zeros((2, 2)), np.eye(2)]])
    B = np.concatenate([np.zeros((2, 2)), dt * np.eye(2)])
    costs = {"state_cost": np.diag([1, 1, 0.1, 0.1]), "action_cost": 0.01}
    general = rl_env.linear_gaussian(A, B, noise**2 * np.eye(4), max_action=1.0, **costs)
    point = rl_env.point_mass(dt=dt, noise=noise)
    state, action = jnp.array([0.3, -0.7, 1.1, 0.2]), jnp.array([0.4, -3.0])  # one is clipped
    ours, theirs = (jax.jit(env.step)(jax.random.key(1), state, action) for env in (point, general))
    # Rounding of a few products; the root of a multiple of the identity is diagonal.
    np.testing.assert_allclose(ours.reward, theirs.reward, rtol=1e-6)
    np.testing.assert_allclose(ours.state, theirs.state, rtol=1e-5, atol=1e-6)


def test_a_linear_system_moves_by_its_law():
    A, B = np.array([[0.9, 0.2], [0.0, 0.7]]), np.array([[0.0], [0.5]])
    Sigma = np.array([[0.5, 0.3], [0.3, 0.4]])
    env = rl_env.linear_gaussian(A, B, Sigma, cross_cost=0.5, action_cost=2.0)
    state, action = jnp.array([1.0, -2.0]), jnp.array([3.0])
    keys = row_keys(jax.random.key(0), 4000)
    stepped = jax.jit(jax.vmap(env.step, (0, None, None)))(keys, state, action)
    # x.x + 2 * 0.5 (x_1 + x_2) u + 2 u^2
    assert float(stepped.reward[0]) == pytest.approx(-(5 - 3 + 18), rel=1e-6)
    mean = A @ np.array([1.0, -2.0]) + B @ np.array([3.0])
    residual = np.asarray(stepped.state) - mean
    distance = np.einsum("ni,ij,nj->n", residual, np.linalg.inv(Sigma), residual)
    # Squared distances are chi-square of 2 degrees, means Gaussian: by chance one in 10,000.
    assert scipy.stats.kstest(distance, "chi2", (2,)).pvalue > 1e-4
    z = residual.mean(0) / np.sqrt(np.diag(Sigma) / len(keys))
    assert np.abs(z).max() < 4.5
    assert abs(np.corrcoef(residual.T)[0, 1] - 0.3 / np.sqrt(0.2)) < 4 * (1 - 0.45) / np.sqrt(4000)


def test_singular_noise_is_allowed_and_a_negative_variance_is_not():
    A = np.eye(2)
    env = rl_env.linear_gaussian(A, A, np.ones((2, 2)))
    noise = jax.jit(env.step)(jax.random.key(0), jnp.zeros(2), jnp.zeros(2)).state
    assert abs(noise[0] - noise[1]) < 1e-6 < abs(noise[0])
    with pytest.raises(ValueError, match="Sigma needs eigenvalues of at least 0; got -1"):
        rl_env.linear_gaussian(A, A, -A)


def test_a_table_moves_by_its_law():
    P = np.random.default_rng(0).dirichlet(np.ones(3), (3, 2))
    env = rl_env.tabular(P, np.array([0.2, 0.5, 0.3]), rewards=np.arange(6.0).reshape(3, 2))
    keys = row_keys(jax.random.key(0), 4000)
    first = np.bincount(jax.jit(jax.vmap(env.reset))(keys)[0], minlength=3)
    action = jnp.array([0.1, 0.8])  # the second
    stepped = jax.jit(jax.vmap(env.step, (0, None, None)))(keys, jnp.int32(2), action)
    after = np.bincount(stepped.state, minlength=3)
    for counts, law in [(first, [0.2, 0.5, 0.3]), (after, P[2, 1])]:  # by chance one in 10,000
        assert scipy.stats.chisquare(counts, 4000 * np.asarray(law)).pvalue > 1e-4
    assert set(np.asarray(stepped.reward)) == {5.0}
    np.testing.assert_array_equal(np.argmax(stepped.obs, axis=1), stepped.state)


def test_a_point_mass_starts_in_the_rows_that_are_given():
    starts = np.arange(12.0).reshape(3, 4)
    reset = jax.jit(jax.vmap(rl_env.point_mass(starts=starts).reset))
    counts = np.bincount(reset(row_keys(jax.random.key(0), 300))[0][:, 0].astype(int) // 4)
    assert scipy.stats.chisquare(counts).pvalue > 1e-4


def test_a_wall_stops_the_component_that_runs_into_it():
    mass = rl_env.point_mass(dt=0.5, max_place=1.0, starts=[[0.9, 0.5, 1.0, -1.0]])
    state, _ = mass.reset(jax.random.key(0))
    moved = mass.step(jax.random.key(0), state, jnp.array([1.0, 0.0]))
    np.testing.assert_allclose(moved.obs, [1.0, 0.0, 0.0, -1.0], atol=1e-7)
    back = mass.step(jax.random.key(0), moved.state, jnp.array([-1.0, 0.0]))
    np.testing.assert_allclose(back.obs, [1.0, -0.5, -0.5, -1.0], atol=1e-7)
    assert not moved.terminated and not back.terminated


@pytest.mark.parametrize(("lethal_at", "ends"), [(100, "truncated"), (5, "terminated")])
def test_a_time_limit_is_no_death_and_an_end_begins_anew(lethal_at, ends):
    vector = vectorize(countdown(horizon=5, lethal_at=lethal_at), 3)
    state, obs = jax.jit(vector.reset)(jax.random.key(0))
    step = jax.jit(vector.step)
    for t in range(1, 11):
        before = obs
        state, obs, next_obs, _, terminated, truncated, start = step(
            jax.random.key(t), state, jnp.zeros((3, 1))
        )
        assert start is None
        ended = t % 5 == 0
        # Both at once is an end for good: the lethal step is the last that the limit allows.
        assert terminated.all() == (ended and ends == "terminated") == terminated.any()
        assert truncated.all() == (ended and ends == "truncated") == truncated.any()
        np.testing.assert_array_equal(next_obs, before + jnp.array([[0.0, 1.0]]))
        if ended:
            assert not (obs[:, 0] == next_obs[:, 0]).any() and not obs[:, 1].any()
            assert len(set(np.asarray(obs[:, 0]))) == 3
        else:
            np.testing.assert_array_equal(obs, next_obs)


def test_with_a_clock_the_horizon_is_seen_and_is_an_end():
    vector = vectorize(rl_env.with_clock(countdown(horizon=4)), 3)
    state, obs = jax.jit(vector.reset)(jax.random.key(0))
    step = jax.jit(vector.step)
    for t in range(1, 9):
        np.testing.assert_array_equal(obs[:, 2], (t - 1) % 4 / 4)
        state, obs, next_obs, _, terminated, truncated, _ = step(
            jax.random.key(t), state, jnp.zeros((3, 1))
        )
        np.testing.assert_array_equal(next_obs[:, 2], ((t - 1) % 4 + 1) / 4)
        assert terminated.all() == (t % 4 == 0) == terminated.any() and not truncated.any()
    assert vector.observation_dim == 3


def test_a_row_follows_from_its_own_key():
    keys = row_keys(jax.random.key(0), 4)
    noisy = rl_env.point_mass(noise=0.1, horizon=1)
    results = []
    for rows in (slice(0, 4), slice(1, 2)):
        vector = vectorize(noisy, len(keys[rows]))
        state, obs = jax.jit(vector.reset)(keys[rows])
        results.append(jax.jit(vector.step)(keys[rows], state, obs[:, :2]))
    np.testing.assert_array_equal(results[0].next_obs[1:2], results[1].next_obs)
    np.testing.assert_array_equal(results[0].obs[1:2], results[1].obs)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("pendulums", {}, "unknown environment 'pendulums': did you mean 'pendulum'?"),
        ("pendulum", {"horizn": 3}, "did you mean 'horizon'?"),
        ("pendulum", {"horizon": 0}, "horizon needs a whole number of at least 1; got 0"),
        ("tabular", {}, "the environment 'tabular' lacks an option: missing a required argument"),
        ("point_mass", {"dt": 0.0}, "dt > 0"),
        ("point_mass", {"max_action": (1.0, -1.0)}, "max_action needs 1 or 2 positive, finite"),
        ("point_mass", {"starts": np.zeros((3, 2))}, r"rows \(x, v\) of 4 numbers"),
        ("linear_gaussian", {"A": 1, "B": np.eye(2), "Sigma": np.eye(2)}, "A needs the shape"),
        ("tabular", {"P": np.ones((2, 1, 2)), "p0": np.ones(2) / 2}, "P needs rows of prob"),
        ("tabular", {"P": np.ones((1, 1, 1)), "p0": np.ones(2) / 2}, "p0 needs the shape"),
    ],
)
def test_bad_input_is_one_line(name, options, message):
    with pytest.raises(ValueError, match=message) as error:
        get_env(name, **options)
    assert "\n" not in str(error.value)
