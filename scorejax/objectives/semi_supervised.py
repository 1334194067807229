# SPDX-License-Identifier: Apache-2.0
"""Losses of classifiers on unlabelled rows, one number per row, and what goes with them.

Each asks that the prediction of a row does not change under a perturbation: under two random
augmentations (`pi_model`), between a student and the average of its past (`mean_teacher`), or under
the worst small step (`virtual_adversarial`). Training adds `ramp` times a weight times the loss to
the cross-entropy of labelled rows.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from scorejax.numerics import expand, norm_except_batch
from scorejax.random import Rng, draw_rows, normal, split

LogitsFn = Callable[[Float[Array, "b *d"]], Float[Array, "b k"]]
AugmentFn = Callable[[Rng, Float[Array, "b *d"]], Float[Array, "b *d"]]
"""(rng, x) -> randomly perturbed x of the same shape, each row by its own key."""


def squared_distance(
    logits: Float[Array, "b k"], target_logits: Float[Array, "b k"]
) -> Float[Array, "b"]:
    """Squared distance of two softmax distributions, summed over the classes; at most 2.

    Published code averages over the classes instead, which divides the loss by k.
    """
    return jnp.sum((jax.nn.softmax(logits) - jax.nn.softmax(target_logits)) ** 2, axis=1)


def kl_divergence(
    target_logits: Float[Array, "b k"], logits: Float[Array, "b k"]
) -> Float[Array, "b"]:
    """KL(softmax(target_logits) || softmax(logits)) in nats."""
    target = jax.nn.log_softmax(target_logits)
    return jnp.sum(jnp.exp(target) * (target - jax.nn.log_softmax(logits)), axis=1)


def pi_model(
    logits_fn: LogitsFn, rng: Rng, x: Float[Array, "b *d"], *, augment_fn: AugmentFn
) -> Float[Array, "b"]:
    """Squared distance between the predictions of two augmentations; both carry gradients.

    Source: Laine & Aila 2017, arXiv:1610.02242, Algorithm 1.
    """
    first, second = (logits_fn(augment_fn(key, x)) for key in split(rng))
    return squared_distance(first, second)


def mean_teacher(
    logits_fn: LogitsFn,
    teacher_fn: LogitsFn,
    rng: Rng,
    x: Float[Array, "b *d"],
    *,
    augment_fn: AugmentFn,
) -> Float[Array, "b"]:
    """Squared distance between student and teacher, each under an augmentation of its own.

    The teacher is the network with averaged parameters (`ema_params` of the training state); it
    carries no gradient. Source: Tarvainen & Valpola 2017, arXiv:1703.01780, Section 2.
    """
    student_rng, teacher_rng = split(rng)
    target = jax.lax.stop_gradient(teacher_fn(augment_fn(teacher_rng, x)))
    return squared_distance(logits_fn(augment_fn(student_rng, x)), target)


def virtual_adversarial(
    logits_fn: LogitsFn,
    rng: Rng,
    x: Float[Array, "b *d"],
    *,
    eps: float,
    num_iterations: int = 1,
) -> Float[Array, "b"]:
    """KL of the predictions at x and at x + eps d, with d `worst_direction` (VAT).

    Neither d nor the prediction at x carries a gradient. Raises: ValueError unless eps > 0.
    Source: Miyato et al. 2018, arXiv:1704.03976, Eqs. 5-9.
    """
    if not 0 < eps < math.inf:
        raise ValueError(f"virtual adversarial training needs eps > 0; got {eps}.")
    direction = worst_direction(logits_fn, rng, x, num_iterations=num_iterations)
    moved = x + eps * jax.lax.stop_gradient(direction)
    return kl_divergence(jax.lax.stop_gradient(logits_fn(x)), logits_fn(moved))


def worst_direction(
    logits_fn: LogitsFn, rng: Rng, x: Float[Array, "b *d"], *, num_iterations: int = 1
) -> Float[Array, "b *d"]:
    """Directions of length 1 along which the prediction changes most, by power iteration.

    The second derivative of the KL divergence at x is J^T (diag p - p p^T) J, with p the
    probabilities and J the Jacobian of the logits. An iteration multiplies by it exactly, at the
    price of the published difference quotient, which loses digits in single precision: it divides
    a difference of probabilities by a small step. Raises: ValueError unless num_iterations >= 1.
    Source: arXiv:1704.03976, Eqs. 11-14.
    """
    if num_iterations < 1:
        raise ValueError(f"a power iteration needs num_iterations >= 1; got {num_iterations}.")
    logits, push = jax.linearize(logits_fn, x)
    pull = jax.linear_transpose(push, x)
    probability = jax.nn.softmax(logits)

    def iterate(direction: Array, _: None) -> tuple[Array, None]:
        moved = push(direction)
        mean = jnp.sum(probability * moved, axis=1, keepdims=True)
        (product,) = pull(probability * (moved - mean))
        return _unit(product), None

    start = _unit(normal(rng, x.shape, x.dtype))
    return jax.lax.scan(iterate, start, length=num_iterations)[0]


def _unit(x: Float[Array, "b *d"]) -> Float[Array, "b *d"]:
    # Divided by the largest entry first: squares of products with small probabilities underflow.
    largest = jnp.max(jnp.abs(x.reshape(len(x), -1)), axis=1)
    x = x / expand(jnp.where(largest > 0, largest, 1.0), x)
    size = norm_except_batch(x)
    return x / expand(jnp.where(size > 0, size, 1.0), x)


def ramp(t: Float[Array, "*s"] | float) -> Array:
    """Weight exp(-5 (1 - t)^2) of the unlabelled loss at the share t of the ramp; 1 from t = 1.

    Source: arXiv:1610.02242, Section 2.
    """
    return jnp.exp(-5 * (1 - jnp.clip(t, 0, 1)) ** 2)


def sharpen(probability: Float[Array, "b k"], *, temperature: float = 0.5) -> Float[Array, "b k"]:
    """p^(1 / T) / sum p^(1 / T) by row. Raises: ValueError unless T > 0.

    Source: Berthelot et al. 2019 (MixMatch), arXiv:1905.02249, Eq. 7.
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"sharpening needs temperature > 0; got {temperature}.")
    # As a softmax, powers of small probabilities do not underflow all at once.
    return jax.nn.softmax(jnp.log(probability) / temperature, axis=1)


def mixup_weights(rng: Rng, num: int, *, alpha: float = 0.75) -> Float[Array, "num"]:
    """Weights max(w, 1 - w), w ~ Beta(alpha, alpha), of each row against its partner.

    The larger weight stays with the row itself, so that its mix is nearer to it than to its
    partner. Raises: ValueError unless alpha > 0. Source: arXiv:1905.02249, Eqs. 8-9.
    """
    if not 0 < alpha < math.inf:
        raise ValueError(f"mixup needs alpha > 0; got {alpha}.")
    beta = lambda key, shape: jax.random.beta(key, alpha, alpha, shape)
    weights = draw_rows(beta, rng, (num,))
    return jnp.maximum(weights, 1 - weights)
