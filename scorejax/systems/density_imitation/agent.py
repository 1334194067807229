# SPDX-License-Identifier: Apache-2.0
"""An agent: a policy in the environments of a task, the episodes that it plays, and its returns."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from scorejax.choices import require_known
from scorejax.models.actor_critic import Actor, TanhGaussian, TwinCritic
from scorejax.rl.interface import VectorEnv
from scorejax.rl.rollout import Episodes, Policy, first_episodes, random_policy
from scorejax.systems.density_imitation.tasks import Task
from scorejax.typing import Array, Params, PRNGKeyArray, Variables

POLICIES = ("stochastic", "deterministic")
"""Samplers: a draw of each action, which densities can be fitted to, and its median."""


@dataclasses.dataclass(frozen=True, eq=False)
class Agent:
    """A policy in a task, with networks for its critics."""

    task: Task
    hidden: tuple[int, ...]
    log_std_min: float

    @functools.cached_property
    def example(self) -> VectorEnv:
        """One environment, for its dimensions and its box of actions."""
        return self.task.make(1)

    @functools.cached_property
    def actor(self) -> Actor:
        return Actor(*self._box, self.hidden, (self.log_std_min, 2.0))

    @functools.cached_property
    def critic(self) -> TwinCritic:
        return TwinCritic(*self._box, self.hidden)

    @property
    def _box(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return tuple(self.example.action_low.tolist()), tuple(self.example.action_high.tolist())

    def act(self, params: Params, obs: Array) -> TanhGaussian:
        """The law of actions at observations (b, o); `params` are the actor's."""
        return self.actor.apply({"params": params}, obs)

    def value(self, params: Params, obs: Array, action: Array) -> Array:
        """Both critics' values (b, 2); `params` are the critics'."""
        return self.critic.apply({"params": params}, obs, action)

    def init(self, rng: PRNGKeyArray, *players: str) -> Params:
        """Parameters of the players "actor" and "critic", by name."""
        obs = jnp.zeros((1, self.example.observation_dim))
        action = jnp.zeros((1, self.example.action_dim))
        inputs = {"actor": (self.actor, obs), "critic": (self.critic, obs, action)}
        params = {}
        for key, player in zip(jax.random.split(rng, len(players)), players, strict=True):
            network, *examples = inputs[player]
            params[player] = network.init(key, *examples)["params"]
        return params

    def policy(self, *, deterministic: bool) -> Policy:
        """(params, rng, obs) -> action, with all parameters, of which it reads the actor's."""

        def policy(params: Params, rng: Array, obs: Array) -> Array:
            law = self.act(params["actor"], obs)
            return law.mode() if deterministic else law.sample_and_log_prob(rng)[0]

        return policy

    def play(self, variables: Variables, rngs: Array, *, deterministic: bool) -> Episodes:
        """One episode for each key (n,), in environments of their own."""
        policy = functools.partial(self.policy(deterministic=deterministic), variables[0])
        return first_episodes(rngs, self.task.make(len(rngs)), policy)

    def sampler(self, name: str = "", *, num_steps: int = 0, nfe: int = 0):
        """draw(variables, keys (b,)) -> episodes, for launch.sample; see `rollout.Episodes`.

        Raises: ValueError for another name than those of `POLICIES`, or a number of steps, which
        the task decides.
        """
        require_known("sampler", name or POLICIES[0], POLICIES)
        if num_steps or nfe:
            raise ValueError("an episode has the steps of its task; leave out num_steps and nfe")
        if self.task.on_host and jax.local_device_count() > 1:
            raise ValueError(f"{self.task.name} is drawn on one device; set CUDA_VISIBLE_DEVICES=0")

        def draw(variables: Variables, rngs: Array) -> dict[str, Array]:
            episodes = self.play(variables, rngs, deterministic=name == "deterministic")
            return episodes._asdict() | {"nfe": episodes.length}

        return draw


def random_returns(agent: Agent, num_episodes: int) -> np.ndarray:
    """Returns (n,) of uniform actions, the zero of normalised returns."""
    env = agent.task.make(num_episodes)
    policy = functools.partial(random_policy(env), ())
    play = jax.jit(lambda rng: first_episodes(rng, env, policy).returns)
    return np.asarray(play(jax.random.key(0)))
