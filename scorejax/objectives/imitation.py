# SPDX-License-Identifier: Apache-2.0
"""Baselines of imitation: losses and rewards that join those of `actor_critic` in one update.

Batches have transitions of the imitator, "obs", "action", "next_obs" and "terminated", and beside
each the same of a demonstration under "expert_obs" and so on, which `with_demonstrations` adds.
Losses are one number per row unless they say otherwise. Each player sees the parameters of the
others through stop_gradient.

`behavioural_cloning` is supervised. `discriminator_loss` with `adversarial_reward` is GAIL,
`sqil_batch` SQIL, and `dice_losses` ValueDICE. RED is in `density.random_distillation`.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from scorejax.choices import choose
from scorejax.numerics import log_mean_exp
from scorejax.objectives import actor_critic
from scorejax.random import Rng, draw_rows, split
from scorejax.typing import Batch, Params

Pairs = tuple[Float[Array, "b o"], Float[Array, "b a"]]
"""Observations and actions."""
PairFn = Callable[[Float[Array, "b o"], Float[Array, "b a"]], Float[Array, "b"]]
"""(obs, action) -> a number for each row: a network with its parameters bound."""
FIELDS = ("obs", "action", "next_obs", "terminated")


@runtime_checkable
class Policy(actor_critic.Policy, Protocol):
    """A law whose density is known at given actions too."""

    def log_prob(self, action: Float[Array, "b a"], *, edge: float) -> Float[Array, "b"]: ...


def with_demonstrations(rng: Rng, batch: Batch, demonstrations: Mapping[str, Array]) -> Batch:
    """Adds to each row a transition drawn uniformly from `demonstrations`, arrays (n, ...)."""
    num = len(demonstrations["obs"])
    draw = lambda key, shape: jax.random.randint(key, shape, 0, num)
    rows = draw_rows(draw, rng, batch["obs"].shape[:1])
    return batch | {f"expert_{name}": demonstrations[name][rows] for name in FIELDS}


def behavioural_cloning(
    policy: Policy, action: Float[Array, "b a"], *, edge: float = 1e-3
) -> Float[Array, "b"]:
    """-log pi(action | obs) of a policy at demonstrated observations, in nats.

    Actions closer to a face of the box than `edge` half widths count as lying there: recorded
    actions are often clipped to the box, where the density of a tanh-Gaussian has no bound.
    """
    return -policy.log_prob(action, edge=edge)


def sqil_batch(batch: Batch) -> Batch:
    """The transitions with every second row, from the first on, replaced by its demonstration.

    The reward of these is 1, that of the others 0. Soft actor-critic on it is SQIL.
    Source: Reddy et al. 2020, arXiv:1905.11108, Algorithm 1.
    """
    expert = jnp.arange(len(batch["obs"])) % 2 == 0

    def mixed(name: str) -> Array:
        other, own = batch[f"expert_{name}"], batch[name]
        where = expert.reshape(expert.shape + (1,) * (own.ndim - 1))
        return jnp.where(where, other.astype(own.dtype), own)

    rewards = expert.astype(batch["obs"].dtype)
    return batch | {name: mixed(name) for name in FIELDS} | {"reward": rewards}


def discriminator_loss(
    logits_fn: PairFn, rng: Rng, batch: Batch, *, penalty: float = 10.0
) -> Float[Array, "b"]:
    """-log D(expert) - log(1 - D(imitator)), D = sigmoid(logits), plus penalty * gradient_penalty.

    The logits that minimise it, without penalty, are the log-ratio of the two densities.
    Source: Ho & Ermon 2016, arXiv:1606.03476, Eq. 14, with demonstrations at D = 1.
    """
    expert, own = _expert(batch), _own(batch)
    loss = jax.nn.softplus(-logits_fn(*expert)) + jax.nn.softplus(logits_fn(*own))
    return loss + penalty * gradient_penalty(logits_fn, rng, expert, own)


def gradient_penalty(pair_fn: PairFn, rng: Rng, first: Pairs, second: Pairs) -> Float[Array, "b"]:
    """(|gradient| - 1)^2 in (obs, action), between each row of the one and the other, at random.

    It depends on the units of both. Source: Gulrajani et al. 2017, arXiv:1704.00028, Eq. 3.
    """
    share = draw_rows(jax.random.uniform, rng, (len(first[0]),))[:, None]
    between = tuple(share * a + (1 - share) * b for a, b in zip(first, second, strict=True))
    slopes = jax.grad(lambda pairs: jnp.sum(pair_fn(*pairs)))(between)
    square = sum(jnp.sum(slope**2, axis=1) for slope in slopes)
    # The norm has no derivative at 0, where a new network may be.
    return (jnp.sqrt(square + 1e-12) - 1) ** 2


ADVERSARIAL_REWARDS: dict[str, Callable[[Float[Array, "b"]], Float[Array, "b"]]] = {
    "softplus": jax.nn.softplus,
    "logits": lambda logits: logits,
    "log_sigmoid": jax.nn.log_sigmoid,
}
"""-log(1 - D), log D - log(1 - D) and log D, of logits. The first is never negative and favours
long episodes, the last never positive and favours short ones."""


def adversarial_reward(
    logits_fn: PairFn, batch: Batch, *, kind: str = "softplus"
) -> Float[Array, "b"]:
    """The reward of transitions under a discriminator, without gradient.

    Raises: ValueError for a kind that is not in `ADVERSARIAL_REWARDS`.
    """
    reward = choose("adversarial reward", kind, ADVERSARIAL_REWARDS)
    return jax.lax.stop_gradient(reward(logits_fn(*_own(batch))))


def dice_objective(
    change: Float[Array, "n"], initial: Float[Array, "m"], *, gamma: float
) -> Float[Array, ""]:
    """log E_E[exp(change)] - (1 - gamma) E_0[initial], whose minimum over nu is -KL(pi || E).

    `change` is nu(s, a) - gamma E_pi nu(s', a') of demonstrations, `initial` is nu of first states
    and actions of the policy. The KL is of discounted occupancies.
    Source: Kostrikov et al. 2020, arXiv:1912.05032, Eq. 9.
    """
    return log_mean_exp(change) - (1 - gamma) * jnp.mean(initial)


class DiceLosses(NamedTuple):
    """The players' losses, numbers of the whole batch, and the objective of both."""

    nu: Float[Array, ""]
    actor: Float[Array, ""]
    objective: Float[Array, ""]


def dice_losses(
    params: Params,
    rngs: Rng,
    batch: Batch,
    *,
    actor: Callable[[Params, Float[Array, "b o"]], actor_critic.Policy],
    nu: Callable[[Params, Float[Array, "b o"], Float[Array, "b a"]], Float[Array, "b"]],
    gamma: float,
    replay_weight: float = 0.1,
    penalty: float = 10.0,
) -> DiceLosses:
    """Losses of nu, which minimises the objective, and of the actor, which maximises it.

    `params` has "nu" and "actor". There is no reward, and no value but nu. Every demonstrated
    observation counts as the first of an episode, as in the published code. The objective matches
    (1 - w) E + w replay, with `replay_weight` w, to the same mixture of the policy and the replay;
    0 is off-line. The value after a termination is 0. A batch's log-mean-exp is biased below the
    truth. Source: arXiv:1912.05032, Eqs. 9-12, with the gradient penalty of its code.
    """
    stop = jax.lax.stop_gradient

    def objective(nu_params: Params, actor_params: Params) -> Float[Array, ""]:
        def value(obs: Float[Array, "b o"], rng: Rng) -> Float[Array, "b"]:
            return nu(nu_params, obs, actor(actor_params, obs).sample_and_log_prob(rng)[0])

        def change(prefix: str, rng: Rng) -> Float[Array, "b"]:
            now = nu(nu_params, batch[f"{prefix}obs"], batch[f"{prefix}action"])
            alive = 1 - batch[f"{prefix}terminated"].astype(now.dtype)
            return now - gamma * alive * value(batch[f"{prefix}next_obs"], rng)

        expert, initial = change("expert_", expert_rng), value(batch["expert_obs"], first_rng)
        if not replay_weight:
            return dice_objective(expert, initial, gamma=gamma)
        own, share = change("", own_rng), 1 - replay_weight
        logs = log_mean_exp(expert) + math.log(share), log_mean_exp(own) + math.log(replay_weight)
        linear = share * (1 - gamma) * jnp.mean(initial) + replay_weight * jnp.mean(own)
        return jnp.logaddexp(*logs) - linear

    expert_rng, own_rng, first_rng, penalty_rng = split(rngs, 4)
    nu_fn = lambda obs, action: nu(params["nu"], obs, action)
    smooth = gradient_penalty(nu_fn, penalty_rng, _expert(batch), _own(batch))
    value = objective(params["nu"], stop(params["actor"]))
    by_actor = -objective(stop(params["nu"]), params["actor"])
    return DiceLosses(value + penalty * jnp.mean(smooth), by_actor, stop(value))


def _expert(batch: Batch) -> Pairs:
    return batch["expert_obs"], batch["expert_action"]


def _own(batch: Batch) -> Pairs:
    return batch["obs"], batch["action"]
