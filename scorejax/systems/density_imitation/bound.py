# SPDX-License-Identifier: Apache-2.0
"""The bound that imitation climbs, estimated from episodes of the policy itself.

    -KL(imitator || expert) >= E log q(s, a) + gamma I_f(s'; s) + E H(pi(.|s)) + constants

Means are over the discounted occupancy. In continuous spaces the bound lacks gamma times the
entropy of the next state given this one, and is no bound without it.
Source: Kim et al. 2021, arXiv:2010.09808; `objectives.occupancy_entropy`.
"""

import jax
import jax.numpy as jnp

from scorejax.evaluate.progress import Metric
from scorejax.objectives.occupancy_entropy import donsker_varadhan_bound, nwj_bound
from scorejax.report import Evaluation
from scorejax.rl.rollout import Episodes
from scorejax.systems.density_imitation.agent import Agent
from scorejax.systems.density_imitation.occupancy import Occupancy, log_occupancy
from scorejax.systems.density_imitation.rewards import EntropyTerm
from scorejax.typing import Array, PRNGKeyArray, PyTree, Variables

NUM_PAIRS = 1024
"""Transitions that are drawn by their weight in the occupancy."""


def bound_metric(
    agent: Agent,
    density: str,
    occupancy: Occupancy,
    term: EntropyTerm,
    *,
    gamma: float,
    centre: bool,
    num_episodes: int,
) -> Metric:
    """Scalars "log_density", "policy_entropy", "mutual_information" and "bound", in nats.

    "at_floor" is the share of pairs whose log q the reward cuts.

    The bound is their sum, the third times gamma; it lacks (1 - gamma) H(p_0). A term without a
    critic has no mutual information.
    """
    measure_mutual = donsker_varadhan_bound if centre else nwj_bound

    @jax.jit
    def measure(variables: Variables, rng: PRNGKeyArray) -> dict[str, Array]:
        play_rng, draw_rng, act_rng = jax.random.split(rng, 3)
        rngs = jax.random.split(play_rng, num_episodes)
        episodes = agent.play(variables, rngs, deterministic=False)
        obs, action, next_obs, which = drawn_pairs(draw_rng, episodes, gamma)
        _, log_prob = agent.act(variables[0]["actor"], obs).sample_and_log_prob(act_rng)
        pairs = jnp.concatenate([obs, action], axis=1)
        log_q = log_occupancy(density, occupancy, pairs)
        terms = {"log_density": jnp.mean(log_q), "at_floor": jnp.mean(log_q < occupancy.floor)}
        terms["policy_entropy"] = -jnp.mean(log_prob)
        bound = terms["log_density"] + terms["policy_entropy"]
        if term.critic is not None:
            states = map(occupancy.units.states, (next_obs, obs))
            critic = term.critic(variables[0])
            terms["mutual_information"] = measure_mutual(critic, *states, which=which)
            bound = bound + gamma * terms["mutual_information"]
        return terms | {"bound": bound}

    def metric(rng: PRNGKeyArray, variables: Variables, *frozen: PyTree) -> Evaluation:
        # The same episodes every time: only the policy differs between evaluations.
        terms = jax.device_get(measure(variables, jax.random.key(2**32 - 1)))
        return Evaluation({name: float(value) for name, value in terms.items()}, {})

    return metric


def drawn_pairs(
    rng: PRNGKeyArray, episodes: Episodes, gamma: float
) -> tuple[Array, Array, Array, Array]:
    """States, actions and next states, drawn by their weight gamma^t in the occupancy.

    Last is the number of each transition: one may be drawn more than once.
    """
    steps = jnp.arange(episodes.actions.shape[1])
    weights = jnp.where(steps[None] < episodes.length[:, None], gamma ** steps[None], 0.0)
    which = jax.random.categorical(rng, jnp.log(weights).ravel(), shape=(NUM_PAIRS,))
    episode, step = which // len(steps), which % len(steps)
    obs = episodes.observations[episode, step]
    after = episodes.observations[episode, step + 1]
    return obs, episodes.actions[episode, step], after, which
