# SPDX-License-Identifier: Apache-2.0
"""The report of a detector: every source of failure by every score, with intervals and pictures."""

from typing import TYPE_CHECKING, Any

import numpy as np

from scorejax.density.hypothesis import mann_whitney, per_class
from scorejax.evaluate import detection
from scorejax.evaluate.progress import Metric
from scorejax.report import Evaluation
from scorejax.systems.classifier_mistakes.sources import Source
from scorejax.typing import PRNGKeyArray

if TYPE_CHECKING:
    from scorejax.systems.classifier_mistakes.detector import Detector

LEAST = 5
"""Failures below which a source has no numbers but its counts, and the success of an attack."""
NUM_SHOWN = 36


def failures_metric(model: "Detector") -> Metric:
    """The metric "failures" of a `Detector`; the key and the variables are not used."""

    def metric(rng: PRNGKeyArray, variables: Any) -> Evaluation:
        del rng, variables
        scalars, shown = calibration_scalars(model), {}
        scalars |= class_tests(model, model.densities[0])
        for name, source in model.failures().items():
            found, pictures = source_report(model, name, source)
            scalars |= found
            shown |= pictures
        return Evaluation(scalars, shown)

    return metric


def calibration_scalars(model: "Detector") -> dict[str, float]:
    """Number of calibration rows, and the share of normal test images that each pair flags."""
    scalars = {"accuracy": float(model.tested.right.mean())}
    for name, detector in model.fitted.items():
        flagged = model.normal_scores[f"pair, {name}"] <= detector.levels_[0]
        scalars[f"false_alarms/{name}"] = float(flagged.mean())
        scalars["calibration_rows"] = float(len(detector.calibration_[0]["density"]))
    return scalars


def source_report(
    model: "Detector", name: str, source: Source
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """AUROC with its interval, AUPR, FPR95 and a test for each score; pictures of one pair."""
    num = len(source.failures)
    scalars = {f"{name}/failures": float(num), f"{name}/normal": float(len(source.normal))}
    if source.success is not None:
        scalars[f"{name}/success"] = source.success
    if num < LEAST:
        return scalars, {}
    failures = model.scores(source.failures)
    normal = model.normal_scores if source.normal is model.normal else model.scores(source.normal)
    failed = np.repeat([True, False], [num, len(source.normal)])
    for score, values in failures.items():
        both = np.concatenate([values, normal[score]])
        found = detected(both, failed, independent=source.independent)
        scalars |= {f"{name}/{score}/{k}": v for k, v in found.items()}
    for density, detector in model.fitted.items():
        flagged = failures[f"pair, {density}"] <= detector.levels_[0]
        scalars[f"{name}/pair, {density}/flagged"] = float(np.mean(flagged))
    return scalars, source_pictures(model, name, source, failures, normal)


def detected(
    scores: np.ndarray, failed: np.ndarray, *, independent: bool = True
) -> dict[str, float]:
    """How well scores tell failures, the positives, from normal examples.

    The interval of the AUROC and the p-value are left out if rows are not independent.
    """
    found = {
        "auroc": detection.auroc(scores, failed),
        "aupr": detection.average_precision(scores, failed),
        "fpr95": detection.fpr_at_tpr(scores, failed),
        "aurc": detection.aurc(scores, failed),
    }
    if independent:
        interval = detection.delong_interval(scores, failed)
        found |= {"auroc_low": interval.low, "auroc_high": interval.high}
        found["p_value"] = mann_whitney(scores[~failed], scores[failed]).p_value
    return found


def class_tests(model: "Detector", density: str) -> dict[str, float]:
    """Holm-adjusted p-values, by predicted and by true class, that mistakes have a lower density.

    Classes with fewer than `LEAST` mistakes, or others, have no p-value but their counts.
    """
    _, label, rows, right = model.tested
    scores = model.fitted[density].density_scores(rows.pre_activations)["density"]
    known, found = model.first_stage.classes, {}
    for kind, classes in (("predicted", rows.logits.argmax(axis=1)), ("true", label)):
        tests = per_class(scores, ~right, known[classes], least=LEAST)
        tested = {test.label: test.adjusted_p_value for test in tests if test.result is not None}
        found[f"mistakes/{kind}/classes_tested"] = float(len(tested))
        for test in tests:
            found[f"mistakes/{kind}_{test.label}/failures"] = float(test.num_failures)
            found[f"mistakes/{kind}_{test.label}/normal"] = float(test.num_normal)
        found |= {f"mistakes/{kind}_{name}/p_value": p for name, p in tested.items()}
    return found


def source_pictures(
    model: "Detector",
    name: str,
    source: Source,
    failures: dict[str, np.ndarray],
    normal: dict[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """Histograms and risk-coverage curves of all scores; the failures least noticed.

    The p-values of the first density's pair have a picture of their own.
    """
    from scorejax.evaluate import detection_pictures, pictures  # A second of matplotlib.

    pair = f"pair, {model.densities[0]}"
    missed = np.argsort(-failures[pair])[:NUM_SHOWN]
    failed = np.repeat([True, False], [len(source.failures), len(source.normal)])
    both = {score: np.concatenate([failures[score], normal[score]]) for score in failures}
    p_values = {"normal": normal[pair], name: failures[pair]}
    return {
        f"{name}_scores": detection_pictures.score_panels(normal, failures, name=name),
        f"{name}_risk_coverage": detection_pictures.risk_coverage_picture(
            both, failed, title=f"normal images and {name}"
        ),
        f"{name}_p_values": pictures.histogram_picture(
            p_values, xlabel="p-value of the pair", num_bins=20
        ),
        f"{name}_missed": pictures.image_grid(source.failures[missed]),
    }
