# SPDX-License-Identifier: Apache-2.0
"""Soft actor-critic as one loss, the sum of three players' losses.

Each player sees the others through stop_gradient, so that the gradient of the sum is the gradient
of each player's own loss, and `optax.multi_transform` gives each its optimiser. All of them read
the parameters before the update (Jacobi's order); published code updates the critics first and
then the actor with the new ones (Gauss and Seidel's). Losses are one number per row.

Only `terminated` ends an episode. The value after a time limit is that of its last state, so
truncation has no place here.

Source: Haarnoja et al. 2018, arXiv:1812.05905, Eqs. 5-7 and 18.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from scorejax.random import Rng, split
from scorejax.typing import Batch, Params

Rows = Float[Array, "b"]
Terminated = Bool[Array, "b"] | Float[Array, "b"]


class Policy(Protocol):
    """A law of actions for each row, such as `models.actor_critic.TanhGaussian`."""

    def sample_and_log_prob(self, rng: Rng) -> tuple[Float[Array, "b a"], Float[Array, "b"]]: ...


ActorFn = Callable[[Params, Float[Array, "b o"]], Policy]
CriticFn = Callable[[Params, Float[Array, "b o"], Float[Array, "b a"]], Float[Array, "b 2"]]
RewardFn = Callable[[Batch], Float[Array, "b"]]
TargetFn = Callable[..., Float[Array, "b"]]
"""(reward (b,), terminated (b,), next_value (b,), *, gamma) -> (b,), such as `td_target`."""


class SACLosses(NamedTuple):
    """The players' losses (b,), and scalars that describe them."""

    critic: Float[Array, "b"]
    actor: Float[Array, "b"]
    temperature: Float[Array, "b"]
    metrics: dict[str, Array]

    def total(self) -> Float[Array, ""]:
        """Mean over the rows of the sum of all three."""
        return jnp.mean(self.critic + self.actor + self.temperature)


def soft_value(values: Float[Array, "b 2"], log_prob: Rows, alpha: float | Array) -> Rows:
    """min_i Q_i(s, a) - alpha log pi(a|s), an estimate of the soft value of s from one action."""
    return jnp.min(values, axis=1) - alpha * log_prob


def td_target(reward: Rows, terminated: Terminated, next_value: Rows, *, gamma: float) -> Rows:
    """reward + gamma V(s'), with V = 0 after a termination."""
    return reward + gamma * (1 - terminated.astype(reward.dtype)) * next_value


def absorbing_target(
    reward: Rows,
    terminated: Terminated,
    next_value: Rows,
    *,
    gamma: float,
    absorbing_reward: float | Array,
) -> Rows:
    """reward + gamma V(s'), with V = absorbing_reward / (1 - gamma) after a termination.

    So do episodes of a reward without a natural zero, such as a log-density, neither gain nor lose
    by their end: the state after it is visited for ever, at `absorbing_reward` a step.
    """
    absorbed = absorbing_reward / (1 - gamma)
    return reward + gamma * jnp.where(terminated.astype(bool), absorbed, next_value)


def critic_loss(values: Float[Array, "b 2"], target: Rows) -> Rows:
    """1/2 sum_i (Q_i(s, a) - target)^2; some published code averages over i instead."""
    target = jax.lax.stop_gradient(target)
    return jnp.sum((values - target[:, None]) ** 2, axis=1) / 2


def actor_loss(values: Float[Array, "b 2"], log_prob: Rows, alpha: float | Array) -> Rows:
    """alpha log pi(a|s) - min_i Q_i(s, a), for an action that is differentiable in the policy."""
    return -soft_value(values, log_prob, alpha)


def temperature_loss(log_alpha: Float[Array, ""], log_prob: Rows, target_entropy: float) -> Rows:
    """-log_alpha (log pi(a|s) + target_entropy): log_alpha falls while the entropy is above target.

    The paper has alpha in the place of log_alpha, which changes the size of the gradient alone.
    """
    return -log_alpha * jax.lax.stop_gradient(log_prob + target_entropy)


def sac_losses(
    params: Params,
    target_critic: Params,
    rngs: Rng,
    batch: Batch,
    *,
    actor: ActorFn,
    critic: CriticFn,
    gamma: float,
    alpha: float | None = None,
    target_entropy: float | None = None,
    reward_fn: RewardFn | None = None,
    target_fn: TargetFn = td_target,
) -> SACLosses:
    """The losses of critics, actor and temperature on transitions, each row from its own key.

    `params` has "actor", "critic" and, unless `alpha` is given, "log_alpha" (a scalar);
    `target_critic` are the critics' averaged parameters. `batch` has "obs", "action", "next_obs",
    "terminated", and "reward" unless there is a `reward_fn`, which carries no gradient.
    A fixed `alpha` has no loss of its own; else the temperature moves so that the policy's entropy,
    in nats of the environment's units, comes to `target_entropy`, -a by custom for actions (a,) in
    boxes of half width 1.
    Raises: ValueError unless just one of alpha and target_entropy is given, alpha >= 0, and
    0 <= gamma < 1.
    """
    _require_settings(gamma, alpha, target_entropy)
    next_rng, rng = split(rngs)
    stop = jax.lax.stop_gradient
    temperature = jnp.exp(stop(params["log_alpha"])) if alpha is None else alpha
    reward = stop(batch["reward"] if reward_fn is None else reward_fn(batch))

    next_policy = actor(params["actor"], batch["next_obs"])
    next_action, next_log_prob = next_policy.sample_and_log_prob(next_rng)
    next_values = critic(target_critic, batch["next_obs"], next_action)
    next_value = soft_value(next_values, next_log_prob, temperature)
    target = target_fn(reward, batch["terminated"], next_value, gamma=gamma)
    values = critic(params["critic"], batch["obs"], batch["action"])

    action, log_prob = actor(params["actor"], batch["obs"]).sample_and_log_prob(rng)
    chosen = critic(stop(params["critic"]), batch["obs"], action)
    by_temperature = jnp.zeros_like(reward)
    if alpha is None:
        by_temperature = temperature_loss(params["log_alpha"], log_prob, target_entropy)
    losses = critic_loss(values, target), actor_loss(chosen, log_prob, temperature), by_temperature
    return SACLosses(*losses, _metrics(losses, reward, values, log_prob, temperature))


def sac_loss(
    params: Params, target_critic: Params, rngs: Rng, batch: Batch, **options: Any
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """The sum of all players' losses, averaged over the rows, and metrics.

    Options and errors are those of `sac_losses`.
    """
    losses = sac_losses(params, target_critic, rngs, batch, **options)
    return losses.total(), losses.metrics


def _metrics(
    losses: tuple[Rows, Rows, Rows],
    reward: Rows,
    values: Float[Array, "b 2"],
    log_prob: Rows,
    alpha: float | Array,
) -> dict[str, Array]:
    names = ("critic_loss", "actor_loss", "temperature_loss")
    metrics = {name: jnp.mean(loss) for name, loss in zip(names, losses, strict=True)}
    metrics |= {"reward": jnp.mean(reward), "value": jnp.mean(values)}
    metrics |= {"policy_entropy": -jnp.mean(log_prob), "alpha": jnp.asarray(alpha, reward.dtype)}
    return jax.lax.stop_gradient(metrics)


def _require_settings(gamma: float, alpha: float | None, target_entropy: float | None) -> None:
    if not 0 <= gamma < 1:
        raise ValueError(f"gamma needs to lie in [0, 1); got {gamma}")
    if (alpha is None) == (target_entropy is None):
        raise ValueError(
            "soft actor-critic needs either a fixed alpha or a target_entropy; got "
            f"alpha={alpha}, target_entropy={target_entropy}"
        )
    if alpha is not None and not alpha >= 0:
        raise ValueError(f"alpha needs to be at least 0; got {alpha}")
