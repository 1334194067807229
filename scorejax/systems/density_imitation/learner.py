# SPDX-License-Identifier: Apache-2.0
"""Losses and batches that train an agent: soft actor-critic on a reward, or two other ways."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from scorejax.data.demonstrations import Demonstrations
from scorejax.data.source import array_source
from scorejax.models.actor_critic import PairPerceptron
from scorejax.objectives import imitation
from scorejax.objectives.actor_critic import sac_losses
from scorejax.random import example_keys, split
from scorejax.rl.rollout import make_source
from scorejax.systems.density_imitation.agent import Agent
from scorejax.systems.density_imitation.rewards import Reward
from scorejax.systems.density_imitation.units import Units, WhitePolicy
from scorejax.train.state import TrainState
from scorejax.typing import (
    Array,
    Aux,
    Batch,
    LossFn,
    OfflineSource,
    OnlineSource,
    Params,
    PRNGKeyArray,
    PyTree,
)


class Learner(NamedTuple):
    """Parameters of all players, their joint loss, and batches, for `train.System`."""

    init: Callable[[PRNGKeyArray], Params]
    loss: LossFn
    source: OfflineSource | OnlineSource
    frozen: PyTree = ()


class Experience(NamedTuple):
    """How much an agent sees: environments, memory, and steps beside updates."""

    num_envs: int
    capacity: int
    """Transitions that all environments together remember."""
    batch_size: int
    num_random: int
    steps_per_update: int
    updates_per_step: int


class Entropy(NamedTuple):
    """The weight of the policy's entropy: fixed, or what keeps it at a target, in nats."""

    weight: float | None
    target: float | None


def experience_source(
    agent: Agent, experience: Experience, *, recent: int | None = None
) -> OnlineSource:
    """Batches of the agent's own transitions; with `recent`, others of its last as negatives."""
    return make_source(
        agent.task.make(experience.num_envs),
        agent.policy(deterministic=False),
        capacity_per_env=-(-experience.capacity // experience.num_envs),
        batch_size=experience.batch_size,
        num_random=experience.num_random,
        steps_per_update=experience.steps_per_update,
        updates_per_step=experience.updates_per_step,
        recent=recent,
    )


def soft_actor_critic(
    agent: Agent, reward: Reward, experience: Experience, *, gamma: float, entropy: Entropy
) -> Learner:
    """Soft actor-critic on a reward, whose own players learn in the same loss.

    The critics' averages are their targets. Source: arXiv:1812.05905.
    """
    weight = None if entropy.weight is None else entropy.weight / reward.unit

    def init(rng: PRNGKeyArray) -> Params:
        agent_rng, reward_rng = jax.random.split(rng)
        params = agent.init(agent_rng, "actor", "critic") | reward.init(reward_rng)
        return params if weight is not None else params | {"log_alpha": jnp.zeros(())}

    def loss(
        params: Params, state: TrainState, rng: PRNGKeyArray, batch: Batch, frozen: PyTree = ()
    ) -> tuple[Array, Aux]:
        mix_rng, reward_rng, sac_rng = split(example_keys(rng, batch), 3)
        batch = reward.mix(frozen, mix_rng, batch)
        others, metrics = reward.loss(params, frozen, reward_rng, batch)
        losses = sac_losses(
            params,
            state.ema_params["critic"],
            sac_rng,
            batch,
            actor=agent.act,
            critic=agent.value,
            gamma=gamma,
            alpha=weight,
            target_entropy=entropy.target,
            reward_fn=lambda batch: reward.of(params, frozen, batch),
            target_fn=reward.target,
        )
        return losses.total() + others, Aux(losses.metrics | metrics, state.model_state)

    source = experience_source(agent, experience, recent=reward.recent)
    return Learner(init, loss, source, reward.frozen)


def behavioural_cloning(agent: Agent, demonstrations: Demonstrations, batch_size: int) -> Learner:
    """Maximum likelihood of the demonstrated actions; no environment is used."""

    def loss(
        params: Params, state: TrainState, rng: PRNGKeyArray, batch: Batch, frozen: PyTree
    ) -> tuple[Array, Aux]:
        del frozen  # There for its checksum: a resumed run must clone the same demonstrations.
        policy = agent.act(params["actor"], batch["obs"])
        value = jnp.mean(imitation.behavioural_cloning(policy, batch["action"]))
        return value, Aux({}, state.model_state)

    rows = demonstrations.transitions()
    init = lambda rng: agent.init(rng, "actor")
    return Learner(init, loss, array_source(rows, batch_size), rows)


def value_dice(
    agent: Agent,
    demonstrations: Demonstrations,
    experience: Experience,
    *,
    gamma: float,
    penalty: float,
) -> Learner:
    """The policy whose occupancy is nearest in KL, by a dual function in the place of a reward.

    Source: Kostrikov et al. 2020, arXiv:1912.05032.
    """
    network, units = PairPerceptron(agent.hidden), Units.of(demonstrations)
    rows = demonstrations.transitions()

    def nu(params: Params, obs: Array, action: Array) -> Array:
        return network.apply({"params": params}, obs, action)

    def init(rng: PRNGKeyArray) -> Params:
        agent_rng, nu_rng = jax.random.split(rng)
        nu_params = network.init(nu_rng, *demonstrations.pair_of_zeros())["params"]
        return agent.init(agent_rng, "actor") | {"nu": nu_params}

    def act(params: Params, obs: Array) -> WhitePolicy:
        return WhitePolicy(agent.act(params, units.raw_states(obs)), units)

    def loss(
        params: Params, state: TrainState, rng: PRNGKeyArray, batch: Batch, frozen: PyTree
    ) -> tuple[Array, Aux]:
        mix_rng, dice_rng = split(example_keys(rng, batch))
        batch = units.batch(imitation.with_demonstrations(mix_rng, batch, frozen))
        options = {"actor": act, "nu": nu, "gamma": gamma, "penalty": penalty}
        losses = imitation.dice_losses(params, dice_rng, batch, **options)
        return losses.nu + losses.actor, Aux({"dice": losses.objective}, state.model_state)

    source = experience_source(agent, experience)
    return Learner(init, loss, source, rows)
