# SPDX-License-Identifier: Apache-2.0
"""Rewards that stand for demonstrations, one for each method of imitation.

Each is a `Reward` for the same soft actor-critic. Neural density imitation is `density_reward`:

    r(s, a, s') = log q(s, a) + lambda_f r_f(s, a, s'),   temperature lambda_pi,

with q fitted to the demonstrations before and r_f of `objectives.occupancy_entropy`.

Source: Kim et al. 2021, arXiv:2010.09808; Ho & Ermon 2016, arXiv:1606.03476 (GAIL); Wang et al.
2019, arXiv:1905.06750 (RED); Reddy et al. 2020, arXiv:1905.11108 (SQIL).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from scorejax.data.demonstrations import Demonstrations
from scorejax.density import random_distillation
from scorejax.models.actor_critic import PairCritic, PairPerceptron
from scorejax.objectives import imitation
from scorejax.objectives.actor_critic import TargetFn, absorbing_target, td_target
from scorejax.objectives.occupancy_entropy import (
    gaussian_similarity,
    knn_entropy_reward,
    log_displacement,
    nwj_bound,
    saelbo_reward,
)
from scorejax.random import Rng
from scorejax.systems.density_imitation.occupancy import (
    FitOptions,
    Occupancy,
    log_occupancy,
    slowed_below,
)
from scorejax.systems.density_imitation.units import Units
from scorejax.typing import Batch, Params, PRNGKeyArray, PyTree


def no_players(rng: PRNGKeyArray) -> Params:
    """No parameters beside those of the actor and the critics."""
    return {}


def no_loss(params: Params, frozen: PyTree, rngs: Rng, batch: Batch) -> tuple[Array, dict]:
    """No loss beside those of the actor and the critics."""
    return jnp.zeros(()), {}


class Reward(NamedTuple):
    """The reward that the critics learn to predict, and the players that find it out."""

    of: Callable[[Params, PyTree, Batch], Array]
    """(params, frozen, batch) -> (b,)."""
    frozen: PyTree = ()
    init: Callable[[PRNGKeyArray], Params] = no_players
    """rng -> parameters of further players, by name."""
    loss: Callable[..., tuple[Array, dict[str, Array]]] = no_loss
    """(params, frozen, rngs, batch) -> the loss of these players, and metrics."""
    mix: Callable[[PyTree, Rng, Batch], Batch] = lambda frozen, rngs, batch: batch
    """(frozen, rngs, batch) -> the batch with demonstrations in it."""
    target: TargetFn = td_target
    unit: float = 1.0
    """The critics learn the reward, and the policy's entropy, divided by it."""
    recent: int | None = None
    """Steps of each environment from which a batch has states that do not belong together."""


true_reward = Reward(lambda params, frozen, batch: batch["reward"])
"""That of the environment, for experts."""


def adversarial(
    demonstrations: Demonstrations, *, hidden: tuple[int, ...], penalty: float, kind: str
) -> Reward:
    """GAIL: a discriminator that learns beside the policy. Source: arXiv:1606.03476."""
    network, units = PairPerceptron(hidden), Units.of(demonstrations)

    def logits_of(params: Params) -> Callable[[Array, Array], Array]:
        return functools.partial(network.apply, {"params": params["discriminator"]})

    def init(rng: PRNGKeyArray) -> Params:
        return {"discriminator": network.init(rng, *demonstrations.pair_of_zeros())["params"]}

    def loss(params: Params, frozen: PyTree, rngs: Rng, batch: Batch) -> tuple[Array, dict]:
        logits = logits_of(params)
        rows = imitation.discriminator_loss(logits, rngs, units.batch(batch), penalty=penalty)
        return jnp.mean(rows), {"discriminator_loss": jnp.mean(rows)}

    return Reward(
        of=lambda params, frozen, batch: imitation.adversarial_reward(
            logits_of(params), units.batch(batch), kind=kind
        ),
        frozen=demonstrations.transitions(),
        init=init,
        loss=loss,
        mix=lambda frozen, rngs, batch: imitation.with_demonstrations(rngs, batch, frozen),
    )


def soft_q_imitation(demonstrations: Demonstrations) -> Reward:
    """SQIL: reward 1 for demonstrations, 0 for the agent's own. Source: arXiv:1905.11108."""

    def mix(frozen: PyTree, rngs: Rng, batch: Batch) -> Batch:
        return imitation.sqil_batch(imitation.with_demonstrations(rngs, batch, frozen))

    return true_reward._replace(frozen=demonstrations.transitions(), mix=mix)


def expert_distillation(demonstrations: Demonstrations, fit: FitOptions, *, seed: int) -> Reward:
    """RED: how well a network predicts a random one where demonstrations are, fitted before.

    Source: arXiv:1905.06750.
    """
    units, (mean, std) = Units.of(demonstrations), demonstrations.moments()
    training = dataclasses.replace(random_distillation.TRAINING, **fit._asdict())
    rows = (demonstrations.pairs() - mean[None]) / std[None]
    fitted = random_distillation.fit(jax.random.key(seed), rows, training=training)

    def of(params: Params, frozen: PyTree, batch: Batch) -> Array:
        pairs = jnp.concatenate([batch["obs"], batch["action"]], axis=1)
        return random_distillation.reward(frozen, units.pairs(pairs))

    return Reward(of, fitted)


NUM_LEARNED = 32
"""Transitions of which a learned critic, a network, judges every pair of two states."""


class EntropyTerm(NamedTuple):
    """A reward for the entropy of the imitator's own states, and the player that finds it."""

    of: Callable[[Params, Batch], Array]
    """(params, batch with states in standard deviations of the demonstrations) -> (b,)."""
    init: Callable[[PRNGKeyArray, int], Params] = lambda rng, dim: {}
    loss: Callable[[Params, Batch], Array] = lambda params, batch: jnp.zeros(())
    negatives: bool = True
    """Whether it needs states that do not belong together."""
    critic: Callable[[Params], Callable] | None = None
    """params -> f (next_state, state), if there is one, of the bound of I(s'; s)."""


def _by_critic(f: Callable, *, gamma: float, centre: bool) -> EntropyTerm:
    """`saelbo_reward` of a critic f (next_state, state) that is given."""
    options = {"gamma": gamma, "centre": centre}
    of = lambda params, batch: saelbo_reward(f, *_states(batch), **options)
    return EntropyTerm(of, critic=lambda params: f)


def _learned(*, gamma: float, centre: bool) -> EntropyTerm:
    """`saelbo_reward` of a critic that maximises the bound of I(s'; s)."""
    network = PairCritic()
    bind = lambda params: functools.partial(network.apply, {"params": params["pair_critic"]})

    def init(rng: PRNGKeyArray, dim: int) -> Params:
        return {"pair_critic": network.init(rng, *2 * [jnp.zeros((1, dim))])["params"]}

    def loss(params: Params, batch: Batch) -> Array:
        # Both means of the bound are over recent transitions.
        nexts, others = batch["negatives_next_obs"], batch["negatives_obs"]
        few = nexts[:NUM_LEARNED], others[:NUM_LEARNED]
        return -nwj_bound(bind(params), nexts, others, *few)

    def of(params: Params, batch: Batch) -> Array:
        *states, nexts, others = _states(batch)
        few = nexts[:NUM_LEARNED], others[:NUM_LEARNED]
        return saelbo_reward(bind(params), *states, *few, gamma=gamma, centre=centre)

    return EntropyTerm(of, init, loss, critic=bind)


def _states(batch: Batch) -> tuple[Array, Array, Array, Array]:
    names = ("obs", "next_obs", "negatives_next_obs", "negatives_obs")
    return tuple(batch[name] for name in names)


TERMS: dict[str, Callable[..., EntropyTerm]] = {
    "none": lambda **options: EntropyTerm(
        lambda params, batch: jnp.zeros(len(batch["obs"])), negatives=False
    ),
    "log_displacement": lambda *, scale, **options: _by_critic(log_displacement, **options),
    "similarity": lambda *, scale, **options: _by_critic(
        functools.partial(gaussian_similarity, scale=scale), **options
    ),
    "learned": lambda *, scale, **options: _learned(**options),
    "nearest_neighbours": lambda **options: EntropyTerm(
        lambda params, batch: knn_entropy_reward(batch["obs"], batch["negatives_obs"])
    ),
}
"""By name, of gamma, centre and the scale of similarity."""


TERMINALS = ("absorbing", "shifted")


def density_reward(
    name: str,
    occupancy: Occupancy,
    term: EntropyTerm,
    *,
    weight: float,
    terminal: str,
    ended: float,
    recent: int,
    observation_dim: int,
) -> Reward:
    """log q(s, a) + weight r_f(s, a, s'), with log q measured from its mean on demonstrations.

    That constant changes nothing in a task without end. What an end is worth is `terminal`.
    "absorbing" goes on for ever at a log q between the floor and the mean of the demonstrations, by
    the share of them that ended, `ended`: an expert that never falls has no mass there, and one
    that always arrives has much. "shifted" measures log q from the demonstrations' lowest hundredth
    instead, so that most of it is positive, and an end is worth nothing.
    Source: Kim et al. 2021, arXiv:2010.09808; the remedies of its sign are ours.
    """
    unit = occupancy.unit
    origin = float(occupancy.centre if terminal == "absorbing" else occupancy.low)
    target = td_target
    if terminal == "absorbing":
        absorbed = (1 - ended) * (float(occupancy.floor) - origin) / unit
        target = functools.partial(absorbing_target, absorbing_reward=absorbed)

    def of(params: Params, occupancy: Occupancy, batch: Batch) -> Array:
        rows = jnp.concatenate([batch["obs"], batch["action"]], axis=1)
        log_q = slowed_below(log_occupancy(name, occupancy, rows), occupancy.floor)
        return (log_q - origin + weight * term.of(params, occupancy.units.batch(batch))) / unit

    def loss(params: Params, occupancy: Occupancy, rngs: Rng, batch: Batch) -> tuple[Array, dict]:
        return term.loss(params, occupancy.units.batch(batch)), {}

    init = lambda rng: term.init(rng, observation_dim)
    return Reward(
        of,
        occupancy,
        init,
        loss,
        target=target,
        unit=unit,
        recent=recent if term.negatives else None,
    )
