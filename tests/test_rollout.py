# SPDX-License-Identifier: Apache-2.0
"""Batches that a policy makes, and the episodes that judge it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import scipy.stats
from test_env import countdown

from scorejax.random import row_keys
from scorejax.rl.env import pendulum, point_mass, tabular, vectorize
from scorejax.rl.rollout import make_source, random_policy, rollouts
from scorejax.train import parallel
from scorejax.train.state import TrainState
from scorejax.train.step import scan_online_steps
from tests.trees import assert_equal


def constant(params, rng, obs):
    """The policy that does params, whatever it sees."""
    return jnp.broadcast_to(params, (len(obs), *params.shape))


def state_of(params) -> TrainState:
    return TrainState.create(jnp.asarray(params), {}, optax.sgd(0.1))


def noisy_feedback(rng, obs):
    noise = jax.vmap(lambda key: jax.random.normal(key, (2,)))(rng)
    return -obs[:, :2] + 0.1 * noise


@pytest.mark.parametrize("lethal_at", [3, 100])
def test_episodes_end_where_they_end(lethal_at):
    env = countdown(horizon=5, lethal_at=lethal_at)
    episodes = jax.jit(lambda rng: rollouts(rng, env, lambda rng, obs: obs[:, 1:] / 10, 4))(
        jax.random.key(0)
    )
    length = min(lethal_at, 5)
    assert (episodes.length == length).all()
    steps = np.minimum(np.arange(6), length)
    np.testing.assert_array_equal(episodes.observations[..., 1], np.tile(steps, (4, 1)))
    assert (episodes.observations[..., 0] == episodes.observations[:, :1, 0]).all()
    before = np.arange(5) < length
    actions = np.where(before, np.arange(5, dtype=np.float32) / 10, 0)
    np.testing.assert_array_equal(episodes.actions[..., 0], np.tile(actions, (4, 1)))
    np.testing.assert_array_equal(episodes.rewards, np.tile(1.0 * before, (4, 1)))
    np.testing.assert_array_equal(episodes.returns, np.full(4, length))
    at_end = (np.arange(5) == length - 1) & (lethal_at == 3)
    np.testing.assert_array_equal(episodes.terminated, np.tile(at_end, (4, 1)))


def test_an_episode_follows_from_its_own_key_and_from_its_recorded_actions():
    env, keys = point_mass(horizon=6), row_keys(jax.random.key(0), 5)
    play = jax.jit(lambda rng: rollouts(rng, env, noisy_feedback, len(rng)))
    five, two = play(keys), play(keys[1:3])
    assert_equal(jax.tree.map(lambda leaf: leaf[1:3], five), two)
    # Without noise the environment is a function of state and action: the records fit together.
    x, v, a = five.observations[..., :2], five.observations[..., 2:], five.actions
    np.testing.assert_allclose(x[:, 1:], x[:, :-1] + 0.05 * v[:, :-1], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(v[:, 1:], v[:, :-1] + 0.05 * a, rtol=1e-6, atol=1e-7)
    assert np.abs(a).max() <= 1  # clipped to the box, and recorded as clipped


def test_states_at_geometric_times_have_the_discounted_occupancy():
    rng, gamma, num = np.random.default_rng(0), 0.8, 6000
    P, p0 = rng.dirichlet(0.5 * np.ones(4), (4, 2)), rng.dirichlet(np.ones(4))
    law = rng.dirichlet(np.ones(2), 4)
    under_policy = np.einsum("sa,sat->st", law, P)
    occupancy = (1 - gamma) * np.linalg.solve(np.eye(4) - gamma * under_policy.T, p0)

    def policy(rngs, obs):
        logits = jnp.log(jnp.asarray(law, obs.dtype))[jnp.argmax(obs, axis=1)]
        return jax.nn.one_hot(jax.vmap(jax.random.categorical)(rngs, logits), 2)

    env = tabular(P, p0, horizon=60)  # P(time > 60) = 0.8^61 = 1e-6
    play = jax.jit(lambda rng: rollouts(rng, env, policy, num).observations)
    time = np.minimum(rng.geometric(1 - gamma, num) - 1, 60)
    visits = np.asarray(play(jax.random.key(0)))[np.arange(num), time].sum(0)
    assert scipy.stats.chisquare(visits, num * occupancy).pvalue > 1e-4  # by chance 1 in 10,000


def source_batch(env, **options):
    """The first batch, 4,000 rows, from 8 environments and 8,000 random steps before it."""
    defaults = {"capacity_per_env": 1001, "batch_size": 4000, "num_random": 8000}
    source = make_source(vectorize(env, 8), constant, **defaults | options)
    state = state_of(np.zeros(env.action_dim, np.float32))
    make = lambda rng: source.step(source.init(rng, state), state, jax.random.key(1))
    return jax.jit(make)(jax.random.key(0))[1]


def value(batch, gamma=0.9):
    """The value of state 0 by tabular iteration on the transitions of a batch."""
    alive = ~np.asarray(batch["terminated"])
    state, after = (np.argmax(batch[name], axis=1) for name in ("obs", "next_obs"))
    values = np.zeros(batch["obs"].shape[1])
    for _ in range(400):  # 0.9^400 = 5e-19
        target = np.asarray(batch["reward"], float) + gamma * alive * values[after]
        values = np.bincount(state, target, len(values)) / np.maximum(np.bincount(state), 1)
    return values[0]


@pytest.mark.deep
def test_death_ends_the_return_and_a_time_limit_does_not():
    delta = 0.2
    dying = tabular(
        [[[1 - delta, delta]], [[0, 1]]], [1, 0], rewards=[[1], [0]], terminal=[0, 1], horizon=50
    )
    batch = source_batch(dying)
    deaths = float(np.mean(batch["next_obs"][:, 1]))  # counted without the flag
    # 4,000 draws of 8,000 transitions, binomial each: by chance 6 in 100,000.
    assert abs(deaths - delta) < 4 * np.sqrt(delta * (1 - delta) * (1 / 4000 + 1 / 8000))
    assert value(batch) == pytest.approx(1 / (1 - 0.9 * (1 - deaths)), rel=1e-6)
    # As many episodes end, by a limit of five steps.
    batch = source_batch(tabular(np.ones((1, 1, 1)), [1.0], rewards=[[1.0]], horizon=5))
    assert not batch["terminated"].any()
    assert value(batch) == pytest.approx(1 / (1 - 0.9), rel=1e-6)


def test_no_transition_joins_two_episodes():
    for lethal_at in (3, 100):
        batch = source_batch(countdown(horizon=4, lethal_at=lethal_at), recent=4)
        np.testing.assert_array_equal(batch["next_obs"] - batch["obs"], [[0.0, 1.0]] * 4000)
        np.testing.assert_array_equal(batch["terminated"], batch["next_obs"][:, 1] == lethal_at)
        assert len(np.unique(batch["obs"][:, 0])) > 1000
    # The last four steps of each of eight environments, in pairs.
    negatives = np.c_[batch["negatives_obs"], batch["negatives_next_obs"]]
    assert len(np.unique(negatives, axis=0)) == 32
    np.testing.assert_array_equal(negatives[:, 2:] - negatives[:, :2], [[0.0, 1.0]] * 4000)


def test_actions_are_random_first_and_then_the_policys_within_the_box():
    source = make_source(
        vectorize(countdown(), 2), constant, capacity_per_env=8, batch_size=4, num_random=7
    )
    carry = jax.jit(source.init)(jax.random.key(0), state_of([0.25]))
    assert carry.replay.size == 4  # 7 steps of two environments, rounded up
    random = np.asarray(carry.replay.data["action"][:, :4])
    assert len(np.unique(random)) == 8 and np.abs(random).max() <= 1
    step = jax.jit(source.step)
    for number, action in enumerate([0.25, -3.0]):
        carry, batch = step(carry, state_of([action]), jax.random.key(number))
        recorded = carry.replay.data["action"][:, 4 + number]
        np.testing.assert_array_equal(recorded, np.full((2, 1), max(action, -1)))
    np.testing.assert_array_equal(carry.replay.data["action"][:, :4], random)
    assert {name: leaf.shape for name, leaf in batch.items()} == {
        "obs": (4, 2), "action": (4, 1), "next_obs": (4, 2), "reward": (4,), "terminated": (4,),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("ratio", "sizes"),
    [({"steps_per_update": 3}, [3, 6, 9]), ({"updates_per_step": 2}, [1, 1, 2])],
)
def test_steps_and_updates_keep_their_ratio(ratio, sizes):
    source = make_source(
        vectorize(countdown(), 2),
        constant,
        capacity_per_env=16,
        batch_size=2,
        num_random=0,
        **ratio,
    )
    state, step, found = state_of([0.0]), jax.jit(source.step), []
    carry = jax.jit(source.init)(jax.random.key(0), state)
    for number in range(3):
        carry, _ = step(carry, state, jax.random.key(number))
        found.append(int(carry.replay.size))
    assert found == sizes


NUM_PENDULUMS = 64


@pytest.fixture(scope="module")
def pendulums():
    """A source of random torques on pendulums, its carry, and 25 steps of it on two devices."""
    vector = vectorize(pendulum(), NUM_PENDULUMS)
    sizes = {"capacity_per_env": 40, "batch_size": NUM_PENDULUMS, "num_random": 0}
    source = make_source(vector, random_policy(vector), **sizes)
    carry = jax.device_get(jax.jit(source.init)(jax.random.key(0), state_of([0.0])))
    counted = lambda s, b, r: (s.replace(step=s.step + 1), {"rows": jnp.int32(len(b["obs"]))})
    scan = scan_online_steps(counted, source.step, 25, axis_name=parallel.AXIS)
    call, rngs = parallel.map_step(scan), (jax.random.key(1), jax.random.key(2))
    return source, carry, lambda both: call(both, (), rngs)


@pytest.fixture(scope="module")
def on_two_devices(pendulums):
    """The carry after 50 steps, and what each device drew for a batch."""
    _, carry, call = pendulums
    both, _ = call((parallel.replicate(state_of([0.0])), parallel.spread(carry)))
    (_, carry), metrics = call(both)
    return parallel.gather(carry), metrics["rows"]


def test_environments_of_two_devices_differ_and_follow_the_law_of_those_of_one(
    pendulums, on_two_devices
):
    source, carry, _ = pendulums
    steps = jax.jit(scan_online_steps(lambda s, b, r: (s, {}), source.step, 50))
    (_, one), _ = steps((state_of([0.0]), carry), (), (jax.random.key(1), jax.random.key(3)))
    two, rows = on_two_devices
    assert set(np.asarray(rows)) == {NUM_PENDULUMS // 2}  # of the batch each device draws its half
    means = [np.asarray(c.replay.data["reward"]).mean(axis=1) for c in (one, two)]
    assert len(np.unique(means[1])) == NUM_PENDULUMS
    # The starts are the same, the torques are not: by chance fewer than one in 10,000.
    assert scipy.stats.mannwhitneyu(*means).pvalue > 1e-4


def test_environments_and_memory_go_on_from_a_checkpoint_bit_for_bit(
    pendulums, on_two_devices, tmp_path
):
    _, carry, call = pendulums
    (state, carry), _ = call((parallel.replicate(state_of([0.0])), parallel.spread(carry)))
    carry = parallel.gather(carry)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "carry", carry)
        checkpointer.wait_until_finished()
        carry = checkpointer.restore(tmp_path / "carry", jax.tree.map(np.empty_like, carry))
    (_, carry), _ = call((state, parallel.spread(carry)))
    assert_equal(parallel.gather(carry), on_two_devices[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_random": -1}, "num_random needs to be at least 0; got -1"),
        ({"batch_size": 0}, "batch_size needs a whole number of at least 1; got 0"),
        ({"recent": 0}, "recent needs a whole number of at least 1; got 0"),
        ({"steps_per_update": 2, "updates_per_step": 2}, "needs to be 1"),
    ],
)
def test_bad_input_is_one_line(options, message):
    with pytest.raises(ValueError, match=message):
        source_batch(countdown(), **options)


def test_a_batch_that_does_not_divide_is_one_line():
    source = make_source(
        vectorize(countdown(), 2), constant, capacity_per_env=8, batch_size=3, num_random=0
    )
    state = state_of([0.0])
    carry = jax.eval_shape(source.init, jax.random.key(0), state)
    half = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]) if leaf.ndim else (), leaf.dtype),
        carry,
    )
    with pytest.raises(ValueError, match="batch_size=3 does not divide over 2 devices"):
        jax.eval_shape(source.step, half, state, jax.random.key(0))
