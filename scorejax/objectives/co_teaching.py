# SPDX-License-Identifier: Apache-2.0
"""Co-teaching: two learners, each of which weighs the rows that the other one trains on.

Rows with a large loss are more often mislabelled. A learner that judged its own rows would confirm
its own errors; its peer makes other ones. A learner is any function (rows) -> losses (b,) with its
parameters bound: a classifier, a density, a score model. Weights carry no gradient, so that a
learner's update does not depend on how its peer's training loss is scaled; clip gradients of each
learner apart, as `optax.multi_transform` does, or their common norm couples them again.

Ranks and halves are those of the rows that a call sees. In a training step that is mapped over
devices, or that accumulates gradients, these are the rows of one shard.

Sources: exchange of small-loss rows: Han et al. 2018, arXiv:1804.06872, Algorithm 1. Weights, and
rows in two disjoint halves: Bian et al. 2020 (MV-CoN), arXiv:2009.13299, and its published code.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from scorejax.choices import require_known
from scorejax.typing import Array, Batch, Float, Int

RowLosses = Callable[[Batch], Float[Array, "b"]]
"""rows -> the loss of each row, under a learner with its parameters bound."""
Weigh = Callable[[Float[Array, "b"], Batch], Float[Array, "b"]]
"""(losses of the peer, rows) -> weights in [0, 1]."""

SCOPES = ("negatives", "all")
EXCHANGES = ("disjoint", "same")


def peer_weights(
    losses: Float[Array, "b"], labels: Float[Array, "b"] | None, *, strength: float = 0.2
) -> Float[Array, "b"]:
    """Weights clip(1 + strength (label - 1) loss, 0, 1): positives count fully, a negative the less
    the larger its peer's loss.

    Positives are pairs that accepted each other; a negative may be a pair that never met. Without
    labels all rows count as negatives. The published code multiplies the labels by the weights,
    without the clip, see `published_targets`. Raises: ValueError unless strength >= 0.
    """
    _require_strength(strength)
    labels = jnp.zeros_like(losses) if labels is None else labels
    return jnp.clip(1 + strength * (labels - 1) * jax.lax.stop_gradient(losses), 0, 1)


def select(
    losses: Float[Array, "b"],
    labels: Float[Array, "b"] | None,
    *,
    keep: float | Float[Array, ""],
    scope: str = "negatives",
) -> Float[Array, "b"]:
    """Weights 1 of the floor(keep * n) rows of smallest loss among n candidates, 0 of the others.

    Candidates are the rows with a label below 1/2, or with scope "all" every row; other rows have
    weight 1. Without labels every row is a candidate. Of equal losses the earlier row is kept; a
    loss that is not a number counts as the largest. Shapes are static.
    Raises: ValueError for an unknown scope, or unless 0 <= keep <= 1.
    """
    require_known("scope", scope, SCOPES)
    if isinstance(keep, int | float) and not 0 <= keep <= 1:
        raise ValueError(f"keep needs to lie in [0, 1]; got {keep}.")
    candidate = jnp.full(losses.shape, True) if scope == "all" or labels is None else labels < 0.5
    # Rates such as 0.9 are not exact in binary: 0.9 * n must not fall below the integer it means.
    slack = 1 + 4 * jnp.finfo(losses.dtype).eps
    num_kept = jnp.floor(keep * jnp.sum(candidate) * slack)
    order = jnp.lexsort((jax.lax.stop_gradient(losses), ~candidate))  # candidates first
    return jnp.where(candidate, jnp.argsort(order) < num_kept, True).astype(losses.dtype)


def keep_rate(step: int | Int[Array, ""], *, noise_rate: float, warmup: int) -> Float[Array, ""]:
    """The share R = 1 - noise_rate * min(step / warmup, 1) of rows to keep at a step.

    Networks learn regular rows first, so that early losses do not tell noise yet.
    Raises: ValueError unless 0 <= noise_rate < 1 and warmup >= 1.
    Source: arXiv:1804.06872, Section 4, with its c = 1.
    """
    if not 0 <= noise_rate < 1:
        raise ValueError(f"noise_rate needs to lie in [0, 1); got {noise_rate}.")
    if warmup < 1:
        raise ValueError(f"warmup needs to be at least 1 step; got {warmup}.")
    return 1 - noise_rate * jnp.minimum(jnp.asarray(step) / warmup, 1)


class Lesson(NamedTuple):
    """Rows that a learner trains on, and their weights (b,), which carry no gradient."""

    rows: Batch
    weights: Array


def exchange_rows(
    judge_a: RowLosses,
    judge_b: RowLosses,
    batch: Batch,
    *,
    weigh: Weigh,
    exchange: str = "disjoint",
) -> tuple[Lesson, Lesson]:
    """The lessons of A and of B, each weighed by the peer.

    "disjoint": A trains on the second half of the batch, weighed by B, and B on the first, weighed
    by A. "same": both train on all rows, as in the original co-teaching.
    Raises: ValueError for an unknown exchange, or if the rows to be halved are odd in number.
    """
    require_known("exchange", exchange, EXCHANGES)
    for_b, for_a = (batch, batch) if exchange == "same" else _halves(batch)
    lesson = lambda judge, rows: Lesson(
        rows, jax.lax.stop_gradient(weigh(jax.lax.stop_gradient(judge(rows)), rows))
    )
    return lesson(judge_b, for_a), lesson(judge_a, for_b)


def _halves(batch: Batch) -> tuple[Batch, Batch]:
    num = len(jax.tree.leaves(batch)[0])
    if num % 2:
        raise ValueError(f"disjoint halves need an even number of rows; got {num} in a shard.")
    half = num // 2
    return jax.tree.map(lambda a: a[:half], batch), jax.tree.map(lambda a: a[half:], batch)


def weighted_mean(losses: Float[Array, "b"], weights: Float[Array, "b"]) -> Float[Array, ""]:
    """sum w l / sum w; 0 if all weights are 0."""
    return jnp.sum(weights * losses) / jnp.maximum(jnp.sum(weights), jnp.finfo(weights.dtype).tiny)


def co_teaching_loss(
    losses_a: RowLosses,
    losses_b: RowLosses,
    batch: Batch,
    *,
    weigh: Weigh,
    exchange: str = "disjoint",
    judge_a: RowLosses | None = None,
    judge_b: RowLosses | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Sum of both learners' weighted mean losses on the rows of `exchange_rows`, and metrics.

    The judges are by default the learners themselves; others may leave out dropout, say. A learner
    with running statistics calls `exchange_rows` and `weighted_mean` itself. Metrics are each
    learner's loss and the mean weight of its rows. Raises: ValueError as `exchange_rows`.
    """
    # Where both train on the same rows a learner's two calls are one: the compiler merges them.
    lesson_a, lesson_b = exchange_rows(
        judge_a or losses_a, judge_b or losses_b, batch, weigh=weigh, exchange=exchange
    )
    loss_a = weighted_mean(losses_a(lesson_a.rows), lesson_a.weights)
    loss_b = weighted_mean(losses_b(lesson_b.rows), lesson_b.weights)
    kept = {"kept_a": jnp.mean(lesson_a.weights), "kept_b": jnp.mean(lesson_b.weights)}
    return loss_a + loss_b, {"loss_a": loss_a, "loss_b": loss_b, **kept}


def published_targets(
    losses: Float[Array, "b"], labels: Float[Array, "b"], *, strength: float = 0.2
) -> Float[Array, "b"]:
    """Targets label (1 + strength (label - 1) loss) that the published code trains towards.

    For labels 0 and 1 they are the labels: its re-weighting changes nothing, and its two learners
    train independently, each on a half of every batch. For comparisons only.
    Raises: ValueError unless strength >= 0.
    """
    _require_strength(strength)
    return labels * (1 + strength * (labels - 1) * jax.lax.stop_gradient(losses))


def _require_strength(strength: float) -> None:
    if not 0 <= strength < math.inf:
        raise ValueError(f"strength needs to be at least 0; got {strength}.")
