# SPDX-License-Identifier: Apache-2.0
"""How well a matrix of scores ranks documents for queries, both ways, with intervals.

Rows are queries, columns documents; a high score is a good one. Documents of equal score are ranked
in random order, of which each metric is the expectation, so that a constant score is worth as much
as chance. A query without a relevant document has no value, NaN, and is left out and counted. For
labelled pairs without queries, see `detection.auroc`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, Real

from scorejax.choices import require
from scorejax.evaluate.detection import Interval, bootstrap_interval

PerQuery = Float[np.ndarray, "q"]
SCORES_AT_ONCE = 2**22
"""Scores whose ranks are in memory together, which takes about 50 bytes for each."""


class Ranks(NamedTuple):
    """For each document the numbers of candidates of higher score, and of equal score with it."""

    above: Int[np.ndarray, "q d"]
    tied: Int[np.ndarray, "q d"]
    """1 or more: a document ties with itself."""
    relevant: Bool[np.ndarray, "q d"]
    num_candidates: Int[np.ndarray, "q"]

    @property
    def num_relevant(self) -> Int[np.ndarray, "q"]:
        return self.relevant.sum(axis=1)

    def worth(self, cumulative: Float[np.ndarray, "d+1"], k: int | None) -> PerQuery:
        """Expected sum over relevant documents of what each rank up to k is worth.

        `cumulative` has the worth of the first 0, 1, .. d ranks.
        """
        num_ranks = np.arange(len(cumulative))
        cut = cumulative if k is None else cumulative[np.minimum(num_ranks, k)]
        mean = (cut[self.above + self.tied] - cut[self.above]) / self.tied
        return np.sum(mean, axis=1, where=self.relevant)


def rank(
    scores: Real[ArrayLike, "q d"],
    relevant: Bool[ArrayLike, "q d"],
    *,
    candidates: Bool[ArrayLike, "q d"] | None = None,
) -> Ranks:
    """Ranks the candidates of each query, by default all documents.

    Raises: ValueError unless shapes agree, scores of candidates are finite, relevant documents are
    candidates, and there is a query and a document.
    """
    return _ranks(*_checked(scores, relevant, candidates))


def _checked(
    scores: Real[ArrayLike, "q d"],
    relevant: Bool[ArrayLike, "q d"],
    candidates: Bool[ArrayLike, "q d"] | None,
) -> tuple[Real[np.ndarray, "q d"], Bool[np.ndarray, "q d"], Bool[np.ndarray, "q d"]]:
    """Scores, relevant documents and candidates as arrays. Raises: as `rank`."""
    s, relevant = np.asarray(scores), np.asarray(relevant)
    among = np.broadcast_to(True, s.shape) if candidates is None else np.asarray(candidates)
    if s.ndim != 2 or not s.size or not s.shape == relevant.shape == among.shape:
        raise ValueError(
            "scores, relevant and candidates need one shape (queries, documents); got "
            f"{s.shape}, {relevant.shape} and {among.shape}"
        )
    if relevant.dtype != bool or among.dtype != bool:
        raise ValueError(
            f"relevant and candidates need booleans; got {relevant.dtype} and {among.dtype}"
        )
    for problem, wrong in (
        ("scores need to be finite; that of", among & ~np.isfinite(s)),
        ("relevant documents need to be candidates;", relevant & ~among),
    ):
        if wrong.any():
            q, d = np.argwhere(wrong)[0]
            raise ValueError(f"{problem} document {d} of query {q} is not")
    return s, relevant, among


def _ranks(s: np.ndarray, relevant: np.ndarray, among: np.ndarray) -> Ranks:
    descending = -np.where(among, s.astype(np.float64), -np.inf)
    above, reached = np.empty(s.shape, np.int64), np.empty(s.shape, np.int64)
    for q, row in enumerate(descending):
        ordered = np.sort(row)
        above[q] = np.searchsorted(ordered, row, side="left")
        reached[q] = np.searchsorted(ordered, row, side="right")
    return Ranks(above, reached - above, relevant, among.sum(axis=1))


def ndcg(ranks: Ranks, k: int | None = None) -> PerQuery:
    """Discounted cumulative gain 1 / log2(1 + rank) of the first k, divided by the best one.

    Raises: ValueError unless k is at least 1, or None for all.
    """
    _require_rank(k)
    num_documents = ranks.above.shape[1]
    gains = np.append(0.0, np.cumsum(1 / np.log2(np.arange(2, num_documents + 2))))
    best = gains[np.minimum(ranks.num_relevant, num_documents if k is None else k)]
    return ranks.worth(gains, k) / _or_nan(best)


def recall(ranks: Ranks, k: int) -> PerQuery:
    """Fraction of the relevant documents among the first k. Raises: ValueError unless k >= 1."""
    _require_rank(k)
    counts = np.arange(ranks.above.shape[1] + 1.0)
    return ranks.worth(counts, k) / _or_nan(ranks.num_relevant)


def reciprocal_rank(ranks: Ranks) -> PerQuery:
    """1 / rank of the first relevant document."""
    above = np.where(ranks.relevant, ranks.above, ranks.above.shape[1]).min(axis=1)
    group = ranks.above == above[:, None]
    sizes, num_relevant = group.sum(axis=1), (group & ranks.relevant).sum(axis=1)
    result = np.full(len(above), np.nan)
    for q in np.flatnonzero(ranks.num_relevant):
        # P(t documents of its group are before the first relevant one), for t = 0, 1, ..
        num, others = sizes[q], sizes[q] - num_relevant[q]
        at_least = np.cumprod((others - np.arange(others)) / (num - np.arange(others)))
        exactly = np.append(1.0, at_least) - np.append(at_least, 0.0)
        result[q] = np.sum(exactly / (above[q] + 1 + np.arange(others + 1)))
    return result


def auc(ranks: Ranks) -> PerQuery:
    """P(a relevant document scores higher than another) + P(they score the same) / 2.

    NaN too for a query whose candidates are all relevant.
    """
    num = ranks.num_relevant.astype(np.float64)
    below = ranks.num_candidates[:, None] - ranks.above - (ranks.tied + 1) / 2
    won = np.sum(below, axis=1, where=ranks.relevant) - num * (num - 1) / 2
    return won / _or_nan(num * (ranks.num_candidates - num))


def average_precision(ranks: Ranks) -> PerQuery:
    """Mean of the share of relevant documents up to the rank of each relevant one."""
    result = np.full(len(ranks.above), np.nan)
    for q in np.flatnonzero(ranks.num_relevant):
        above, tied = (array[q][ranks.relevant[q]] for array in (ranks.above, ranks.tied))
        first, index, counts = np.unique(above, return_index=True, return_counts=True)
        earlier, total = np.cumsum(counts) - counts, 0.0
        for start, num, relevant, before in zip(first, tied[index], counts, earlier, strict=True):
            # Each place of a group of ties holds a relevant document with probability
            # relevant / num, and the places before it then an even share of the others.
            place = np.arange(num)
            others = place * (relevant - 1) / max(num - 1, 1)
            total += relevant / num * np.sum((before + 1 + others) / (start + 1 + place))
        result[q] = total / len(above)
    return result


class Ranking(NamedTuple):
    """Means over queries with intervals, by the name of the metric."""

    metrics: dict[str, Interval]
    num_queries: int
    """Queries with a relevant document."""
    num_left_out: int
    """Queries without one."""


def evaluate(
    scores: Real[ArrayLike, "q d"],
    relevant: Bool[ArrayLike, "q d"],
    *,
    ks: Sequence[int] = (1, 5, 10),
    candidates: Bool[ArrayLike, "q d"] | None = None,
    groups: Int[ArrayLike, "q"] | None = None,
    num_resamples: int = 999,
    level: float = 0.95,
    seed: int = 0,
) -> Ranking:
    """Metrics "mrr", "map", "auc", "ndcg@k" and "recall@k" for each k, by bootstrap over queries.

    Queries of one group, such as resumes of one person, are resampled together; by default each is
    independent. The ends are NaN for a single group. Ranks of about `SCORES_AT_ONCE` scores are in
    memory at a time.
    Raises: ValueError as `rank`, or if no query has a relevant document.
    """
    arrays = _checked(scores, relevant, candidates)
    at_once = max(SCORES_AT_ONCE // arrays[0].shape[1], 1)
    blocks = [
        _values(_ranks(*(array[start : start + at_once] for array in arrays)), ks)
        for start in range(0, len(arrays[0]), at_once)
    ]
    values = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    num = int(np.count_nonzero(arrays[1].any(axis=1)))
    if not num:
        raise ValueError("ranking needs a query with a relevant document; there is none")
    of_query = np.arange(len(values["mrr"])) if groups is None else np.asarray(groups)
    if of_query.shape != values["mrr"].shape:
        raise ValueError(f"groups need one for each query; got {of_query.shape}")
    options = {"num_resamples": num_resamples, "level": level, "seed": seed}
    metrics = {name: _interval(v, of_query, **options) for name, v in values.items()}
    return Ranking(metrics, num, len(values["mrr"]) - num)


def _values(ranks: Ranks, ks: Sequence[int]) -> dict[str, PerQuery]:
    values = {"mrr": reciprocal_rank(ranks), "map": average_precision(ranks), "auc": auc(ranks)}
    for k in ks:
        values |= {f"ndcg@{k}": ndcg(ranks, k), f"recall@{k}": recall(ranks, k)}
    return values


def two_sided(
    scores: Real[ArrayLike, "r j"],
    relevant: Bool[ArrayLike, "r j"],
    *,
    candidates: Bool[ArrayLike, "r j"] | None = None,
    **options,
) -> dict[str, Ranking]:
    """`evaluate` of jobs ranked for each resume, "resume", and of resumes for each job, "job".

    Options are those of `evaluate`, for both sides. Raises: as `evaluate`.
    """
    turned = None if candidates is None else np.asarray(candidates).T
    return {
        "resume": evaluate(scores, relevant, candidates=candidates, **options),
        "job": evaluate(np.asarray(scores).T, np.asarray(relevant).T, candidates=turned, **options),
    }


def _require_rank(k: int | None) -> None:
    require({"k": k}, ("k",), lambda value: value is None or value >= 1, "to be at least 1")


def _or_nan(values: np.ndarray) -> Float[np.ndarray, "q"]:
    """The values, NaN where they are 0, by which a query without relevant documents is divided."""
    return np.where(values > 0, values, np.nan)


def _interval(
    values: PerQuery, groups: np.ndarray, *, num_resamples: int, level: float, seed: int
) -> Interval:
    """Bootstrap interval of the mean of the finite values; whole groups are drawn."""
    finite = np.isfinite(values)
    if not finite.any():
        return Interval(np.nan, np.nan, np.nan)
    _, of_group = np.unique(groups[finite], return_inverse=True)
    sums, counts = np.bincount(of_group, weights=values[finite]), np.bincount(of_group)
    if len(sums) == 1:
        return Interval(float(sums[0] / counts[0]), np.nan, np.nan)
    return bootstrap_interval(
        lambda total, failed, weights: float(total.sum() / weights.sum()),
        sums,
        np.zeros(len(sums), bool),
        weights=counts,
        stratified=False,
        num_resamples=num_resamples,
        level=level,
        seed=seed,
    )
