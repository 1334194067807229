# SPDX-License-Identifier: Apache-2.0
"""Losses of segmentation: logits (b, h, w, k) against masks, one number per example.

Masks are 0 or 1 for each of k classes. Losses with a sigmoid are for classes that may overlap, as
nuclei and their borders do; k = 1 is the foreground alone. Losses with a softmax are for classes
that exclude each other, the background among them.

Every loss leaves out the pixels that are not `known`, and weighs classes by `class_weights`: one
for each class under a softmax; under a sigmoid one for the background, then one for each class.
A mean over pixels is weighted by the class of the pixel and divided by the sum of the weights; a
mean over classes, as of Dice, is weighted by the class.

Sources: cross-entropy as in Xiang et al. 2020, arXiv:2007.00243; soft Dice as in Milletari et al.
2016, arXiv:1606.04797, but without the squares in the denominator, like the Dice that is reported;
the focal loss of Lin et al. 2017, arXiv:1708.02002; Tversky's index as in Salehi et al. 2017,
arXiv:1706.05721.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from scorejax.typing import Array, Float

Logits = Float[Array, "b h w k"]
Masks = Float[Array, "b h w k"]
Known = Float[Array, "b h w"] | None
"""1 for pixels that count, 0 for others; None: all count."""
Weights = Float[Array, "n"] | None


SegmentationLoss = Callable[..., Float[Array, "b"]]
"""(logits, mask, *, known=None, class_weights=None) -> one number per example."""


def binary_cross_entropy(
    logits: Logits, mask: Masks, *, known: Known = None, class_weights: Weights = None
) -> Float[Array, "b"]:
    """Mean over pixels and classes of -log of the probability of the mask under sigmoid(logits).

    Finite for any finite logit.
    """
    loss = optax.sigmoid_binary_cross_entropy(logits, mask)
    return _mean(loss, _overlapping_weights(mask, known, class_weights))


def cross_entropy(
    logits: Logits, mask: Masks, *, known: Known = None, class_weights: Weights = None
) -> Float[Array, "b"]:
    """Mean over pixels of -log of the probability of the true class under softmax(logits)."""
    loss = optax.softmax_cross_entropy(logits, mask)
    return _mean(loss, _exclusive_weights(mask, known, class_weights))


def sigmoid_focal(
    logits: Logits,
    mask: Masks,
    *,
    known: Known = None,
    class_weights: Weights = None,
    gamma: float = 2.0,
) -> Float[Array, "b"]:
    """`binary_cross_entropy` in which a pixel of probability p counts (1 - p)^gamma times.

    `class_weights` are the paper's alpha. Source: arXiv:1708.02002, Eq. 5.
    """
    # In logarithms: the gradient of (1 - p)^gamma is infinite at p = 1 for gamma < 1.
    log_wrong = jax.nn.log_sigmoid(jnp.where(mask > 0, -logits, logits))
    loss = jnp.exp(gamma * log_wrong) * optax.sigmoid_binary_cross_entropy(logits, mask)
    return _mean(loss, _overlapping_weights(mask, known, class_weights))


def softmax_focal(
    logits: Logits,
    mask: Masks,
    *,
    known: Known = None,
    class_weights: Weights = None,
    gamma: float = 2.0,
) -> Float[Array, "b"]:
    """`cross_entropy` in which a pixel of probability p counts (1 - p)^gamma times.

    p is the probability of the true class. Source: arXiv:1708.02002, Eq. 5, for a softmax.
    """
    others = jax.nn.logsumexp(logits, axis=-1, b=1 - mask)
    log_wrong = others - jax.nn.logsumexp(logits, axis=-1)
    loss = jnp.exp(gamma * log_wrong) * optax.softmax_cross_entropy(logits, mask)
    return _mean(loss, _exclusive_weights(mask, known, class_weights))


def soft_dice(
    probability: Float[Array, "b h w k"],
    mask: Masks,
    *,
    smooth: float = 1.0,
    known: Known = None,
    class_weights: Weights = None,
) -> Float[Array, "b"]:
    """1 - Dice of probabilities in [0, 1], for each class, averaged over the classes.

    `smooth`, in pixels, is added to numerator and denominator: a class that is absent and not
    predicted has loss 0, and one that is predicted by mistake has a gradient.
    `class_weights` are those of the k classes.
    """
    probability, mask = _only(known, probability, mask)
    intersection = jnp.sum(probability * mask, axis=(1, 2))
    total = jnp.sum(probability, axis=(1, 2)) + jnp.sum(mask, axis=(1, 2))
    return _over_classes(1 - (2 * intersection + smooth) / (total + smooth), class_weights)


def soft_tversky(
    probability: Float[Array, "b h w k"],
    mask: Masks,
    *,
    alpha: float = 0.3,
    beta: float = 0.7,
    smooth: float = 1.0,
    known: Known = None,
    class_weights: Weights = None,
) -> Float[Array, "b"]:
    """1 - TP / (TP + alpha FP + beta FN) of probabilities, averaged over classes as `soft_dice`.

    With beta > alpha a missed pixel costs more than a surplus one; alpha = beta = 1/2 is Dice, with
    half of `smooth` added above and below.
    Source: arXiv:1706.05721, Eq. 3.
    """
    probability, mask = _only(known, probability, mask)
    true = jnp.sum(probability * mask, axis=(1, 2))
    surplus = jnp.sum(probability * (1 - mask), axis=(1, 2))
    missed = jnp.sum((1 - probability) * mask, axis=(1, 2))
    below = true + alpha * surplus + beta * missed + smooth / 2
    return _over_classes(1 - (true + smooth / 2) / below, class_weights)


def overlapping(loss: SegmentationLoss) -> SegmentationLoss:
    """A loss of probabilities as one of logits, for classes that may overlap."""

    def of_logits(
        logits: Logits, mask: Masks, *, class_weights: Weights = None, **options: Any
    ) -> Float[Array, "b"]:
        foreground = None if class_weights is None else class_weights[1:]
        return loss(jax.nn.sigmoid(logits), mask, class_weights=foreground, **options)

    return of_logits


def exclusive(loss: SegmentationLoss) -> SegmentationLoss:
    """A loss of probabilities as one of logits, for classes that exclude each other."""
    return lambda logits, mask, **options: loss(jax.nn.softmax(logits), mask, **options)


sigmoid_dice, softmax_dice = overlapping(soft_dice), exclusive(soft_dice)
sigmoid_tversky, softmax_tversky = overlapping(soft_tversky), exclusive(soft_tversky)


def added(first: SegmentationLoss, second: SegmentationLoss) -> SegmentationLoss:
    """The sum of two losses: cross-entropy is well conditioned, Dice is the reported metric."""
    return lambda logits, mask, **options: (
        first(logits, mask, **options) + second(logits, mask, **options)
    )


LOSSES: dict[str, SegmentationLoss] = {
    "bce": binary_cross_entropy,
    "dice": sigmoid_dice,
    "bce_dice": added(binary_cross_entropy, sigmoid_dice),
    "focal": sigmoid_focal,
    "tversky": sigmoid_tversky,
    "ce": cross_entropy,
    "softmax_dice": softmax_dice,
    "ce_dice": added(cross_entropy, softmax_dice),
    "softmax_focal": softmax_focal,
    "softmax_tversky": softmax_tversky,
}
"""Losses by name; those in EXCLUSIVE are for classes that exclude each other."""
EXCLUSIVE = ("ce", "softmax_dice", "ce_dice", "softmax_focal", "softmax_tversky")


def _mean(values: Float[Array, "b *d"], weights: Float[Array, "b *d"] | None) -> Float[Array, "b"]:
    """Weighted mean (b,) over all other axes; 0 for an example whose weights are all 0."""
    axes = tuple(range(1, values.ndim))
    if weights is None:
        return jnp.mean(values, axis=axes)
    total = jnp.sum(weights, axis=axes)
    return jnp.sum(weights * values, axis=axes) / jnp.where(total > 0, total, 1)


def _overlapping_weights(mask: Masks, known: Known, weights: Weights) -> Masks | None:
    """Weight of each pixel for each class that may overlap others; None if all are equal."""
    if known is None and weights is None:
        return None
    shown = jnp.ones_like(mask) if known is None else known[..., None] * jnp.ones_like(mask)
    if weights is None:
        return shown
    return shown * jnp.where(mask > 0, weights[None, None, None, 1:], weights[0])


def _exclusive_weights(mask: Masks, known: Known, weights: Weights) -> Float[Array, "b h w"] | None:
    """Weight of each pixel by its one class; None if all are equal."""
    if weights is None:
        return known
    of_class = jnp.sum(mask * weights[None, None, None], axis=-1)
    return of_class if known is None else of_class * known


def _only(known: Known, *arrays: Float[Array, "b h w k"]) -> tuple[Float[Array, "b h w k"], ...]:
    """Sets pixels that are not known to 0."""
    return arrays if known is None else tuple(array * known[..., None] for array in arrays)


def _over_classes(values: Float[Array, "b k"], weights: Weights) -> Float[Array, "b"]:
    if weights is None:
        return jnp.mean(values, axis=-1)
    return jnp.sum(values * weights[None], axis=-1) / jnp.sum(weights)
