# SPDX-License-Identifier: Apache-2.0
"""A detector of a classifier's failures with a bound on its false alarms, for any classifier.

It needs features and logits only. The log-density of the features finds inputs that are unlike
those of training, and few ordinary mistakes; the largest softmax probability finds mistakes, and
fewer of such inputs. Each becomes a conformal p-value, and the two together one p-value, by
Bonferroni's inequality.

Source: Shao, Song & Ermon 2020, arXiv:2010.02364, for the density of features; Bates et al. 2021,
arXiv:2104.08279, for the bounds.
"""

import numbers
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import jax
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Int
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from scorejax.choices import choose, require
from scorejax.data.features import FeaturePreparation
from scorejax.density import get_density
from scorejax.density.hypothesis import conformal
from scorejax.failures.measured import measured
from scorejax.failures.promise import Promise
from scorejax.failures.training_rows import (
    finite_rows,
    row_digests,
    warn_of_rounding,
    warn_of_seen,
)

LOGIT_SCORES = ("max_softmax", "negative_entropy", "max_logit", "energy")
"""Scores of logits that are not fitted."""
OF_FIT, OF_CALIBRATION = ("density", "explained"), ("alpha", "delta", "logit_score", "by_class")
"""Parameters that `fit` and `calibrate` have read, and that later calls hold to."""


class Scored(NamedTuple):
    """Scores of rows by name, the p-value of each, and that of all together."""

    scores: dict[str, Float[np.ndarray, "n"]]
    p_values: dict[str, Float[np.ndarray, "n"]]
    pair: Float[np.ndarray, "n"]


class FailureDetector(OutlierMixin, BaseEstimator):
    """Flags rows on which a classifier may fail: predict is -1 for those, and 1 for the others.

    `fit` takes features (n, d) on which the classifier was trained, or others like them.
    `calibrate` takes held-out rows, and says for whom the bound holds: if they are those that the
    classifier gets right, P(flag | right) <= alpha. Where all calls have logits (n, k), the largest
    softmax probability counts as well.

    Parameters
    ----------
    density : name in `scorejax.density.DENSITIES`, with `density_options` for its `fit`.
    alpha : level of false alarms, in (0, 1).
    delta : with None, the level holds on average over calibration sets. Else it holds for this
        calibration set, except with probability delta over its rows.
    logit_score : one of `LOGIT_SCORES`.
    by_class : calibrates rows of each predicted class apart; the level holds inside each class, and
        with `delta` in all of them at once.
    held_out : share of the rows of `fit` that calibrate the detector at once; None: none. They must
        be new to the classifier.
    explained : share of the variance of features that the density sees, as principal components.
        Shifts show in components of small variance (docs/papers/classifier_mistakes.md).
    random_state : seed of the fit, in which features with repeated values have a little noise; as
        scikit-learn's, an integer, None or a `RandomState`.

    `alpha`, `delta`, `logit_score` and `by_class` are read by `calibrate`, the others by `fit`.
    Where a level, a score or the density has been set anew since, calls refuse and name the method
    to call again.
    """

    def __init__(
        self,
        density: str = "gaussian_mixture",
        *,
        alpha: float = 0.05,
        delta: float | None = None,
        logit_score: str = "max_softmax",
        by_class: bool = False,
        held_out: float | None = None,
        explained: float = 1.0,
        density_options: Mapping[str, Any] | None = None,
        random_state: int | np.random.RandomState | None = 0,
    ):
        self.density = density
        self.alpha = alpha
        self.delta = delta
        self.logit_score = logit_score
        self.by_class = by_class
        self.held_out = held_out
        self.explained = explained
        self.density_options = density_options
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: None = None, *, logits: ArrayLike | None = None) -> Self:
        """Fits the density to features (n, d); `logits` (n, k) only calibrate, by `held_out`.

        Warns if single precision cannot tell the values of a unit apart. Raises: ValueError for a
        parameter out of range, rows that are not finite or do not vary, or features and logits of
        different lengths.
        """
        self._require_options()
        density, seed = get_density(self.density), self._seed()
        X, logits = self._rows(X, y, logits, reset=True)
        # Scores of another density are no calibration of this one.
        vars(self).pop("calibration_", None)
        noise_rng, fit_rng = jax.random.split(jax.random.key(seed))
        held = np.zeros(len(X), bool)
        if self.held_out is not None:
            num = min(max(1, round(self.held_out * len(X))), len(X) - 2)
            held[np.random.default_rng(seed).permutation(len(X))[:num]] = True
        train = X[~held]
        self.preparation_ = FeaturePreparation.of(train, explained=self.explained)
        warn_of_rounding(train, self.preparation_.dead)
        train = train.astype(np.float32)
        prepared = self.preparation_(train, noise_rng).x
        self.density_ = density.fit(fit_rng, prepared, **(self.density_options or {}))
        self.fitted_as_ = {name: getattr(self, name) for name in OF_FIT}
        self._seen = set(row_digests(train))
        if self.held_out is not None:
            self.calibrate(X[held], logits=None if logits is None else logits[held])
        return self

    def calibrate(self, X: ArrayLike, y: None = None, *, logits: ArrayLike | None = None) -> Self:
        """Keeps the scores of features (n, d), and of logits (n, k) if later calls have them.

        Warns if there are too few rows for alpha, or with `by_class` none of a class, and if rows
        are equal, in single precision, to rows of `fit`; features computed anew may differ by
        rounding. Raises: ValueError as `fit`.
        """
        check_is_fitted(self, "density_")
        self._require_options()
        self._require_unchanged(self.fitted_as_, "fit")
        X, logits = self._rows(X, y, logits)
        if self.by_class and logits is None:
            raise ValueError("by_class needs logits, whose largest is the predicted class")
        warn_of_seen(X, self._seen)
        self.num_logits_ = 0 if logits is None else logits.shape[1]
        self.calibrated_as_ = {name: getattr(self, name) for name in OF_CALIBRATION}
        groups, scores = self._groups(logits, len(X)), self._scores(X, logits)
        found = np.unique(groups).tolist()
        sizes = {group: int(np.sum(groups == group)) for group in found}
        promise = Promise(self.alpha, self.delta, len(scores), len(found))
        ranks = {group: promise.rank(size) for group, size in sizes.items()}
        self.levels_ = {group: len(scores) * ranks[group] / (sizes[group] + 1) for group in found}
        self.offset_ = np.nextafter(max(self.levels_.values()), 2.0)
        self.calibration_ = {
            group: {name: np.sort(values[groups == group]) for name, values in scores.items()}
            for group in found
        }
        self.thresholds_ = {
            group: {name: values[rank - 1] if rank else -np.inf for name, values in kept.items()}
            for (group, kept), rank in zip(self.calibration_.items(), ranks.values(), strict=True)
        }
        promise.warn(sizes, range(self.num_logits_) if self.by_class else found)
        return self

    def p_values(self, X: ArrayLike, *, logits: ArrayLike | None = None) -> Float[np.ndarray, "n"]:
        """A p-value for each row: P(p <= a) <= a for rows like those of calibration.

        Raises: ValueError as `fit`, for logits where `calibrate` had none, or none where it had
        them, or a predicted class without calibration rows.
        """
        return self.scored(X, logits=logits).pair

    def scored(self, X: ArrayLike, *, logits: ArrayLike | None = None) -> "Scored":
        """The scores "density" and `logit_score`, and their p-values. Raises: as `p_values`."""
        X, logits = self._calibrated_rows(X, logits)
        groups, scores = self._groups(logits, len(X)), self._scores(X, logits)
        p_values = {}
        for name, values in scores.items():
            known = [(group, scores[name]) for group, scores in self.calibration_.items()]
            p_values[name] = conformal.mondrian_p_values(
                np.concatenate([scores for _, scores in known]),
                values,
                calibration_groups=np.concatenate([np.full(len(s), g) for g, s in known]),
                groups=groups,
            )
        return Scored(scores, p_values, conformal.bonferroni(*p_values.values()))

    def predict(self, X: ArrayLike, *, logits: ArrayLike | None = None) -> Int[np.ndarray, "n"]:
        """-1 for rows that are flagged, 1 for others. Raises: ValueError as `p_values`."""
        return np.where(self.decision_function(X, logits=logits) >= 0, 1, -1)

    def decision_function(
        self, X: ArrayLike, *, logits: ArrayLike | None = None
    ) -> Float[np.ndarray, "n"]:
        """p-values minus the level at which rows are flagged, negative for those that are."""
        X, logits = self._calibrated_rows(X, logits)
        levels = [self.levels_.get(group, 0.0) for group in self._groups(logits, len(X)).tolist()]
        return self.p_values(X, logits=logits) - np.nextafter(levels, 2.0)

    def score_samples(
        self, X: ArrayLike, *, logits: ArrayLike | None = None
    ) -> Float[np.ndarray, "n"]:
        """`p_values`, by scikit-learn's name; higher is more normal."""
        return self.p_values(X, logits=logits)

    def density_scores(self, X: ArrayLike) -> dict[str, Float[np.ndarray, "n"]]:
        """Scores of features in nats: "density", and minus the norms that it does not see.

        "residual" is outside of the principal components, "dead" on units without variance.
        """
        check_is_fitted(self, "density_")
        self._require_unchanged(self.fitted_as_, "fit")
        X, _ = self._rows(X, None, None)
        return self._measured({"x": X})

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "density_")

    def _require_options(self) -> None:
        options = vars(self)
        inside = lambda v: isinstance(v, numbers.Real) and 0 < v < 1
        require(options, ("alpha",), inside, "to lie in (0, 1)")
        optional = [name for name in ("delta", "held_out") if options[name] is not None]
        require(options, optional, inside, "to lie in (0, 1), or to be None")
        whole = lambda v: inside(v) or (isinstance(v, numbers.Real) and v == 1)
        require(options, ("explained",), whole, "to lie in (0, 1]")
        choose("logit_score", self.logit_score, dict.fromkeys(LOGIT_SCORES))

    def _require_unchanged(self, read: Mapping[str, Any], method: str) -> None:
        for name, value in read.items():
            if getattr(self, name) != value:
                raise ValueError(
                    f"{name} was {value!r} in {method}, and is {getattr(self, name)!r} now: call "
                    f"{method} again"
                )

    def _seed(self) -> int:
        """The random state as an integer. Raises: ValueError for what scikit-learn refuses."""
        state = check_random_state(self.random_state)
        if isinstance(self.random_state, numbers.Integral):
            return int(self.random_state)
        return int(state.randint(2**31 - 1))

    def _rows(
        self, X: ArrayLike, y: ArrayLike | None, logits: ArrayLike | None, *, reset: bool = False
    ) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "n k"] | None]:
        if y is not None and np.asarray(y).ndim == 2:
            raise ValueError("the second argument is not read; pass logits by name: logits=...")
        # Means and spreads of training rows are those of double precision, where they have it.
        dtype = [np.float64, np.float32] if reset else np.float32
        options = {"dtype": dtype, "ensure_all_finite": False, "ensure_min_samples": 1 + reset}
        X = validate_data(self, X, reset=reset, **options)
        with np.errstate(over="ignore"):  # Of what is infinite in single precision.
            finite_rows(X.astype(np.float32, copy=False))
        if logits is None:
            return X, None
        logits = np.asarray(logits, np.float32)
        if logits.ndim != 2 or len(logits) != len(X) or logits.shape[1] < 2:
            raise ValueError(f"{len(X)} rows need logits ({len(X)}, k), k >= 2; got {logits.shape}")
        finite_rows(logits, "logits")
        return X, logits

    def _calibrated_rows(self, X: ArrayLike, logits: ArrayLike | None) -> tuple:
        check_is_fitted(self, "calibration_", msg="%(name)s is not calibrated: call calibrate")
        self._require_unchanged(self.fitted_as_, "fit")
        self._require_unchanged(self.calibrated_as_, "calibrate")
        X, logits = self._rows(X, None, logits)
        num = 0 if logits is None else logits.shape[1]
        if num != self.num_logits_:
            had = f"logits (n, {self.num_logits_})" if self.num_logits_ else "no logits"
            given = f"(n, {num})" if num else "none"
            raise ValueError(f"calibrate had {had}, and p-values need the same; got {given}")
        return X, logits

    def _scores(self, X: np.ndarray, logits: np.ndarray | None) -> dict[str, np.ndarray]:
        found = self._measured({"x": X} if logits is None else {"x": X, "logits": logits})
        names = ("density", self.calibrated_as_["logit_score"])
        return {name: found[name] for name in names if name in found}

    def _measured(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        logit_score = self.calibrated_as_["logit_score"] if "logits" in rows else None
        density = self.fitted_as_["density"]
        return measured(density, self.preparation_, self.density_, rows, logit_score)

    def _groups(self, logits: np.ndarray | None, num: int) -> Int[np.ndarray, "n"]:
        return logits.argmax(axis=1) if self.calibrated_as_["by_class"] else np.zeros(num, int)
