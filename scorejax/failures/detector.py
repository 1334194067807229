# SPDX-License-Identifier: Apache-2.0
"""A detector of a classifier's failures with a bound on its false alarms, for any classifier.

It needs features and logits only. The log-density of the features finds inputs that are unlike
those of training, and few ordinary mistakes; the largest softmax probability finds mistakes, and
fewer of such inputs. Each becomes a conformal p-value, and the two together one p-value, by
Bonferroni's inequality.

Source: Shao, Song & Ermon 2020, arXiv:2010.02364, for the density of features; Bates et al. 2021,
arXiv:2104.08279, for the bounds.
"""

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import jax
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Int
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from scorejax.data.features import FeaturePreparation
from scorejax.density import get_density
from scorejax.density.hypothesis import conformal
from scorejax.failures.measured import measured
from scorejax.failures.parameters import (
    OF_CALIBRATION,
    OF_FIT,
    require_options,
    require_parameters,
    require_unchanged,
    seed_of,
)
from scorejax.failures.promise import Promise
from scorejax.failures.training_rows import (
    column_names,
    finite_rows,
    held_out_rows,
    logit_rows,
    require_same_names,
    require_unmasked,
    row_digests,
    warn_of_rounding,
    warn_of_seen,
    warn_of_unseen,
)


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

    p-values ignore shifts that the density does not see: of units that are constant on the rows of
    `fit`, and outside of their span, as with fewer rows than units. `fit` warns of both;
    `density_scores` has them as "dead" and "residual".

    `alpha`, `delta`, `logit_score` and `by_class` are read by `calibrate`, the others by `fit`.
    Where a level, a score, the density or its options have been set anew since, calls refuse and
    name the method to call again.
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

        Warns if the density does not see all dimensions, or single precision cannot tell the values
        of a unit apart. A fit that fails leaves the detector without any. Raises: ValueError for a
        parameter out of range, rows that are not finite or do not vary, or features and logits of
        different lengths.
        """
        require_parameters(self)
        density, seed = get_density(self.density), seed_of(self.random_state)
        require_options(density.fit, self.density_options or {})
        # A fit that fails leaves no detector, rather than one of two fits.
        for name in ("density_", "calibration_"):
            vars(self).pop(name, None)
        logit_names = column_names(logits)
        X, logits = self._rows(X, y, logits, reset=True)
        noise_rng, fit_rng = jax.random.split(jax.random.key(seed))
        held = held_out_rows(len(X), self.held_out, seed)
        train = X[~held]
        self.preparation_ = FeaturePreparation.of(train, explained=self.explained)
        warn_of_rounding(train, self.preparation_.dead)
        warn_of_unseen(self.preparation_, self.explained)
        train = train.astype(np.float32)
        prepared = self.preparation_(train, noise_rng).x
        # Copied, since options are a dictionary of the user's.
        self.fitted_as_ = {name: copy.copy(getattr(self, name)) for name in OF_FIT}
        self._seen = set(row_digests(train))
        self.density_ = density.fit(fit_rng, prepared, **(self.density_options or {}))
        if self.held_out is not None:
            logits = None if logits is None else logits[held]
            self._calibrate(X[held].astype(np.float32), logits, logit_names)
        return self

    def calibrate(self, X: ArrayLike, y: None = None, *, logits: ArrayLike | None = None) -> Self:
        """Keeps the scores of features (n, d), and of logits (n, k) if later calls have them.

        Warns if there are too few rows for alpha, or with `by_class` none of a class, and if rows
        are equal, in single precision, to rows of `fit`; features computed anew may differ by
        rounding. Raises: ValueError as `fit`.
        """
        check_is_fitted(self, "density_")
        require_parameters(self)
        require_unchanged(self, self.fitted_as_, "fit")
        logit_names = column_names(logits)
        return self._calibrate(*self._rows(X, y, logits), logit_names)

    def _calibrate(
        self, X: np.ndarray, logits: np.ndarray | None, logit_names: list | None
    ) -> Self:
        if self.by_class and logits is None:
            raise ValueError("by_class needs logits, whose largest is the predicted class")
        warn_of_seen(X, self._seen)
        read = {name: getattr(self, name) for name in OF_CALIBRATION}
        groups, scores = _groups(read, logits, len(X)), self._scores(read, X, logits)
        found = np.unique(groups).tolist()
        sizes = {group: int(np.sum(groups == group)) for group in found}
        promise = Promise(self.alpha, self.delta, len(scores), len(found))
        ranks = {group: promise.rank(size) for group, size in sizes.items()}
        levels = {group: len(scores) * ranks[group] / (sizes[group] + 1) for group in found}
        calibration = {
            group: {name: np.sort(values[groups == group]) for name, values in scores.items()}
            for group in found
        }
        thresholds = {
            group: {name: values[rank - 1] if rank else -np.inf for name, values in kept.items()}
            for (group, kept), rank in zip(calibration.items(), ranks.values(), strict=True)
        }
        # All at once: a call that is interrupted before leaves the calibration that there was.
        vars(self).update(
            levels_=levels,
            offset_=np.nextafter(max(levels.values()), 2.0),
            calibration_=calibration,
            thresholds_=thresholds,
            num_logits_=0 if logits is None else logits.shape[1],
            calibrated_as_=read,
            _logit_names=logit_names,
        )
        promise.warn(sizes, range(self.num_logits_) if self.by_class else found)
        return self

    def p_values(self, X: ArrayLike, *, logits: ArrayLike | None = None) -> Float[np.ndarray, "n"]:
        """A p-value for each row: P(p <= a) <= a for rows like those of calibration.

        Raises: ValueError as `fit`, for logits where `calibrate` had none, or none where it had
        them, or columns of other names, or a predicted class without calibration rows.
        """
        return self.scored(X, logits=logits).pair

    def scored(self, X: ArrayLike, *, logits: ArrayLike | None = None) -> Scored:
        """The scores "density" and `logit_score`, and their p-values. Raises: as `p_values`."""
        return self._scored(*self._calibrated_rows(X, logits))

    def _scored(self, X: np.ndarray, logits: np.ndarray | None) -> Scored:
        groups = _groups(self.calibrated_as_, logits, len(X))
        scores, p_values = self._scores(self.calibrated_as_, X, logits), {}
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
        groups = _groups(self.calibrated_as_, logits, len(X)).tolist()
        levels = [self.levels_.get(group, 0.0) for group in groups]
        return self._scored(X, logits).pair - np.nextafter(levels, 2.0)

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
        require_unchanged(self, self.fitted_as_, "fit")
        X, _ = self._rows(X, None, None)
        return self._measured({"x": X})

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "density_")

    def _rows(
        self, X: ArrayLike, y: ArrayLike | None, logits: ArrayLike | None, *, reset: bool = False
    ) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "n k"] | None]:
        if y is not None and np.asarray(y).ndim == 2:
            raise ValueError("the second argument is not read; pass logits by name: logits=...")
        # Means and spreads of training rows are those of double precision, where they have it.
        dtype = [np.float64, np.float32] if reset else np.float32
        options = {"dtype": dtype, "ensure_all_finite": False, "ensure_min_samples": 1 + reset}
        require_unmasked(X)
        X = validate_data(self, X, reset=reset, **options)
        with np.errstate(over="ignore"):  # Of what is infinite in single precision.
            finite_rows(X.astype(np.float32, copy=False))
        return X, None if logits is None else logit_rows(logits, len(X))

    def _calibrated_rows(self, X: ArrayLike, logits: ArrayLike | None) -> tuple:
        check_is_fitted(self, "density_", msg="%(name)s is not fitted: call fit, then calibrate")
        remedy = "call calibrate, or fit with held_out"
        check_is_fitted(self, "calibration_", msg=f"%(name)s is not calibrated: {remedy}")
        require_unchanged(self, self.fitted_as_, "fit")
        require_unchanged(self, self.calibrated_as_, "calibrate")
        require_same_names(column_names(logits), self._logit_names)
        X, logits = self._rows(X, None, logits)
        num = 0 if logits is None else logits.shape[1]
        if num != self.num_logits_:
            had = f"logits (n, {self.num_logits_})" if self.num_logits_ else "no logits"
            given = f"(n, {num})" if num else "none"
            raise ValueError(f"calibrate had {had}, and p-values need the same; got {given}")
        return X, logits

    def _scores(
        self, read: Mapping[str, Any], X: np.ndarray, logits: np.ndarray | None
    ) -> dict[str, np.ndarray]:
        name = None if logits is None else read["logit_score"]
        found = self._measured({"x": X} if logits is None else {"x": X, "logits": logits}, name)
        return {name: found[name] for name in ("density", name) if name is not None}

    def _measured(
        self, rows: dict[str, np.ndarray], logit_score: str | None = None
    ) -> dict[str, np.ndarray]:
        density = self.fitted_as_["density"]
        return measured(density, self.preparation_, self.density_, rows, logit_score)


def _groups(read: Mapping[str, Any], logits: np.ndarray | None, num: int) -> Int[np.ndarray, "n"]:
    return logits.argmax(axis=1) if read["by_class"] else np.zeros(num, int)
