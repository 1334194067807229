# SPDX-License-Identifier: Apache-2.0
"""A detector of a classifier's failures with a bound on its false alarms, for any classifier.

It needs features and logits only. The log-density of the features finds inputs that are unlike
those of training, and few ordinary mistakes; the largest softmax probability finds mistakes, and
fewer of such inputs. Each becomes a conformal p-value, and the two together one p-value, by
Bonferroni's inequality.

Source: Shao, Song & Ermon 2020, arXiv:2010.02364, for the density of features; Bates et al. 2021,
arXiv:2104.08279, for the bounds.
"""

import functools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Self

import jax
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Int
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from scorejax.choices import choose, require
from scorejax.data.features import FeaturePreparation
from scorejax.density import get_density
from scorejax.density.hypothesis import conformal
from scorejax.evaluate.chunks import joined, make_stream
from scorejax.failures.scores import SCORES
from scorejax.failures.training_rows import finite_rows, row_digests
from scorejax.typing import PyTree

AT_ONCE = 256
"""Rows that are scored together, always as many: rounding, and so ties, do not depend on others."""
LOGIT_SCORES = ("max_softmax", "negative_entropy", "max_logit", "energy")
"""Scores of logits that are not fitted."""


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
    random_state : seed of the fit, in which features with repeated values have a little noise.
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
        random_state: int = 0,
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

        Raises: ValueError for a parameter out of range, rows that are not finite or do not vary, or
        features and logits of different lengths.
        """
        self._require_options()
        density = get_density(self.density)
        X, logits = self._rows(X, y, logits, reset=True)
        # Scores of another density are no calibration of this one.
        vars(self).pop("calibration_", None)
        noise_rng, fit_rng = jax.random.split(jax.random.key(self.random_state))
        held = np.zeros(len(X), bool)
        if self.held_out is not None:
            num = min(max(1, round(self.held_out * len(X))), len(X) - 2)
            held[np.random.default_rng(self.random_state).permutation(len(X))[:num]] = True
        train = X[~held]
        self.preparation_ = FeaturePreparation.of(train, explained=self.explained)
        prepared = self.preparation_(train, noise_rng).x
        self.density_ = density.fit(fit_rng, prepared, **(self.density_options or {}))
        self.density_name_ = self.density
        self._seen = set(row_digests(train))
        if self.held_out is not None:
            self.calibrate(X[held], logits=None if logits is None else logits[held])
        return self

    def calibrate(self, X: ArrayLike, y: None = None, *, logits: ArrayLike | None = None) -> Self:
        """Keeps the scores of features (n, d), and of logits (n, k) if later calls have them.

        Warns if there are too few rows for alpha, and if rows are equal, in single precision, to
        rows of `fit`; features computed anew may differ by rounding. Raises: ValueError as `fit`.
        """
        check_is_fitted(self, "density_")
        self._require_options()
        X, logits = self._rows(X, y, logits)
        if self.by_class and logits is None:
            raise ValueError("by_class needs logits, whose largest is the predicted class")
        seen = sum(digest in self._seen for digest in row_digests(X))
        if seen:
            _warn(
                f"{seen} of {len(X)} calibration rows were fitted to as well: new rows will look "
                "odd beside them, and false alarms exceed alpha. Calibrate on rows held out"
            )
        self.num_logits_ = 0 if logits is None else logits.shape[1]
        self.logit_score_, self.by_class_ = self.logit_score, self.by_class
        groups, scores = self._groups(logits, len(X)), self._scores(X, logits)
        found = np.unique(groups).tolist()
        sizes = {group: int(np.sum(groups == group)) for group in found}
        ranks = {group: self._rank(n, len(scores), len(found)) for group, n in sizes.items()}
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
        self._require_calibration(min(sizes.values()), len(scores), len(found))
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
        X, _ = self._rows(X, None, None)
        return self._measured({"x": X})

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "density_")

    def _require_options(self) -> None:
        options, inside = vars(self), lambda v: 0 < v < 1
        require(options, ("alpha",), inside, "to lie in (0, 1)")
        optional = [name for name in ("delta", "held_out") if options[name] is not None]
        require(options, optional, inside, "to lie in (0, 1), or to be None")
        choose("logit_score", self.logit_score, dict.fromkeys(LOGIT_SCORES))

    def _rows(
        self, X: ArrayLike, y: ArrayLike | None, logits: ArrayLike | None, *, reset: bool = False
    ) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "n k"] | None]:
        if y is not None and np.asarray(y).ndim == 2:
            raise ValueError("the second argument is not read; pass logits by name: logits=...")
        options = {"dtype": np.float32, "ensure_all_finite": False, "ensure_min_samples": 1 + reset}
        X = validate_data(self, X, reset=reset, **options)
        finite_rows(X)
        if logits is None:
            return X, None
        logits = np.asarray(logits, np.float32)
        if logits.ndim != 2 or len(logits) != len(X) or logits.shape[1] < 2:
            raise ValueError(f"{len(X)} rows need logits ({len(X)}, k), k >= 2; got {logits.shape}")
        finite_rows(logits, "logits")
        return X, logits

    def _calibrated_rows(self, X: ArrayLike, logits: ArrayLike | None) -> tuple:
        check_is_fitted(self, "calibration_", msg="%(name)s is not calibrated: call calibrate")
        X, logits = self._rows(X, None, logits)
        num = 0 if logits is None else logits.shape[1]
        if num != self.num_logits_:
            had = f"logits (n, {self.num_logits_})" if self.num_logits_ else "no logits"
            given = f"(n, {num})" if num else "none"
            raise ValueError(f"calibrate had {had}, and p-values need the same; got {given}")
        return X, logits

    def _scores(self, X: np.ndarray, logits: np.ndarray | None) -> dict[str, np.ndarray]:
        measured = self._measured({"x": X} if logits is None else {"x": X, "logits": logits})
        return {name: measured[name] for name in ("density", self.logit_score_) if name in measured}

    def _measured(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        num = len(rows["x"])
        order = np.minimum(np.arange(num + -num % AT_ONCE), num - 1)
        filled = {name: values[order] for name, values in rows.items()}
        logit_score = self.logit_score_ if "logits" in rows else None
        stream = _score_stream(self.density_name_, self.preparation_, logit_score)
        measured = joined(stream(self.density_, filled, AT_ONCE))
        return {name: np.asarray(values[:num], float) for name, values in measured.items()}

    def _groups(self, logits: np.ndarray | None, num: int) -> Int[np.ndarray, "n"]:
        return logits.argmax(axis=1) if self.by_class_ else np.zeros(num, int)

    def _rank(self, size: int, num_scores: int, num_groups: int) -> int:
        """Rank, among so many calibration scores, up to which each of the scores flags a row."""
        level = self.alpha / num_scores
        if self.delta is None:
            return conformal.marginal_rank(size, level)
        share = self.delta / (num_scores * num_groups)
        return conformal.training_conditional_rank(size, level, delta=share)

    def _require_calibration(self, size: int, num_scores: int, num_groups: int) -> None:
        delta = None if self.delta is None else self.delta / (num_scores * num_groups)
        promised = num_scores * conformal.smallest_alpha(size, delta=delta)
        if promised > self.alpha:
            needed = conformal.calibration_size(self.alpha / num_scores, delta=delta)
            rows = "rows of each class" if self.by_class else "rows"
            _warn(
                f"alpha={self.alpha:g} by {num_scores} scores needs {needed} calibration {rows}; "
                f"{size} can promise alpha={math.ceil(1e4 * promised) / 1e4:g} at best, and flag "
                "nothing below it"
            )


@functools.lru_cache(maxsize=8)
def _score_stream(
    density: str, preparation: FeaturePreparation, logit_score: str | None
) -> Callable[..., Iterator]:
    """Compiled once for a fitted detector, however often it is asked."""
    log_prob = get_density(density).log_prob

    def measure(params: PyTree, rows: dict[str, jax.Array]) -> dict[str, jax.Array]:
        prepared = preparation(rows["x"])  # Without noise, which would not be the row's own.
        found = {"residual": -prepared.residual_norm, "dead": -prepared.dead_norm}
        found["density"] = log_prob(params, prepared.x) + preparation.log_det
        if logit_score is not None:
            found[logit_score] = SCORES[logit_score].score((), rows["x"], rows["logits"])
        return found

    return make_stream(measure)


def _warn(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=3)
