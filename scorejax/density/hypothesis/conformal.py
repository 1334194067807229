# SPDX-License-Identifier: Apache-2.0
"""Conformal p-values: ranks of scores among held-out calibration scores.

If a score is exchangeable with the calibration scores, P(p <= a) <= a. It is the calibration set
that says for whom: all held-out rows, correctly classified ones, or those of one group. Rows that
the density was trained on are not exchangeable with new ones, and nothing is promised of how many
failures are found. Source: Bates et al. 2021, arXiv:2104.08279.

A threshold flags the scores below it. Given its calibration set, it flags a random fraction of
normal scores (`FalseAlarmLaw`); the marginal threshold bounds its mean, the training-conditional
one bounds it with a chosen probability.
"""

import bisect
import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Real, Shaped
from scipy import special, stats

from scorejax.choices import require
from scorejax.density.hypothesis.arguments import (
    p_value_array,
    require_lengths,
    require_level,
    score_array,
)
from scorejax.random import Rng, draw_rows


def conformal_p_values(
    calibration: Real[ArrayLike, "n"], scores: Real[ArrayLike, "m"], *, rng: Rng | None = None
) -> Float[np.ndarray, "m"]:
    """Conformal p-values (1 + #{c <= s}) / (n + 1) of scores s; a low score has a small one.

    With `rng`, one key or one for each score, they are (#{c < s} + U (1 + #{c = s})) / (n + 1) with
    U uniform in (0, 1), and exactly uniform, ties or not. p-values of one calibration set are
    dependent: positively, as `benjamini_hochberg` allows.
    Raises: ValueError for a NaN, or if there is no calibration score.
    """
    s = score_array("scores", scores, least=0)
    return _p_values(score_array("calibration", calibration), s, _draws(rng, len(s)))


def mondrian_p_values(
    calibration: Real[ArrayLike, "n"],
    scores: Real[ArrayLike, "m"],
    *,
    calibration_groups: Shaped[ArrayLike, "n"],
    groups: Shaped[ArrayLike, "m"],
    rng: Rng | None = None,
) -> Float[np.ndarray, "m"]:
    """Conformal p-values inside each group, predicted classes say: P(p <= a | group) <= a.

    Raises: ValueError as `conformal_p_values`, for a group without calibration scores, or if scores
    and groups differ in length.
    """
    c = score_array("calibration", calibration)
    s = score_array("scores", scores, least=0)
    calibration_groups, groups = np.asarray(calibration_groups), np.asarray(groups)
    require_lengths(calibration=c, calibration_groups=calibration_groups)
    require_lengths(scores=s, groups=groups)
    missing = np.setdiff1d(groups, calibration_groups)
    if len(missing):
        raise ValueError(f"calibration needs scores of each group; group {missing[0]} has none")
    u, p = _draws(rng, len(s)), np.empty(len(s))
    for group in np.unique(groups):
        rows = groups == group
        p[rows] = _p_values(c[calibration_groups == group], s[rows], None if u is None else u[rows])
    return p


def two_sided_p_values(
    calibration: Real[ArrayLike, "n"], scores: Real[ArrayLike, "m"], *, rng: Rng | None = None
) -> Float[np.ndarray, "m"]:
    """Conformal p-values that are small for scores too low or too high, min(1, 2 min(p, p')).

    p is that of the score and p' that of its negative. A constant image may have a log-density far
    above any natural one. Raises: ValueError as `conformal_p_values`.
    """
    c = score_array("calibration", calibration)
    s = score_array("scores", scores, least=0)
    u = _draws(rng, len(s))
    # From 1 - U for the negatives, p' = 1 - p, and the combination is again exactly uniform.
    return bonferroni(_p_values(c, s, u), _p_values(-c, -s, None if u is None else 1 - u))


def bonferroni(*p_values: Real[ArrayLike, "m"]) -> Float[np.ndarray, "m"]:
    """Combines k p-values of each row into the p-value min(1, k min p), under any dependence.

    Each argument has the p-values (m,) of one test.
    Raises: ValueError if there is none, one is outside [0, 1], or lengths differ.
    """
    if not p_values:
        raise ValueError("bonferroni needs at least one array of p-values; got none")
    arrays = [p_value_array(p) for p in p_values]
    require_lengths(**{f"p_values {i}": array for i, array in enumerate(arrays)})
    smallest = np.min(arrays, axis=0)
    return np.minimum(1.0, len(p_values) * smallest)


def marginal_rank(num_calibration: int, alpha: float) -> int:
    """Largest rank l with l / (n + 1) <= alpha; 0 if n scores are too few for alpha.

    Raises: ValueError unless n >= 1 and alpha is inside (0, 1).
    """
    _require_promise(num_calibration, alpha=alpha)
    # floor(alpha (n + 1)) would be 28 for alpha = .29, n = 99, where 29 / 100 <= .29 holds.
    rank = round(alpha * (num_calibration + 1))
    return rank if rank / (num_calibration + 1) <= alpha else rank - 1


def training_conditional_rank(num_calibration: int, alpha: float, *, delta: float) -> int:
    """Largest rank l whose false-alarm rate exceeds alpha with probability delta at most.

    0 if n scores are too few. Raises: ValueError unless n >= 1 and both are inside (0, 1).
    """
    _require_promise(num_calibration, alpha=alpha, delta=delta)
    n = num_calibration
    quantile = lambda rank: special.betaincinv(rank, n + 1 - rank, 1 - delta)
    return bisect.bisect_right(range(1, n + 1), alpha, key=quantile)


def marginal_threshold(calibration: Real[ArrayLike, "n"], alpha: float) -> float:
    """Threshold that flags, as s < threshold, the scores with a conformal p-value <= alpha.

    P(flag) <= alpha on average over calibration sets. -inf, which flags nothing, if there are too
    few scores (`smallest_alpha`). Raises: ValueError as `conformal_p_values` and `marginal_rank`.
    """
    c = score_array("calibration", calibration)
    return _order_statistic(c, marginal_rank(len(c), alpha))


def training_conditional_threshold(
    calibration: Real[ArrayLike, "n"], alpha: float, *, delta: float
) -> float:
    """Threshold with P(flag | calibration set) <= alpha, except with probability delta.

    Probability is over calibration sets of independent rows. -inf, which flags nothing, if there
    are too few scores. Raises: ValueError as `conformal_p_values` and `training_conditional_rank`.
    Source: arXiv:2104.08279, calibration-conditional p-values, here at one level alpha.
    """
    c = score_array("calibration", calibration)
    return _order_statistic(c, training_conditional_rank(len(c), alpha, delta=delta))


@dataclasses.dataclass(frozen=True)
class FalseAlarmLaw:
    """Law, over calibration sets, of the fraction of normal scores below the rank-th lowest.

    It is Beta(rank, n + 1 - rank) for independent scores without ties, and 0 at rank 0.
    """

    rank: int
    num_calibration: int

    def __post_init__(self) -> None:
        in_range = lambda rank: 0 <= rank <= self.num_calibration
        require(vars(self), ("rank",), in_range, f"to lie in 0 .. {self.num_calibration}")

    @property
    def parameters(self) -> tuple[int, int]:
        """Parameters of the Beta law."""
        return self.rank, self.num_calibration + 1 - self.rank

    @property
    def mean(self) -> float:
        """Probability of a false alarm."""
        return self.rank / (self.num_calibration + 1)

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Central interval of the rate."""
        require_level(level=level)
        if not self.rank:
            return 0.0, 0.0
        low, high = stats.beta.interval(level, *self.parameters)
        return float(low), float(high)

    def count_interval(self, num_scores: int, level: float = 0.95) -> tuple[int, int]:
        """Central interval of the number flagged among normal scores, which is beta-binomial."""
        require_level(level=level)
        if not self.rank:
            return 0, 0
        low, high = stats.betabinom.interval(level, num_scores, *self.parameters)
        return int(low), int(high)


def false_alarm_law(
    num_calibration: int, alpha: float, *, delta: float | None = None
) -> FalseAlarmLaw:
    """Law of the marginal threshold's rate; with delta, of the training-conditional one's.

    Raises: ValueError as `marginal_rank` or `training_conditional_rank`.
    """
    if delta is None:
        return FalseAlarmLaw(marginal_rank(num_calibration, alpha), num_calibration)
    rank = training_conditional_rank(num_calibration, alpha, delta=delta)
    return FalseAlarmLaw(rank, num_calibration)


def smallest_alpha(num_calibration: int, *, delta: float | None = None) -> float:
    """Smallest level at which n calibration scores can flag anything: the threshold is not -inf.

    1 / (n + 1) for the marginal promise; 1 - delta^(1 / n) for the training-conditional one.
    Raises: ValueError unless n >= 1 and delta is inside (0, 1).
    """
    if delta is None:
        _require_promise(num_calibration)
        return 1 / (num_calibration + 1)
    _require_promise(num_calibration, delta=delta)
    return -math.expm1(math.log(delta) / num_calibration)


def calibration_size(alpha: float, *, delta: float | None = None) -> int:
    """Smallest number of calibration scores that can flag anything at level alpha.

    Raises: ValueError unless alpha, and delta, are inside (0, 1).
    """
    if delta is None:
        require_level(alpha=alpha)
        size = max(round(1 / alpha) - 1, 1)
        return size if 1 / (size + 1) <= alpha else size + 1
    require_level(alpha=alpha, delta=delta)
    return math.ceil(math.log(delta) / math.log1p(-alpha))


def uniform(rng: Rng, num: int) -> Float[np.ndarray, "num"]:
    """Uniform draws in the open interval (0, 1), in double precision, by one key or `num` keys.

    Raises: ValueError for a seed or a NumPy generator, which are no keys.
    """
    if not isinstance(rng, jax.Array | np.ndarray):
        raise ValueError(f"rng needs a key: jax.random.key(0), say; got {rng!r}")
    draw = lambda key, shape: jax.random.uniform(key, shape, jnp.float32)
    # Multiples of 2^-23 moved off zero: neither p = 0 nor, of the other side, 1 - U = 0.
    return np.asarray(draw_rows(draw, rng, (num,)), np.float64) + 2.0**-24


def _p_values(
    calibration: Float[np.ndarray, "n"],
    scores: Float[np.ndarray, "m"],
    u: Float[np.ndarray, "m"] | None,
) -> Float[np.ndarray, "m"]:
    ordered = np.sort(calibration)
    at_most = np.searchsorted(ordered, scores, side="right")
    if u is None:
        return (1 + at_most) / (len(ordered) + 1)
    below = np.searchsorted(ordered, scores, side="left")
    return (below + u * (1 + at_most - below)) / (len(ordered) + 1)


def _draws(rng: Rng | None, num: int) -> Float[np.ndarray, "num"] | None:
    return None if rng is None else uniform(rng, num)


def _order_statistic(calibration: Float[np.ndarray, "n"], rank: int) -> float:
    return float(np.partition(calibration, rank - 1)[rank - 1]) if rank else -math.inf


def _require_promise(num_calibration: int, **levels: float) -> None:
    values = {"num_calibration": num_calibration}
    require(values, values, lambda num: num >= 1, "to be at least 1")
    require_level(**levels)
