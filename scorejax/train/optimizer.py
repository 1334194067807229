# SPDX-License-Identifier: Apache-2.0
"""The optimiser of the score-SDE papers: Adam behind warm-up and clipping."""

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import optax

from scorejax.choices import require
from scorejax.typing import Array


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
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise ValueError(f"learning_rate needs to be a positive number; got {learning_rate}.")
    if warmup < 0:
        raise ValueError(f"warmup needs to be at least 0 updates; got {warmup}.")
    if clip_norm is not None and not clip_norm > 0:
        raise ValueError(f"clip_norm needs to be positive, or None; got {clip_norm}.")
    rate = warmup_schedule(learning_rate, warmup) if warmup else learning_rate
    clip = optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)
    return optax.chain(clip, optax.adam(rate, b1=b1, b2=b2, eps=eps))


ADAM_OPTIONS = ("beta1", "beta2", "adam_eps", "warmup", "grad_clip")
"""Keys that `adam_from_config` reads where a config has them."""


def adam_from_config(config: Mapping[str, Any]) -> optax.GradientTransformation:
    """Adam by `learning_rate` and those of `ADAM_OPTIONS` that a config has.

    `grad_clip` is the norm to which gradients are clipped, 0 for none.

    Raises: ValueError for an impossible value.
    """
    betas = [name for name in ("beta1", "beta2") if name in config]
    require(config, betas, lambda v: 0 <= v < 1, "to lie in [0, 1)")
    if "adam_eps" in config:
        require(config, ("adam_eps",), lambda v: 0 < v < math.inf, "to be a positive number")
    if "grad_clip" in config:
        require(config, ("grad_clip",), lambda v: v >= 0, "to be positive, or 0 for none")
    arguments = {"beta1": "b1", "beta2": "b2", "adam_eps": "eps", "warmup": "warmup"}
    options = {argument: config[name] for name, argument in arguments.items() if name in config}
    clip_norm = config.get("grad_clip", 0) or None
    return adam(config["learning_rate"], clip_norm=clip_norm, **options)


def warmup_schedule(learning_rate: float, warmup: int) -> optax.Schedule:
    """Rate learning_rate * min(k / warmup, 1) of update k, counted from 0."""

    def schedule(count: Array) -> Array:
        return learning_rate * jnp.minimum(jnp.asarray(count, float) / warmup, 1.0)

    return schedule
