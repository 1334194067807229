# SPDX-License-Identifier: Apache-2.0
"""Adam behind warm-up and clipping, with its eps where the papers or where Keras have it."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from scorejax.choices import choose, require
from scorejax.typing import Array, Params


def adam(
    learning_rate: float,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    warmup: int = 0,
    clip_norm: float | None = None,
) -> optax.GradientTransformation:
    """Adam on gradients clipped to a global norm, with a linear warm-up of the learning rate.

    `warmup` is the number of updates until the full rate; the first has rate 0 and only fills the
    moments, as in the official code. `clip_norm` None leaves gradients as they are. In a joint loss
    of several players clip each on its own, or one player's gradient shrinks the others'.
    Raises: ValueError unless learning_rate is positive and finite, warmup >= 0, and clip_norm is
    positive or None.
    """
    rate = _rate(learning_rate, warmup)
    return optax.chain(_clip(clip_norm), optax.adam(rate, b1=b1, b2=b2, eps=eps))


def _keras(
    scale_by: Callable[..., optax.GradientTransformation],
    learning_rate: float,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-7,
    warmup: int = 0,
    clip_norm: float | None = None,
) -> optax.GradientTransformation:
    direction = scale_by(b1=b1, b2=b2, eps=eps)
    rate = optax.scale_by_learning_rate(_rate(learning_rate, warmup))
    return optax.chain(_clip(clip_norm), direction, rate)


def keras_adam(learning_rate: float, **options: Any) -> optax.GradientTransformation:
    """`adam` by `scale_by_keras_adam`, with eps 1e-7 by default. Options, Raises: as `adam`."""
    return _keras(scale_by_keras_adam, learning_rate, **options)


def keras_adamax(learning_rate: float, **options: Any) -> optax.GradientTransformation:
    """`adam` by `scale_by_keras_adamax`, with eps 1e-7 by default. Options, Raises: as `adam`."""
    return _keras(scale_by_keras_adamax, learning_rate, **options)


OPTIMIZERS = {"adam": adam, "keras_adam": keras_adam, "keras_adamax": keras_adamax}
ADAM_OPTIONS = ("optimizer", "beta1", "beta2", "adam_eps", "warmup", "grad_clip")
"""Keys that `adam_from_config` reads where a config has them."""


def adam_from_config(config: Mapping[str, Any]) -> optax.GradientTransformation:
    """Adam by `learning_rate` and those of `ADAM_OPTIONS` that a config has.

    `optimizer` is one of `OPTIMIZERS`, "adam" by default. `grad_clip` is the norm to which
    gradients are clipped, 0 for none.

    Raises: ValueError for an impossible value.
    """
    optimizer = choose("optimizer", config.get("optimizer", "adam"), OPTIMIZERS)
    betas = [name for name in ("beta1", "beta2") if name in config]
    require(config, betas, lambda v: 0 <= v < 1, "to lie in [0, 1)")
    if "adam_eps" in config:
        require(config, ("adam_eps",), lambda v: 0 < v < math.inf, "to be a positive number")
    if "grad_clip" in config:
        require(config, ("grad_clip",), lambda v: v >= 0, "to be positive, or 0 for none")
    arguments = {"beta1": "b1", "beta2": "b2", "adam_eps": "eps", "warmup": "warmup"}
    options = {argument: config[name] for name, argument in arguments.items() if name in config}
    clip_norm = config.get("grad_clip", 0) or None
    return optimizer(config["learning_rate"], clip_norm=clip_norm, **options)


def decaying_adam_from_config(config: Mapping[str, Any]) -> optax.GradientTransformation:
    """`adam_from_config`; with `cosine_decay` its rate falls to 0 at step `num_train_steps`.

    Raises: ValueError for an impossible value.
    """
    if not config["cosine_decay"]:
        return adam_from_config(config)
    # A run that ends while it warms up does not decay.
    warmup = min(config.get("warmup", 0), config["num_train_steps"] - 1)
    decay = cosine_decay(config["num_train_steps"], warmup=warmup)
    return optax.chain(adam_from_config(config), optax.scale_by_schedule(decay))


def warmup_schedule(learning_rate: float, warmup: int) -> optax.Schedule:
    """Rate learning_rate * min(k / warmup, 1) of update k, counted from 0."""

    def schedule(count: Array) -> Array:
        return learning_rate * jnp.minimum(jnp.asarray(count, float) / warmup, 1.0)

    return schedule


def cosine_decay(num_steps: int, *, warmup: int = 0) -> optax.Schedule:
    """Factor of the rate: 1 for `warmup` updates, then half a cosine down to 0 at `num_steps`.

    With `optax.scale_by_schedule` it multiplies what an optimiser does.
    Raises: ValueError unless 0 <= warmup < num_steps.
    """
    if not 0 <= warmup < num_steps:
        raise ValueError(
            f"cosine_decay needs 0 <= warmup < num_steps = {num_steps} updates; got {warmup}."
        )
    fall = optax.cosine_decay_schedule(1.0, num_steps - warmup)
    return lambda count: fall(jnp.maximum(count - warmup, 0))


def scale_by_keras_adam(
    *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-7
) -> optax.GradientTransformation:
    """Update n is sqrt(1 - b2^n) / (1 - b1^n) m / (sqrt(v) + eps): v is not yet corrected there.

    This is Adam with eps / sqrt(1 - b2^n): 32 eps at n = 1 if b2 is 0.999.
    Source: tf.keras.optimizers.Adam; Kingma and Ba 2015, arXiv:1412.6980, end of Section 2.
    """

    def update(grads: Params, state: optax.ScaleByAdamState, params: Params | None = None):
        del params
        count = optax.safe_increment(state.count)
        mu = optax.tree.update_moment(grads, state.mu, b1, 1)
        nu = optax.tree.update_moment(grads, state.nu, b2, 2)

        def direction(m: Array, v: Array) -> Array:
            factor = jnp.sqrt(_correction(b2, count, v)) / _correction(b1, count, m)
            return factor * m / (jnp.sqrt(v) + eps)

        return jax.tree.map(direction, mu, nu), optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(optax.scale_by_adam().init, update)


def scale_by_keras_adamax(
    *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-7
) -> optax.GradientTransformation:
    """Update n is m / ((1 - b1^n) (u + eps)), where u is the larger of b2 u and |gradient|.

    `optax.adamax` adds eps to |gradient| instead, so that its eps decays together with u.
    Source: tf.keras.optimizers.Adamax; Kingma and Ba 2015, arXiv:1412.6980, Algorithm 2.
    """

    def update(grads: Params, state: optax.ScaleByAdamState, params: Params | None = None):
        del params
        count = optax.safe_increment(state.count)
        mu = optax.tree.update_moment(grads, state.mu, b1, 1)
        nu = optax.tree.update_infinity_moment(grads, state.nu, b2, 0.0)
        direction = lambda m, u: m / (_correction(b1, count, m) * (u + eps))
        return jax.tree.map(direction, mu, nu), optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(optax.scale_by_adam().init, update)


def _correction(decay: float, count: Array, like: Array) -> Array:
    """1 - decay^count in the precision of `like`."""
    if not decay:
        return jnp.ones((), like.dtype)
    # In float32 1 - 0.999 is off by 5e-5 of its value.
    return -jnp.expm1(math.log(decay) * count.astype(like.dtype))


def _rate(learning_rate: float, warmup: int) -> float | optax.Schedule:
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise ValueError(f"learning_rate needs to be a positive number; got {learning_rate}.")
    if warmup < 0:
        raise ValueError(f"warmup needs to be at least 0 updates; got {warmup}.")
    return warmup_schedule(learning_rate, warmup) if warmup else learning_rate


def _clip(clip_norm: float | None) -> optax.GradientTransformation:
    if clip_norm is None:
        return optax.identity()
    if not clip_norm > 0:
        raise ValueError(f"clip_norm needs to be positive, or None; got {clip_norm}.")
    return optax.clip_by_global_norm(clip_norm)
