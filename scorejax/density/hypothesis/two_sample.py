# SPDX-License-Identifier: Apache-2.0
"""Tests of whether failures score as normal examples do, of two independent samples of scores.

The alternative "greater" is the one of interest: normal examples tend to score higher. "less" is
its opposite and "two-sided" is either. arXiv:2010.02364 asks the question; the tests are classical
and SciPy's.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Real, Shaped
from scipy import stats

from scorejax.choices import choose, require, require_known
from scorejax.density.hypothesis.arguments import require_booleans, require_lengths, score_array
from scorejax.density.hypothesis.multiple_testing import holm

ALTERNATIVES = ("greater", "less", "two-sided")

MAX_EXACT_SPLITS = 20_000
"""Splits of the pooled scores that a test enumerates: two samples of 8 have 12 870."""


class TwoSample(NamedTuple):
    """A statistic of two samples and its p-value."""

    statistic: float
    p_value: float


class MannWhitney(NamedTuple):
    """Result of the Mann-Whitney test."""

    statistic: float
    """Number of pairs in which the normal score is higher; ties count one half."""
    p_value: float
    auroc: float
    """The statistic divided by the number of pairs: area under the ROC curve."""

    @property
    def cliffs_delta(self) -> float:
        """Effect size in [-1, 1]: P(normal higher) - P(failure higher)."""
        return 2 * self.auroc - 1


def mann_whitney(
    normal: Real[ArrayLike, "n"],
    failures: Real[ArrayLike, "m"],
    *,
    alternative: str = "greater",
    method: str = "auto",
) -> MannWhitney:
    """Mann-Whitney test of the order of two samples.

    "exact" enumerates the splits of the pooled scores and so is right for ties as well; it costs
    (n + m choose m). "asymptotic" is the normal approximation with the variance that ties leave and
    a continuity correction of one half. "auto" is exact up to `MAX_EXACT_SPLITS` splits.
    Raises: ValueError for an empty sample, a NaN, or an unknown alternative or method.
    """
    x, y = _samples(normal, failures, alternative)
    require_known("method", method, ("auto", "exact", "asymptotic"))
    if method == "auto":
        few = math.comb(len(x) + len(y), len(y)) <= MAX_EXACT_SPLITS
        method = "exact" if few else "asymptotic"
    # SciPy's "exact" is the law without ties; its enumeration of all splits has no such limit.
    how = stats.PermutationMethod(n_resamples=np.inf) if method == "exact" else method
    result = stats.mannwhitneyu(x, y, alternative=alternative, method=how)
    u = float(result.statistic)
    return MannWhitney(u, float(result.pvalue), u / (len(x) * len(y)))


def permutation_test(
    normal: Real[ArrayLike, "n"],
    failures: Real[ArrayLike, "m"],
    *,
    alternative: str = "greater",
    num_permutations: int = 9_999,
    seed: int = 0,
) -> TwoSample:
    """Permutation test of the difference of means, normal minus failures.

    The p-value is (1 + #{as extreme}) / (1 + num_permutations), hence never 0; it is the exact
    fraction if there are no more splits than that. Costs num_permutations (n + m).
    Raises: ValueError for an empty sample, a score that is not finite, or an unknown alternative.
    """
    x, y = _samples(normal, failures, alternative)
    for name, sample in (("normal", x), ("failures", y)):
        if not np.isfinite(sample).all():
            raise ValueError(f"{name} needs finite scores, which have a mean; use mann_whitney")
    require(
        {"num_permutations": num_permutations},
        ("num_permutations",),
        lambda num: num >= 1,
        "to be at least 1",
    )
    result = stats.permutation_test(
        (x, y),
        lambda a, b, axis: np.mean(a, axis=axis) - np.mean(b, axis=axis),
        vectorized=True,
        n_resamples=num_permutations,
        batch=max(1, 4_000_000 // (len(x) + len(y))),  # 32 MB at a time
        alternative=alternative,
        rng=np.random.default_rng(seed),
    )
    return TwoSample(float(result.statistic), float(result.pvalue))


def ks_two_sample(
    normal: Real[ArrayLike, "n"], failures: Real[ArrayLike, "m"], *, alternative: str = "greater"
) -> TwoSample:
    """Kolmogorov-Smirnov test: largest distance of the two distribution functions.

    "greater" takes the distance by which the failures' function lies above. The p-value is exact
    up to 10,000 scores each, as far as doubles go, and asymptotic beyond; ties make it too large.
    Raises: ValueError for an empty sample, a NaN, or an unknown alternative.
    """
    x, y = _samples(normal, failures, alternative)
    # SciPy names the order of the distribution functions, which is opposite to that of the scores.
    functions = {"greater": "less", "less": "greater", "two-sided": "two-sided"}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "ks_2samp: Exact calculation unsuccessful")
        result = stats.ks_2samp(x, y, alternative=choose("alternative", alternative, functions))
    return TwoSample(float(result.statistic), float(result.pvalue))


class ClassTest(NamedTuple):
    """Test of the failures inside one class."""

    label: Any
    num_normal: int
    num_failures: int
    result: Any
    """The test's result; None if the class was not tested."""
    adjusted_p_value: float | None
    """Holm's, over the tested classes; None if the class was not tested."""


def per_class(
    scores: Real[ArrayLike, "b"],
    failed: Bool[ArrayLike, "b"],
    classes: Shaped[ArrayLike, "b"],
    *,
    test: Callable[[Float[np.ndarray, "n"], Float[np.ndarray, "m"]], Any] = mann_whitney,
    least: int = 5,
) -> tuple[ClassTest, ...]:
    """Tests failures against normal examples inside each class, in the order of the labels.

    A pooled test may be significant only because some classes are both harder and less likely.
    Classes with fewer than `least` examples on either side are not tested.
    Raises: ValueError if lengths differ, for a NaN, for `failed` that are not booleans, or as the
    test.
    """
    scores, failed, classes = score_array("scores", scores), np.asarray(failed), np.asarray(classes)
    require_lengths(scores=scores, failed=failed, classes=classes)
    require_booleans(failed)
    labels, row_label = np.unique(classes, return_inverse=True)
    samples = [
        (scores[(row_label == i) & ~failed], scores[(row_label == i) & failed])
        for i in range(len(labels))
    ]
    results = [test(x, y) if min(len(x), len(y)) >= least else None for x, y in samples]
    adjusted = iter(holm(np.array([r.p_value for r in results if r is not None], np.float64)))
    return tuple(
        ClassTest(label.item(), len(x), len(y), r, None if r is None else float(next(adjusted)))
        for label, (x, y), r in zip(labels, samples, results, strict=True)
    )


def _samples(
    normal: Real[ArrayLike, "n"], failures: Real[ArrayLike, "m"], alternative: str
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "m"]]:
    require_known("alternative", alternative, ALTERNATIVES)
    return score_array("normal", normal), score_array("failures", failures)
