# SPDX-License-Identifier: Apache-2.0
"""Losses of segmentation: logits (b, h, w, k) against masks, one number per example.

Masks are 0 or 1 for each of k classes. Losses with a sigmoid are for classes that may overlap, as
nuclei and their borders do; k = 1 is the foreground alone. Losses with a softmax are for classes
that exclude each other, the background among them.

Sources: cross-entropy as in Xiang et al. 2020, arXiv:2007.00243; soft Dice as in Milletari et al.
2016, arXiv:1606.04797, but without the squares in the denominator, like the Dice that is reported.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from scorejax.typing import Array, Float

SegmentationLoss = Callable[[Float[Array, "b h w k"], Float[Array, "b h w k"]], Float[Array, "b"]]
"""(logits, mask) -> one number per example."""


def binary_cross_entropy(
    logits: Float[Array, "b h w k"], mask: Float[Array, "b h w k"]
) -> Float[Array, "b"]:
    """Mean over pixels and classes of -log of the probability of the mask under sigmoid(logits).

    Finite for any finite logit.
    """
    return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, mask), axis=(1, 2, 3))


def cross_entropy(
    logits: Float[Array, "b h w k"], mask: Float[Array, "b h w k"]
) -> Float[Array, "b"]:
    """Mean over pixels of -log of the probability of the true class under softmax(logits)."""
    return jnp.mean(optax.softmax_cross_entropy(logits, mask), axis=(1, 2))


def soft_dice(
    probability: Float[Array, "b h w k"], mask: Float[Array, "b h w k"], *, smooth: float = 1.0
) -> Float[Array, "b"]:
    """1 - Dice of probabilities in [0, 1], for each class, averaged over the classes.

    `smooth`, in pixels, is added to numerator and denominator: a class that is absent and not
    predicted has loss 0, and one that is predicted by mistake has a gradient.
    """
    intersection = jnp.sum(probability * mask, axis=(1, 2))
    total = jnp.sum(probability, axis=(1, 2)) + jnp.sum(mask, axis=(1, 2))
    return jnp.mean(1 - (2 * intersection + smooth) / (total + smooth), axis=-1)


def sigmoid_dice(
    logits: Float[Array, "b h w k"], mask: Float[Array, "b h w k"]
) -> Float[Array, "b"]:
    """`soft_dice` for classes that may overlap."""
    return soft_dice(jax.nn.sigmoid(logits), mask)


def softmax_dice(
    logits: Float[Array, "b h w k"], mask: Float[Array, "b h w k"]
) -> Float[Array, "b"]:
    """`soft_dice` for classes that exclude each other."""
    return soft_dice(jax.nn.softmax(logits), mask)


def added(first: SegmentationLoss, second: SegmentationLoss) -> SegmentationLoss:
    """The sum of two losses: cross-entropy is well conditioned, Dice is the reported metric."""
    return lambda logits, mask: first(logits, mask) + second(logits, mask)


LOSSES: dict[str, SegmentationLoss] = {
    "bce": binary_cross_entropy,
    "dice": sigmoid_dice,
    "bce_dice": added(binary_cross_entropy, sigmoid_dice),
    "ce": cross_entropy,
    "softmax_dice": softmax_dice,
    "ce_dice": added(cross_entropy, softmax_dice),
}
"""Losses by name; those in EXCLUSIVE are for classes that exclude each other."""
EXCLUSIVE = ("ce", "softmax_dice", "ce_dice")
