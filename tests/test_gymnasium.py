# SPDX-License-Identifier: Apache-2.0
"""gymnasium's environments within compiled loops: whole transitions, in order, of every mode."""

import gymnasium_episodes
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_rollout import constant, state_of, value

from scorejax.rl.gymnasium_env import AUTORESETS, gymnasium_vector
from scorejax.rl.rollout import first_episodes, make_source
from scorejax.train import parallel
from scorejax.train.step import scan_online_steps

gymnasium = pytest.importorskip("gymnasium")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:gymnasium")


class Mortal(gymnasium.Env):
    """Observes (a number of the episode, steps taken, last action); dies with probability 0.2."""

    observation_space = gymnasium.spaces.Box(-10, 1e6, (3,), np.float64)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, death=0.2):
        self.death = death

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.obs = np.array([self.np_random.integers(1e6), 0, 0], float)
        return self.obs, {}

    def step(self, action):
        self.obs = np.array([self.obs[0], self.obs[1] + 1, action[0]])
        return self.obs, 1.0, self.np_random.random() < self.death, False, {}


gymnasium.register("Mortal-v0", Mortal, max_episode_steps=5)
SIZES = {"capacity_per_env": 1000, "batch_size": 4000, "num_random": 2000}


def batch_and_carry(vector, **sizes):
    """The first batch after 2,000 random steps, and the carry behind it."""
    source = make_source(vector, constant, **SIZES | sizes)
    state = state_of(np.zeros(vector.action_dim, np.float32))

    @jax.jit
    def make(rng):
        carry, batch = source.step(source.init(rng, state), state, jax.random.key(1))
        return batch, carry

    return jax.device_get(make(jax.random.key(0)))


def require_whole(transitions):
    """Each leads from one step of an episode to the next, by the action that it says."""
    obs, after = transitions["obs"], transitions["next_obs"]
    np.testing.assert_array_equal(after[..., 0], obs[..., 0])
    np.testing.assert_array_equal(after[..., 1], obs[..., 1] + 1)
    np.testing.assert_array_equal(after[..., 2], transitions["action"][..., 0])
    assert (transitions["reward"] == 1).all()  # gymnasium gives 0 for a step that resets


@pytest.fixture(scope="module")
def mortals():
    """The batch and carry of each autoreset mode."""
    make = lambda mode: batch_and_carry(gymnasium_vector("Mortal-v0", 4, autoreset=mode))
    return {mode: make(mode) for mode in AUTORESETS}


@pytest.mark.deep
def test_all_autoreset_modes_give_the_same_whole_transitions(mortals):
    first = mortals["next_step"][0]
    require_whole(first)
    assert len(np.unique(first["obs"][:, 0])) > 400  # 2,000 steps of episodes of at most five
    for batch, _ in mortals.values():
        jax.tree.map(np.testing.assert_array_equal, batch, first)


@pytest.mark.parametrize("mode", [*AUTORESETS])
def test_a_time_limit_is_no_death(mortals, mode):
    batch = mortals[mode][0]
    # State 0 is all there is; where the flag is set the future is worth nothing.
    states = {name: np.ones((len(batch["obs"]), 1)) for name in ("obs", "next_obs")}
    deaths = float(np.mean(batch["terminated"]))
    # 4,000 draws of 2,000 transitions, binomial each: by chance 6 in 100,000.
    assert abs(deaths - 0.2) < 4 * np.sqrt(0.16 * (1 / 4000 + 1 / 2000))
    assert value(batch | states) == pytest.approx(1 / (1 - 0.9 * (1 - deaths)), rel=1e-6)
    immortal = gymnasium_vector("Mortal-v0", 4, autoreset=mode, death=0.0)
    batch, _ = batch_and_carry(immortal, num_random=100)
    assert batch["obs"][:, 1].max() == 4 and not batch["terminated"].any()
    assert value(batch | states) == pytest.approx(10, rel=1e-6)


def test_each_device_steps_its_own_environments_in_order():
    vector = gymnasium_vector("Mortal-v0", 4)
    policy = lambda params, rng, obs: params[None] + 0.001 * obs[:, 1:2]
    source = make_source(vector, policy, capacity_per_env=40, batch_size=8, num_random=8)
    state = state_of([0.5])
    carry = jax.device_get(jax.jit(lambda s: source.init(jax.random.key(0), s))(state))
    next_step = lambda s, b, r: (s.replace(step=s.step + 1), {})
    scan = scan_online_steps(next_step, source.step, 30, axis_name=parallel.AXIS)
    both = parallel.replicate(state), parallel.spread(carry)
    (_, carry), _ = parallel.map_step(scan)(both, (), (jax.random.key(1), jax.random.key(2)))
    carry = parallel.gather(carry)
    np.testing.assert_array_equal(carry.env[:, [0, 2]], [[row, 32] for row in range(4)])
    stored = {name: ring[:, :32] for name, ring in carry.replay.data.items()}
    require_whole(stored)
    acted = 0.5 + 0.001 * stored["obs"][:, 2:, 1]
    np.testing.assert_allclose(stored["action"][:, 2:, 0], acted, rtol=1e-6)
    # Episodes follow one another: where one goes on, it goes on from where it was.
    goes_on = stored["obs"][:, 1:, 1] > 0
    np.testing.assert_array_equal(
        stored["obs"][:, 1:][goes_on], stored["next_obs"][:, :-1][goes_on]
    )


def test_after_a_resume_episodes_start_anew_and_the_log_says_so(mortals, capfd):
    (_, carry), state = mortals["next_step"], state_of([0.0])
    vector = gymnasium_vector("Mortal-v0", 4)  # as another process makes it
    source = make_source(vector, constant, **SIZES)
    step, position = jax.jit(source.step), int(carry.replay.position)
    for number in range(6):
        carry, _ = step(carry, state, jax.random.key(number))
    jax.block_until_ready(carry)
    line = "Mortal-v0: gymnasium cannot save environments; their episodes start anew\n"
    assert capfd.readouterr().err == line
    new = {name: ring[:, position : position + 6] for name, ring in carry.replay.data.items()}
    require_whole(new)
    assert (new["obs"][:, 0, 1] == 0).all()  # each from the first step of an episode
    np.testing.assert_array_equal(carry.env[:, 2], np.full(4, position + 6))


def test_on_two_devices_one_line_says_that_episodes_start_anew(capfd):
    reset = jax.jit(gymnasium_vector("Mortal-v0", 4).reset)
    states, _ = reset(jax.random.key(0))
    step = jax.jit(gymnasium_vector("Mortal-v0", 4).step)  # as another process makes it
    for share in (states[:2], states[2:]):  # One device is steps ahead of the other.
        for number in range(3):
            share = step(jax.random.key(number), share, jnp.zeros((2, 1))).state
        jax.block_until_ready(share)
    assert capfd.readouterr().err.count("start anew") == 1


def test_two_programs_cannot_step_the_same_environments():
    vector = gymnasium_vector("Mortal-v0", 2)
    reset, step = jax.jit(vector.reset), jax.jit(vector.step)
    ours, _ = reset(jax.random.key(0))
    theirs, _ = reset(jax.random.key(1))
    with pytest.raises(Exception, match="two programs step the same environments Mortal-v0"):
        for number in range(3):
            for state in (ours, theirs):
                stepped = step(jax.random.key(number), state, jnp.zeros((2, 1)))
                jax.block_until_ready(stepped)


def test_episodes_end_where_they_end():
    vector = gymnasium_vector("Mortal-v0", 8)
    policy = lambda rng, obs: 0.1 * obs[:, 1:2]
    episodes = jax.jit(lambda rng: first_episodes(rng, vector, policy))(jax.random.key(0))
    assert (episodes.observations[..., 0] == episodes.observations[:, :1, 0]).all()
    steps = np.minimum(np.arange(6), np.asarray(episodes.length)[:, None])
    np.testing.assert_array_equal(episodes.observations[..., 1], steps)
    np.testing.assert_array_equal(episodes.returns, episodes.length)
    died = episodes.terminated.any(axis=1)
    assert (died | (episodes.length == 5)).all() and died.any()
    again = jax.jit(lambda rng: first_episodes(rng, vector, policy))(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, episodes, again)  # a seed fixes the episodes


def test_the_golden_episodes_are_what_gymnasium_does(golden):
    stored = golden("classic_control")
    for name in ("pendulum", "mountain_car"):
        for key, array in getattr(gymnasium_episodes, f"{name}_episode")().items():
            np.testing.assert_allclose(stored[f"{name}_{key}"], array, rtol=1e-6, err_msg=name)


def test_contact_forces_are_left_out_unless_asked_for():
    pytest.importorskip("mujoco")
    assert gymnasium_vector("Ant-v5", 1).observation_dim == 27
    forces = gymnasium_vector("Ant-v5", 1, include_cfrc_ext_in_observation=True)
    assert forces.observation_dim == 105
    assert forces.horizon == 1000 and forces.action_dim == 8


@pytest.mark.parametrize(
    ("id", "options", "message"),
    [
        ("Mortl-v0", {}, "unknown gymnasium environment 'Mortl-v0': did you mean 'Mortal-v0'"),
        ("Mortal-v0", {"autoreset": "same"}, "unknown autoreset mode 'same': did you mean 'same_s"),
        ("Mortal-v0", {"num_envs": 0}, "num_envs needs a whole number of at least 1; got 0"),
        ("Mortal-v0", {"deth": 0.1}, "gymnasium environment 'Mortal-v0': .*deth"),
        ("CartPole-v1", {}, "CartPole-v1 needs vectors in a box for its actions; it has Discrete"),
    ],
)
def test_bad_input_is_one_line(id, options, message):
    with pytest.raises(ValueError, match=message) as error:
        gymnasium_vector(id, **{"num_envs": 1} | options)
    assert "\n" not in str(error.value)
