# SPDX-License-Identifier: Apache-2.0
"""Losses that attacks increase: (logits (b, k), label (b,)) -> (b,).

The gradient of the cross-entropy vanishes where the softmax saturates; those of the margin and of
its ratio to the spread of the logits do not.
"""

from collections.abc import Callable

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

AttackLoss = Callable[[Float[Array, "b k"], Int[Array, "b"]], Float[Array, "b"]]


def cross_entropy(logits: Float[Array, "b k"], label: Int[Array, "b"]) -> Float[Array, "b"]:
    """-log of the probability of the label, in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, label)


def margin(logits: Float[Array, "b k"], label: Int[Array, "b"]) -> Float[Array, "b"]:
    """The largest logit of another class minus that of the label; positive where it is wrong.

    Source: Carlini & Wagner 2017, arXiv:1608.04644, f_6 in Section V-A.
    """
    own = jnp.take_along_axis(logits, label[:, None], axis=1)[:, 0]
    is_label = label[:, None] == jnp.arange(logits.shape[1])[None]
    return jnp.max(jnp.where(is_label, -jnp.inf, logits), axis=1) - own


def logit_ratio(logits: Float[Array, "b k"], label: Int[Array, "b"]) -> Float[Array, "b"]:
    """`margin` divided by the distance from the largest to the third logit (DLR); k >= 3.

    Does not change if the logits are scaled or shifted. Raises: ValueError for fewer classes.
    Source: Croce & Hein 2020, arXiv:2003.01690, Eq. 6.
    """
    if logits.shape[1] < 3:
        raise ValueError(
            f"the loss 'logit_ratio' needs at least 3 classes; got {logits.shape[1]}. "
            "Choose 'margin'."
        )
    # Three maxima: the gradient of a sort is slow inside the loops of attacks.
    largest, rest = [], logits
    for _ in range(3):
        largest.append(jnp.max(rest, axis=1))
        is_largest = jnp.argmax(rest, axis=1)[:, None] == jnp.arange(logits.shape[1])[None]
        rest = jnp.where(is_largest, -jnp.inf, rest)
    spread = jnp.maximum(largest[0] - largest[2], jnp.finfo(logits.dtype).tiny)
    return margin(logits, label) / spread


ATTACK_LOSSES: dict[str, AttackLoss] = {
    "cross_entropy": cross_entropy,
    "margin": margin,
    "logit_ratio": logit_ratio,
}
