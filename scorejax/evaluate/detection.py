# SPDX-License-Identifier: Apache-2.0
"""How well a score tells failures from normal examples, with intervals.

Every score is oriented so that a high one is normal: rows are flagged from the lowest score up, and
tied rows together. Failures are the positives: a true positive is a failure that is flagged. Much
of the literature on out-of-distribution detection takes normal examples as positives instead, which
`positive="normal"` does. Weights multiply rows: an integer weight is so many equal rows.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Real
from scipy import special, stats

from scorejax.choices import require, require_known
from scorejax.density.hypothesis.arguments import require_booleans, require_level

POSITIVE = ("failure", "normal")

Metric = Callable[..., float]
"""(scores (n,), failed (n,), weights=(n,) or None) -> number."""


def auroc(
    scores: Real[ArrayLike, "n"],
    failed: Bool[ArrayLike, "n"],
    *,
    weights: Real[ArrayLike, "n"] | None = None,
) -> float:
    """P(a normal score is higher than a failure's) + P(they are equal) / 2.

    Raises: ValueError if lengths differ, for a NaN, a weight that is negative or not finite, or
    unless there are failures and normal examples of positive weight.
    """
    found, false = _flagged(scores, failed, weights, "failure")
    area = np.trapezoid(np.append(0.0, found), np.append(0.0, false))
    return float(area / (found[-1] * false[-1]))


def average_precision(
    scores: Real[ArrayLike, "n"],
    failed: Bool[ArrayLike, "n"],
    *,
    positive: str = "failure",
    weights: Real[ArrayLike, "n"] | None = None,
) -> float:
    """Area under the precision-recall curve, by steps: AUPR of failures, or of normal examples.

    A score that says nothing has the fraction of positives. Raises: ValueError as `auroc`, or for
    an unknown `positive`.
    """
    found, false = _flagged(scores, failed, weights, positive)
    precision = found / np.maximum(found + false, np.finfo(np.float64).tiny)
    return float(np.sum(np.diff(found, prepend=0.0) * precision) / found[-1])


def fpr_at_tpr(
    scores: Real[ArrayLike, "n"],
    failed: Bool[ArrayLike, "n"],
    *,
    tpr: float = 0.95,
    positive: str = "failure",
    weights: Real[ArrayLike, "n"] | None = None,
) -> float:
    """Fraction of negatives flagged once at least a fraction `tpr` of the positives are (FPR95).

    By default, of the normal examples flagged if 95 % of the failures are. No interpolation.
    Raises: ValueError as `auroc`, for an unknown `positive`, or unless 0 < tpr <= 1.
    """
    require({"tpr": tpr}, ("tpr",), lambda value: 0 < value <= 1, "to lie in (0, 1]")
    found, false = _flagged(scores, failed, weights, positive)
    # Sums of weights such as 0.1 fall short of their fraction by some rounding.
    enough = found / found[-1] >= tpr * (1 - 1e-12)
    return float(false[np.argmax(enough)] / false[-1])


def detection_error(
    scores: Real[ArrayLike, "n"],
    failed: Bool[ArrayLike, "n"],
    *,
    weights: Real[ArrayLike, "n"] | None = None,
) -> float:
    """Smallest (FNR + FPR) / 2 over thresholds; at most 1/2. Raises: ValueError as `auroc`."""
    found, false = _flagged(scores, failed, weights, "failure")
    errors = (1 - found / found[-1] + false / false[-1]) / 2
    return float(min(errors.min(), 0.5))


class RiskCoverage(NamedTuple):
    """Accepted rows at each distinct score, from the highest score down."""

    thresholds: Float[np.ndarray, "k"]
    """Rows with a score at or above it are accepted."""
    coverage: Float[np.ndarray, "k"]
    """Accepted fraction of the rows."""
    risk: Float[np.ndarray, "k"]
    """Fraction of failures among the accepted rows."""


def risk_coverage(
    scores: Real[ArrayLike, "n"],
    failed: Bool[ArrayLike, "n"],
    *,
    weights: Real[ArrayLike, "n"] | None = None,
) -> RiskCoverage:
    """Risk-coverage curve of selective prediction; one class alone will do.

    Raises: ValueError as `auroc`, except that all rows may be of one kind.
    """
    s, failed, w = _rows(scores, failed, weights)
    s, failed, w = s[w > 0], failed[w > 0], w[w > 0]
    order, last = _distinct(-s)
    accepted = np.cumsum(w[order])[last]
    failures = np.cumsum((w * failed)[order])[last]
    return RiskCoverage(s[order][last], accepted / accepted[-1], failures / accepted)


def aurc(
    scores: Real[ArrayLike, "n"],
    failed: Bool[ArrayLike, "n"],
    *,
    weights: Real[ArrayLike, "n"] | None = None,
) -> float:
    """Area under the risk-coverage curve: mean over rows of the risk of accepting down to each.

    Raises: ValueError as `risk_coverage`. Source: Geifman et al. 2019, arXiv:1805.08206.
    """
    _, coverage, risk = risk_coverage(scores, failed, weights=weights)
    return float(np.sum(np.diff(coverage, prepend=0.0) * risk))


def excess_aurc(
    scores: Real[ArrayLike, "n"],
    failed: Bool[ArrayLike, "n"],
    *,
    weights: Real[ArrayLike, "n"] | None = None,
) -> float:
    """AURC less that of the best ranking, in which failures come last one after the other.

    A score with ties has an excess even if every failure is below every normal example.
    Raises: ValueError as `risk_coverage`. Source: arXiv:1805.08206.
    """
    _, failed, w = _rows(scores, failed, weights)
    best = np.empty(len(w))
    best[np.lexsort((w, failed))] = -np.arange(len(w))  # heavy failures last: the least area
    return aurc(scores, failed, weights=weights) - aurc(best, failed, weights=w)


class Interval(NamedTuple):
    """An estimate and the ends of its confidence interval."""

    estimate: float
    low: float
    high: float


def delong_interval(
    scores: Real[ArrayLike, "n"],
    failed: Bool[ArrayLike, "n"],
    *,
    weights: Real[ArrayLike, "n"] | None = None,
    level: float = 0.95,
) -> Interval:
    """Confidence interval of the AUROC from DeLong's variance, symmetric in its logit.

    Rows need to be independent, and are one observation each whatever their weight. If failures
    and normal examples are all apart, or all scores are equal, the variance is 0; the interval is
    then Clopper-Pearson's for as many pairs as have no row in common, a tie being half a success.
    It is too narrow with few of either kind and an AUROC near 1: at 0.96, the interval of 95 % has
    a coverage of 75 % (5 failures, 400 normal rows), 88 % (22, 400) or 94 % (100, 855).
    Raises: ValueError as `auroc`, unless there are two of each, or level is inside (0, 1).
    Source: DeLong et al. 1988, Biometrics 44(3); Sun & Xu 2014 for the cost O(n log n).
    """
    require_level(level=level)
    s, failed, w = _rows(scores, failed, weights)
    area = auroc(s, failed, weights=w)
    bad, good = _both(np.flatnonzero(failed & (w > 0)), np.flatnonzero(~failed & (w > 0)))
    apart = s[bad].max() < s[good].min() or s[good].max() < s[bad].min()
    tied = s[bad].min() == s[bad].max() == s[good].min() == s[good].max()
    if apart or tied:
        return Interval(area, *_clopper_pearson(area, min(len(bad), len(good)), level))
    variance = _variance_of_mean(_fraction_below(s[good], s[bad], w[bad]), w[good])
    variance += _variance_of_mean(_fraction_below(-s[bad], -s[good], w[good]), w[bad])
    reach = special.ndtri((1 + level) / 2) * np.sqrt(variance) / (area * (1 - area))
    low, high = special.expit(special.logit(area) + np.array([-reach, reach]))
    return Interval(area, float(low), float(high))


def bootstrap_interval(
    metric: Metric,
    scores: Real[ArrayLike, "n"],
    failed: Bool[ArrayLike, "n"],
    *,
    weights: Real[ArrayLike, "n"] | None = None,
    stratified: bool = True,
    num_resamples: int = 999,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap confidence interval of a metric of this module.

    Failures and normal examples are resampled apart, so that their numbers stay; set
    `stratified=False` for metrics that depend on the rate of failures, such as `aurc`. Rows need to
    be independent. Costs num_resamples + 1 metrics.
    Raises: ValueError as the metric, unless there are two of each (two rows, if not stratified),
    level is inside (0, 1) and num_resamples >= 1.
    """
    require_level(level=level)
    counts = {"num_resamples": num_resamples}
    require(counts, counts, lambda num: num >= 1, "to be at least 1")
    s, failed, w = _rows(scores, failed, weights)
    strata = [np.arange(len(s))]
    if stratified:
        strata = _both(np.flatnonzero(failed), np.flatnonzero(~failed))

    def of_rows(*chosen: Float[np.ndarray, "m"]) -> float:
        rows = np.concatenate(chosen).astype(np.int64)
        return metric(s[rows], failed[rows], weights=w[rows])

    estimate = of_rows(*strata)
    interval = stats.bootstrap(
        strata,
        of_rows,
        n_resamples=num_resamples,
        batch=max(1, 2_000_000 // len(s)),
        vectorized=False,
        paired=False,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(estimate, float(interval.low), float(interval.high))


def _rows(
    scores: Real[ArrayLike, "n"],
    failed: Bool[ArrayLike, "n"],
    weights: Real[ArrayLike, "n"] | None,
) -> tuple[Float[np.ndarray, "n"], Bool[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    s, failed = np.asarray(scores, np.float64), np.asarray(failed)
    w = np.ones(s.shape) if weights is None else np.asarray(weights, np.float64)
    if s.ndim != 1 or not s.shape == failed.shape == w.shape or not len(s):
        raise ValueError(
            f"scores, failed and weights need one shape (n,), n >= 1; got {s.shape}, "
            f"{failed.shape} and {w.shape}"
        )
    require_booleans(failed)
    if np.isnan(s).any():
        raise ValueError(f"scores need numbers; row {np.isnan(s).argmax()} is NaN")
    if not (np.isfinite(w) & (w >= 0)).all() or not w.any():
        raise ValueError("weights need to be finite and at least 0, not all 0")
    return s, failed, w


def _flagged(scores, failed, weights, positive: str) -> tuple[np.ndarray, np.ndarray]:
    """Weights of positives and negatives flagged at each distinct score, from the first flagged."""
    require_known("positive", positive, POSITIVE)
    s, failed, w = _rows(scores, failed, weights)
    normal_weight, failed_weight = w @ ~failed, w @ failed
    if not normal_weight or not failed_weight:
        missing = "failures" if normal_weight else "normal examples"
        raise ValueError(f"detection needs failures and normal examples; there are no {missing}")
    order, last = _distinct(s if positive == "failure" else -s)
    wanted = failed if positive == "failure" else ~failed
    found, false = (np.cumsum((w * side)[order])[last] for side in (wanted, ~wanted))
    return found, false


def _both(failures: np.ndarray, normal: np.ndarray) -> list[np.ndarray]:
    if min(len(failures), len(normal)) < 2:
        raise ValueError(
            "an interval needs at least 2 failures and 2 normal examples; got "
            f"{len(failures)} and {len(normal)}"
        )
    return [failures, normal]


def _distinct(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ascending order, and the last position in it of each distinct value."""
    order = np.argsort(values, kind="stable")
    ascending = values[order]
    return order, np.flatnonzero(np.append(ascending[1:] != ascending[:-1], True))


def _fraction_below(values: np.ndarray, reference: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Fraction, by weight, of the reference below each value; equal ones count one half."""
    order = np.argsort(reference, kind="stable")
    cumulative = np.append(0.0, np.cumsum(w[order])) / w.sum()
    ends = [np.searchsorted(reference[order], values, side=side) for side in ("left", "right")]
    return (cumulative[ends[0]] + cumulative[ends[1]]) / 2


def _clopper_pearson(share: float, num: int, level: float) -> tuple[float, float]:
    """Ends for a share of `num` trials, of which some may be half a success."""
    won, tail = share * num, (1 - level) / 2
    low = special.betaincinv(won, num - won + 1, tail) if won > 0 else 0.0
    high = special.betaincinv(won + 1, num - won, 1 - tail) if won < num else 1.0
    return float(low), float(high)


def _variance_of_mean(values: np.ndarray, w: np.ndarray) -> float:
    share = w / w.sum()
    return float(share**2 @ (values - share @ values) ** 2 / (1 - share @ share))
