# SPDX-License-Identifier: Apache-2.0
"""A policy in its environments: a source of batches for training, and episodes to judge it by.

For training, `make_source` steps environments and draws from a replay memory inside the compiled
call of the updates. Time limits never reach a batch: its `terminated` is that of `Stepped`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from scorejax.random import Rng, fold_in, keys_of_rows, split
from scorejax.rl import replay
from scorejax.rl.env import vectorize
from scorejax.rl.interface import Env, Stepped, VectorEnv, clip_to_box, require_count
from scorejax.rl.replay import Replay
from scorejax.typing import Batch, OnlineSource, Params, PRNGKeyArray, PyTree

Policy: TypeAlias = Callable[[Params, Rng, Float[Array, "e o"]], Float[Array, "e a"]]
"""(params, rng, obs) -> action; `rng` are keys (e,), each row's its own."""


class Experience(NamedTuple):
    """Environments in the middle of their episodes, and what they remember: a source's carry."""

    env: PyTree
    obs: Float[Array, "e o"]
    replay: Replay
    calls: Int[Array, ""]
    """Batches made."""


def random_policy(vector_env: VectorEnv) -> Policy:
    """The policy that draws actions uniformly from the box, whatever its parameters."""
    low, high = jnp.asarray(vector_env.action_low), jnp.asarray(vector_env.action_high)
    draw = lambda rng: jax.random.uniform(rng, low.shape, minval=low, maxval=high)

    def policy(params: Params, rng: Rng, obs: Float[Array, "e o"]) -> Float[Array, "e a"]:
        return jax.vmap(draw)(keys_of_rows(rng, len(obs)))

    return policy


def act_and_store(
    rng: Rng, vector_env: VectorEnv, policy: Policy, params: Params, experience: Experience
) -> Experience:
    """Takes one step in each environment and stores the transitions, actions clipped to the box."""
    act_rng, step_rng = split(keys_of_rows(rng, len(experience.obs)))
    action = clip_to_box(policy(params, act_rng, experience.obs), vector_env)
    stepped = vector_env.step(step_rng, experience.env, action)
    transitions = {
        "obs": experience.obs if stepped.start_obs is None else stepped.start_obs,
        "action": action,
        "next_obs": stepped.next_obs,
        "reward": stepped.reward,
        "terminated": stepped.terminated,
    }
    remembered = replay.add(experience.replay, transitions)
    return experience._replace(env=stepped.state, obs=stepped.obs, replay=remembered)


def make_source(
    vector_env: VectorEnv,
    policy: Policy,
    *,
    capacity_per_env: int,
    batch_size: int,
    num_random: int,
    steps_per_update: int = 1,
    updates_per_step: int = 1,
    recent: int | None = None,
) -> OnlineSource:
    """The source whose batches are drawn from what the policy, with `state.params`, has done.

    Each call for a batch steps every environment `steps_per_update` times; or, with
    updates_per_step > 1, once in that many calls. The memory starts with `num_random` steps, in all
    environments together, of random actions, before the first batch.

    A batch has obs, action, next_obs, reward and terminated, `batch_size` rows over all devices;
    with `recent` also negatives_obs and negatives_next_obs, of transitions drawn independently from
    each environment's last `recent`.
    Raises: ValueError for a number out of range; when traced, if the batch does not divide over the
    devices.
    """
    counts = {"capacity_per_env": capacity_per_env, "batch_size": batch_size}
    counts |= {} if recent is None else {"recent": recent}
    ratio = {"steps_per_update": steps_per_update, "updates_per_step": updates_per_step}
    _require_numbers(ratio, num_random, **counts)
    act = functools.partial(act_and_store, vector_env=vector_env)

    def init(rng: PRNGKeyArray, state: Any) -> Experience:
        reset_rng, act_rng = split(rng)
        env, obs = vector_env.reset(reset_rng)
        memory = replay.create(vector_env.num_envs, capacity_per_env, _example(vector_env, obs))
        random = functools.partial(act, policy=random_policy(vector_env), params=())
        step = lambda i, experience: random(fold_in(act_rng, i), experience=experience)
        first = Experience(env, obs, memory, jnp.int32(0))
        return jax.lax.fori_loop(0, -(-num_random // vector_env.num_envs), step, first)

    def step(experience: Experience, state: Any, rng: PRNGKeyArray) -> tuple[Experience, Batch]:
        act_rng, *draw_rngs = split(rng, 3)
        # A loop of no step or some, rather than a branch, so that the memory is never copied.
        due = experience.calls % updates_per_step == 0
        num_steps = steps_per_update if updates_per_step == 1 else due.astype(jnp.int32)
        trained = functools.partial(act, policy=policy, params=state.params)
        one = lambda i, experience: trained(fold_in(act_rng, i), experience=experience)
        experience = jax.lax.fori_loop(0, num_steps, one, experience)
        experience = experience._replace(calls=experience.calls + 1)
        size = _local_batch_size(batch_size, len(experience.obs), vector_env.num_envs)
        return experience, _draw(draw_rngs, experience.replay, size, recent)

    return OnlineSource(init, step)


def _draw(rngs: list[PRNGKeyArray], memory: Replay, size: int, recent: int | None) -> Batch:
    """A batch, with negatives from the last `recent` transitions unless it is None."""
    batch = replay.sample(rngs[0], memory, size)
    if recent is None:
        return batch
    others = replay.recent(rngs[1], memory, size, recent)
    negatives = {f"negatives_{name}": others[name] for name in ("obs", "next_obs")}
    return {**batch, **negatives}


def _require_numbers(ratio: dict[str, int], num_random: int, **counts: int) -> None:
    require_count(**ratio, **counts)
    if min(ratio.values()) > 1:
        given = " and ".join(f"{name}={value}" for name, value in ratio.items())
        raise ValueError(f"one of {given} needs to be 1.")
    if num_random < 0:
        raise ValueError(f"num_random needs to be at least 0; got {num_random}.")


class Episodes(NamedTuple):
    """n episodes of up to T steps, side by side.

    Beyond an episode's length its last observation repeats, and actions and rewards are 0.
    """

    observations: Float[Array, "n t1 o"]
    """T + 1 of them: the first and the last are included."""
    actions: Float[Array, "n t a"]
    rewards: Float[Array, "n t"]
    terminated: Bool[Array, "n t"]
    """True in the last step of an episode that ended before the time limit."""
    length: Int[Array, "n"]

    @property
    def returns(self) -> Float[Array, "n"]:
        """The undiscounted sum of the rewards of each episode."""
        return self.rewards.sum(axis=1)


def rollouts(
    rng: Rng,
    env: Env,
    policy: Callable[[Rng, Float[Array, "e o"]], Float[Array, "e a"]],
    num_episodes: int,
) -> Episodes:
    """Plays episodes of an environment by policy(rng, obs) -> action; traceable, to be jitted.

    With a key for each episode, an episode does not depend on how many are played beside it.
    """
    return first_episodes(rng, vectorize(env, num_episodes), policy)


def first_episodes(
    rng: Rng,
    vector_env: VectorEnv,
    policy: Callable[[Rng, Float[Array, "e o"]], Float[Array, "e a"]],
) -> Episodes:
    """Plays the first episode of each of the environments, as `rollouts`, until all have ended."""
    num = vector_env.num_envs
    reset_rng, step_rng = split(keys_of_rows(rng, num))
    state, obs = vector_env.reset(reset_rng)

    def going_on(loop: tuple) -> Array:
        t, _, _, running, _ = loop
        return (t < vector_env.horizon) & jnp.any(running)

    def step(loop: tuple) -> tuple:
        t, state, obs, running, episodes = loop
        act_rng, env_rng = split(fold_in(step_rng, t))
        action = clip_to_box(policy(act_rng, obs), vector_env)
        stepped = vector_env.step(env_rng, state, action)
        episodes = _record(episodes, t, running, action, stepped)
        running = running & ~stepped.terminated & ~stepped.truncated
        return t + 1, stepped.state, stepped.obs, running, episodes

    start = (jnp.int32(0), state, obs, jnp.ones(num, bool), _blank(vector_env, obs))
    played = jax.lax.while_loop(going_on, step, start)[-1]
    steps = jnp.arange(vector_env.horizon + 1)
    last = jnp.minimum(steps[None], played.length[:, None])
    observations = jnp.take_along_axis(played.observations, last[..., None], axis=1)
    return played._replace(observations=observations)


def _record(
    episodes: Episodes, t: Array, running: Array, action: Array, stepped: Stepped
) -> Episodes:
    """Writes step t of the episodes that are still running."""
    return Episodes(
        observations=episodes.observations.at[:, t + 1].set(stepped.next_obs),
        actions=episodes.actions.at[:, t].set(jnp.where(running[:, None], action, 0)),
        rewards=episodes.rewards.at[:, t].set(jnp.where(running, stepped.reward, 0)),
        terminated=episodes.terminated.at[:, t].set(running & stepped.terminated),
        length=episodes.length + running,
    )


def _blank(vector_env: VectorEnv, obs: Array) -> Episodes:
    """Episodes of no step: the first observation everywhere."""
    num, horizon = vector_env.num_envs, vector_env.horizon
    return Episodes(
        observations=jnp.repeat(obs[:, None], horizon + 1, axis=1),
        actions=jnp.zeros((num, horizon, vector_env.action_dim), obs.dtype),
        rewards=jnp.zeros((num, horizon), obs.dtype),
        terminated=jnp.zeros((num, horizon), bool),
        length=jnp.zeros(num, jnp.int32),
    )


def _example(vector_env: VectorEnv, obs: Array) -> dict[str, jax.ShapeDtypeStruct]:
    """One transition of one environment, by shapes."""
    numbers = lambda *shape: jax.ShapeDtypeStruct(shape, obs.dtype)
    return {
        "obs": numbers(*obs.shape[1:]),
        "action": numbers(vector_env.action_dim),
        "next_obs": numbers(*obs.shape[1:]),
        "reward": numbers(),
        "terminated": jax.ShapeDtypeStruct((), jnp.bool_),
    }


def _local_batch_size(batch_size: int, local_envs: int, num_envs: int) -> int:
    """This device's share of the batch, as that of the environments."""
    if batch_size * local_envs % num_envs:
        raise ValueError(
            f"batch_size={batch_size} does not divide over {num_envs // local_envs} devices."
        )
    return batch_size * local_envs // num_envs
