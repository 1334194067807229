# SPDX-License-Identifier: Apache-2.0
"""The second stage: densities of a trained classifier's features, calibrated, and their report."""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from scorejax import runs
from scorejax.attacks.ball import Ball
from scorejax.density import get_density
from scorejax.evaluate.chunks import joined, make_stream
from scorejax.evaluate.progress import Metric, Metrics
from scorejax.failures.detector import FailureDetector
from scorejax.failures.scores import SCORES, max_softmax, odin
from scorejax.runs import Run
from scorejax.systems.classifier_mistakes import report, sources
from scorejax.systems.classifier_mistakes.classifier import Classifier
from scorejax.systems.classifier_mistakes.sources import AttackOptions, Detected, Source
from scorejax.typing import Array, Batch, Variables

AT_ONCE = 256
"""Images whose gradients are computed together."""


class Outputs(NamedTuple):
    """Logits of images, and features: before the last ReLU for densities, and as they are."""

    logits: np.ndarray
    pre_activations: np.ndarray
    features: np.ndarray


class Tested(NamedTuple):
    """Test images in [0, 1], their labels, the classifier's outputs, and whether it is right."""

    images: np.ndarray
    label: np.ndarray
    outputs: Outputs
    right: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Detector:
    """Detectors of the failures of the classifier in the run `workdir`, one for each density."""

    workdir: str
    make_classifier: Callable[[], Classifier]
    densities: Sequence[str]
    alpha: float
    delta: float | None
    explained: float
    """Share of the variance of features that densities see, as principal components."""
    attacks: Sequence[str]
    ball: Ball
    num_attacked: int
    num_steps: int
    num_restarts: int
    seed: int

    @functools.cached_property
    def first_stage(self) -> Classifier:
        """The classifier of the run. Raises: ValueError, FileNotFoundError if there is none."""
        return self.make_classifier()

    @functools.cached_property
    def run(self) -> Run:
        """The classifier's run. Raises: as `runs.open`."""
        return runs.open(self.workdir)

    def outputs(self, images: np.ndarray) -> Outputs:
        """Logits and features of images in [0, 1]."""
        found = self.first_stage.outputs(self.run.variables, images)
        return Outputs(*(found[name] for name in Outputs._fields))

    @functools.cached_property
    def tested(self) -> Tested:
        """The test images, and what the classifier makes of them."""
        test = self.first_stage.sets.test
        images = self.first_stage.as_input(test)
        outputs = self.outputs(images)
        return Tested(images, test.label, outputs, outputs.logits.argmax(axis=1) == test.label)

    @functools.cached_property
    def fitted(self) -> dict[str, FailureDetector]:
        """A detector for each density, calibrated on images that the classifier gets right.

        P(flag | right) <= alpha. Labels are used for that, and for nothing before it.
        """
        classifier, sets = self.first_stage, self.first_stage.sets
        rows = self.outputs(classifier.as_input(sets.density))
        held = self.outputs(classifier.as_input(sets.calibration))
        right = held.logits.argmax(axis=1) == sets.calibration.label
        options = {"alpha": self.alpha, "delta": self.delta, "random_state": self.seed}
        options |= {"explained": self.explained}
        detectors = {}
        for name in self.densities:
            detector = FailureDetector(name, **options).fit(rows.pre_activations)
            detectors[name] = detector.calibrate(
                held.pre_activations[right], logits=held.logits[right]
            )
        return detectors

    @functools.cached_property
    def others(self) -> dict[str, object]:
        """Parameters of the scores beside ours, which are fitted to labelled images.

        Warns of a score that cannot be, say for a class of which the classifier gets none right;
        the report does without it.
        """
        labelled = self.first_stage.sets.labelled
        rows = self.outputs(self.first_stage.as_input(labelled))
        fitted = {}
        for name, score in SCORES.items():
            try:
                fitted[name] = score.fit(rows.features, rows.logits, labelled.label)
            except ValueError as error:
                # From cached_property's caller.
                warnings.warn(f"the report is without {name!r}: {error}", stacklevel=3)
        return fitted

    def scores(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """All scores of images by name, high where they are normal; "pair" are p-values."""
        rows = self.outputs(images)
        values = {}
        for name, detector in self.fitted.items():
            found = detector.scored(rows.pre_activations, logits=rows.logits)
            values[name], values[f"pair, {name}"] = found.scores["density"], found.pair
        for name, params in self.others.items():
            others = SCORES[name].score(params, rows.features, rows.logits)
            values[name] = np.asarray(others, float)
        rows = joined(self._odin(self.run.variables, {"x": images}, AT_ONCE))
        return values | {"odin": rows["odin"].astype(float)}

    @functools.cached_property
    def normal(self) -> np.ndarray:
        """The test images that the classifier gets right, beside which most failures stand."""
        return self.tested.images[self.tested.right]

    @functools.cached_property
    def normal_scores(self) -> dict[str, np.ndarray]:
        """`scores` of `normal`."""
        return self.scores(self.normal)

    @functools.cached_property
    def _odin(self) -> Callable[..., Iterator]:
        """The one score that needs the classifier; compiled once for all images."""

        def measure(variables: Variables, rows: Batch) -> dict[str, Array]:
            logits_fn = lambda x: self.first_stage.classify(variables, x).logits
            return {"odin": odin(logits_fn, rows["x"])}

        return make_stream(measure)

    def classify(self, variables: Variables, x: Array) -> Detected:
        """Logits, features, and as score the smaller margin of density and softmax, differentiable.

        A margin is above the threshold, in standard deviations on calibration images. A row is
        flagged if it is negative.
        """
        name, detector = next(iter(self.fitted.items()))
        found = self.first_stage.classify(variables, x)
        prepared = detector.preparation_(found.pre_activations)
        density = get_density(name).log_prob(detector.density_, prepared.x)
        density = density + detector.preparation_.log_det
        margins = []
        for score, values in (("density", density), ("max_softmax", max_softmax(found.logits))):
            threshold, kept = detector.thresholds_[0][score], detector.calibration_[0][score]
            if np.isfinite(threshold):  # Else there are too few rows to flag any.
                margins.append((values - threshold) / kept.std())
        lowest = functools.reduce(jnp.minimum, margins) if margins else jnp.ones(len(x))
        return Detected(found.logits, lowest, found.pre_activations)

    def failures(self) -> dict[str, Source]:
        """Failures by name beside the normal images that they are told from."""
        images, _, _, right = self.tested
        found = self.attacked() if self.attacks else {}
        found["mistakes"] = Source(images[~right], self.normal)
        if self.first_stage.held_out_classes:
            unseen = self.first_stage.as_input(self.first_stage.unseen)
            found["unseen_classes"] = Source(unseen, self.normal)
        return found | sources.out_of_distribution(images, self.normal)

    def attacked(self) -> dict[str, Source]:
        """Attacks by name, on test images that the classifier gets right."""
        images, label, outputs, _ = self.tested
        labelled = self.first_stage.sets.labelled
        pool = self.outputs(self.first_stage.as_input(labelled))
        victims = sources.victims_of(
            images,
            label,
            outputs.logits,
            outputs.pre_activations,
            (pool.pre_activations, pool.logits, labelled.label),
            self.num_attacked,
        )
        options = AttackOptions(self.ball, self.num_steps, self.num_restarts, 0.0)
        attack = lambda name: sources.attacked(
            name, self.classify, self.run.variables, victims, options
        )
        return {name: attack(name) for name in self.attacks}

    def data_metrics(self) -> Metrics:
        """By name: "failures", the report of all sources and scores, with pictures."""

        def failures() -> Metric:
            _ = self.first_stage.sets, self.run  # Refuses what is not there, at once.
            return report.failures_metric(self)

        return {"failures": failures}
