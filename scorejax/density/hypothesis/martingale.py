# SPDX-License-Identifier: Apache-2.0
"""Alarms on a stream: martingales that bet against the uniformity of p-values.

While the stream is exchangeable with the calibration scores, a bettor's capital, 1 at the start,
ever reaches 1 / alpha with probability alpha at most (Ville's inequality): one may look at it after
every score. This needs p-values that are independent, as those of `online_p_values` are. p-values
against a fixed calibration set are not, and alarm more often than alpha.
Source: Vovk et al. 2021, arXiv:2102.10439.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Int, Real
from scipy import special

from scorejax.choices import choose, require
from scorejax.density.hypothesis.arguments import p_value_array, require_level, score_array
from scorejax.density.hypothesis.conformal import uniform
from scorejax.random import Rng


def online_p_values(
    rng: Rng, calibration: Real[ArrayLike, "n"], stream: Real[ArrayLike, "t"]
) -> Float[np.ndarray, "t"]:
    """Randomised conformal p-values of a stream, each among calibration and earlier scores.

    They are independent and uniform while the stream is exchangeable with the calibration scores.
    `rng` is one key, or one for each score. Costs O((n + t) log^2 t).
    Raises: ValueError for a NaN, no calibration score, or an empty stream.
    """
    c, s = np.sort(score_array("calibration", calibration)), score_array("stream", stream)
    earlier_below, earlier_at_most = _earlier(s)
    below = np.searchsorted(c, s, side="left") + earlier_below
    at_most = np.searchsorted(c, s, side="right") + earlier_at_most
    num = len(c) + np.arange(len(s)) + 1
    return (below + uniform(rng, len(s)) * (1 + at_most - below)) / num


def power_martingale(
    p_values: Real[ArrayLike, "t"], *, exponent: float = 0.5
) -> Float[np.ndarray, "t"]:
    """Logarithm of the capital after each p-value if every bet is e p^(e - 1), e = exponent.

    It grows on p-values that are small. Raises: ValueError unless the p-values lie in (0, 1], there
    is one at least, and the exponent is inside (0, 1).
    """
    require_level(exponent=exponent)
    surprise, bets = _surprise(p_values)
    return bets * math.log(exponent) + (1 - exponent) * surprise


def mixture_martingale(p_values: Real[ArrayLike, "t"]) -> Float[np.ndarray, "t"]:
    """Logarithm of the power martingale's capital, averaged over exponents uniform in (0, 1).

    It needs no choice of an exponent. Raises: ValueError unless the p-values lie in (0, 1] and
    there is one at least.
    """
    surprise, bets = _surprise(p_values)
    # The integral of e^t exp((1 - e) s) over e is exp(s) t! P(t + 1, s) / s^(t + 1), P being the
    # regularised incomplete gamma function. Where P underflows, at s far below t, it is
    # 1F1(1; t + 2; s) / (t + 1), which overflows at s far above t and takes 500 times as long near.
    order = bets + 1
    mass = special.gammainc(order, surprise)
    tiny = mass < 1e-200
    few = special.hyp1f1(1, order[tiny] + 1, surprise[tiny])
    log_capital = np.empty_like(mass)
    log_capital[tiny] = np.log(few / order[tiny])
    order, s, mass = order[~tiny], surprise[~tiny], mass[~tiny]
    log_capital[~tiny] = s + special.gammaln(order) - order * np.log(s) + np.log(mass)
    return log_capital


def jumper_martingale(
    p_values: Real[ArrayLike, "t"], *, jump: float = 0.01
) -> Float[np.ndarray, "t"]:
    """Logarithm of the capital after each p-value of the Simple Jumper.

    Three bettors stake 1 + e (p - 1/2), e in {-1, 0, 1}, and share a fraction `jump` of their
    capital before each bet. Thus it grows on p-values too small or too large, and recovers soon
    after a long uniform start, but by 3/2 at most at a time.
    Raises: ValueError unless the p-values lie in (0, 1], there is one at least, and 0 < jump <= 1.
    Source: Vovk et al. 2021, arXiv:2102.10439.
    """
    require({"jump": jump}, ("jump",), lambda value: 0 < value <= 1, "to lie in (0, 1]")
    logs, total = [], 0.0
    low, flat, high = 1 / 3, 1 / 3, 1 / 3  # shares of the capital; their sum is kept at 1
    for p in _stream(p_values).tolist():
        low, flat, high = ((1 - jump) * share + jump / 3 for share in (low, flat, high))
        low, high = low * (1.5 - p), high * (0.5 + p)
        growth = low + flat + high
        low, flat, high = low / growth, flat / growth, high / growth
        total += math.log(growth)
        logs.append(total)
    return np.array(logs)


MARTINGALES: dict[str, Callable[..., Float[np.ndarray, "t"]]] = {
    "power": power_martingale,
    "mixture": mixture_martingale,
    "jumper": jumper_martingale,
}


class Alarm(NamedTuple):
    """Course of a martingale, and its first alarm."""

    time: int | None
    """Index of the p-value at which the capital first reached 1 / alpha; None if it never did."""
    log_capital: Float[np.ndarray, "t"]


def alarm(p_values: Real[ArrayLike, "t"], alpha: float, *, martingale: str = "mixture") -> Alarm:
    """Alarms when the capital reaches 1 / alpha; P(false alarm, ever) <= alpha.

    `martingale` names one of `MARTINGALES`.
    Raises: ValueError as the martingale, for an unknown one, or unless alpha is inside (0, 1).
    """
    require_level(alpha=alpha)
    log_capital = choose("martingale", martingale, MARTINGALES)(p_values)
    reached = log_capital >= -math.log(alpha)
    return Alarm(int(reached.argmax()) if reached.any() else None, log_capital)


def _stream(p_values: Real[ArrayLike, "t"]) -> Float[np.ndarray, "t"]:
    p = p_value_array(p_values, zero_allowed=False)
    if not len(p):
        raise ValueError("a martingale needs at least one p-value; the stream is empty")
    return p


def _surprise(
    p_values: Real[ArrayLike, "t"],
) -> tuple[Float[np.ndarray, "t"], Float[np.ndarray, "t"]]:
    """Running sums of -log p, and the number of p-values in each."""
    p = _stream(p_values)
    return np.cumsum(-np.log(p)), np.arange(1.0, len(p) + 1)


def _earlier(values: Float[np.ndarray, "t"]) -> tuple[Int[np.ndarray, "t"], Int[np.ndarray, "t"]]:
    """Numbers of earlier values below each value, and at most it."""
    ranks, index = np.unique(values, return_inverse=True)[1], np.arange(len(values))
    below, at_most = np.zeros_like(index), np.zeros_like(index)
    # Pairs of neighbouring blocks, of ever larger width, count right values against left ones. All
    # pairs of a width share one sorted array, in which each pair has a range of its own.
    width = 1
    while width < len(values):
        pair, right = index // (2 * width), index // width % 2 == 1
        keys = pair * len(values) + ranks
        left_keys, before = np.sort(keys[~right]), pair[right] * width
        below[right] += np.searchsorted(left_keys, keys[right], side="left") - before
        at_most[right] += np.searchsorted(left_keys, keys[right], side="right") - before
        width *= 2
    return below, at_most
