# SPDX-License-Identifier: Apache-2.0
"""Selective prediction with a bound on the risk of what is accepted (Learn-then-Test).

Each threshold is a hypothesis, "the mean loss of rows with a score at or above it exceeds the
target". Calibration rows give it a p-value, and a fixed-sequence test keeps the probability that
any true hypothesis is rejected below delta. A rejected one certifies its threshold.
Source: Angelopoulos et al. 2021, arXiv:2110.01052, on selective classification.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, Real
from scipy import special, stats

from scorejax.choices import require
from scorejax.density.hypothesis.arguments import require_lengths, require_level, score_array
from scorejax.density.hypothesis.multiple_testing import fixed_sequence

RiskPValue = Callable[[Float[np.ndarray, "k"], Int[np.ndarray, "k"], float], Float[np.ndarray, "k"]]
"""(sums of losses, numbers of rows, risk) -> p-values of "the mean loss exceeds the risk"."""


def clopper_pearson_p_value(
    total: Real[np.ndarray, "k"], num: Int[np.ndarray, "k"], risk: float
) -> Float[np.ndarray, "k"]:
    """P(Binomial(num, risk) <= total): exact for losses that are 0 or 1, such as mistakes."""
    return stats.binom.cdf(total, num, risk)


def hoeffding_bentkus_p_value(
    total: Real[np.ndarray, "k"], num: Int[np.ndarray, "k"], risk: float
) -> Float[np.ndarray, "k"]:
    """The smaller of Hoeffding's and Bentkus' bounds, for any losses in [0, 1].

    Source: arXiv:2110.01052, Hoeffding-Bentkus p-value.
    """
    mean = np.minimum(total / np.maximum(num, 1), risk)
    divergence = special.rel_entr(mean, risk) + special.rel_entr(1 - mean, 1 - risk)
    bentkus = math.e * stats.binom.cdf(np.ceil(total), num, risk)
    return np.minimum(np.exp(-num * divergence), np.minimum(bentkus, 1.0))


class Selection(NamedTuple):
    """The most permissive certified threshold, and what it accepts of the calibration rows."""

    threshold: float
    """Rows with a score at or above it are accepted; inf, which accepts none, if none is
    certified."""
    coverage: float
    """Accepted fraction."""
    risk: float
    """Mean loss of the accepted rows; NaN if none is accepted."""


def select_threshold(
    scores: Real[ArrayLike, "n"],
    losses: Real[ArrayLike, "n"] | Bool[ArrayLike, "n"],
    *,
    thresholds: Real[ArrayLike, "k"],
    risk: float,
    delta: float,
    p_value: RiskPValue = clopper_pearson_p_value,
    num_starts: int = 1,
) -> Selection:
    """Chooses a threshold so that P(mean loss of accepted rows > risk) <= delta.

    The probability is over independent calibration rows with losses in [0, 1]. The thresholds need
    to be fixed without these rows, quantiles of training scores say; they are tested from the
    highest down, until one fails. A threshold with less than log(delta) / log(1 - risk) rows above
    it never passes: let the highest expect twice as many, or start at several (`fixed_sequence`).
    Raises: ValueError if lengths differ, for a NaN, losses outside [0, 1] or neither 0 nor 1 under
    `clopper_pearson_p_value`, risk or delta outside (0, 1), or num_starts outside 1 .. k.
    """
    s, loss = score_array("scores", scores), score_array("losses", losses)
    levels = np.unique(score_array("thresholds", thresholds))[::-1]
    require_lengths(scores=s, losses=loss)
    require_level(risk=risk, delta=delta)
    in_range = lambda value: 1 <= value <= len(levels)
    require({"num_starts": num_starts}, ("num_starts",), in_range, f"to lie in 1 .. {len(levels)}")
    _require_losses(loss, only_zero_one=p_value is clopper_pearson_p_value)
    order = np.argsort(s)
    first = np.searchsorted(s[order], levels)
    num = len(s) - first
    total = np.append(np.cumsum(loss[order][::-1])[::-1], 0.0)[first]
    certified = np.flatnonzero(
        fixed_sequence(p_value(total, num, risk), delta, num_starts=num_starts)
    )
    if not len(certified):
        return Selection(math.inf, 0.0, math.nan)
    last = certified[-1]
    return Selection(float(levels[last]), float(num[last] / len(s)), float(total[last] / num[last]))


def _require_losses(loss: Float[np.ndarray, "n"], *, only_zero_one: bool) -> None:
    valid = np.isin(loss, (0, 1)) if only_zero_one else (loss >= 0) & (loss <= 1)
    if not valid.all():
        needs = "be 0 or 1; use hoeffding_bentkus_p_value" if only_zero_one else "lie in [0, 1]"
        row = np.argmin(valid)
        raise ValueError(f"losses need to {needs}; row {row} is {loss[row]}")
