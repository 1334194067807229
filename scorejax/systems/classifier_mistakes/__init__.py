# SPDX-License-Identifier: Apache-2.0
"""Understanding classifier mistakes: a density of features, tests, and a detector of failures.

Two stages. The model "classifier" is trained, by labels and on images without labels. The model
"detector" has that run as an input (`classifier`, its working directory): it fits densities to
features of images whose labels the classifier has not seen, calibrates them together with the
softmax on images that it has not seen at all, and reports what they find. The run's own config
decides the data, their division and the network: of the detector's config only `DETECTOR_KEYS` and
`seed` are read, and `dataset` has to agree. `launch.evaluate --config=` writes the report; there is
nothing to train.

Source: Shao, Song & Ermon 2020, arXiv:2010.02364. No code was published; layers, densities, attacks
and numbers are this library's.
"""

import functools
import math

import flax.linen as nn
import numpy as np
from ml_collections import ConfigDict

from scorejax import runs
from scorejax.attacks.ball import Ball
from scorejax.choices import choose, require, require_keys, require_known
from scorejax.data.five_sets import five_sets
from scorejax.data.view import VIEW_DEFAULTS, VIEW_OPTIONS, ImageView
from scorejax.density import DENSITIES
from scorejax.evaluate.progress import make_evaluate
from scorejax.models.classifier import ConvClassifier, WideClassifier
from scorejax.systems.classifier_mistakes.classifier import (
    Classifier,
    make_augment,
    unlabelled_loss,
)
from scorejax.systems.classifier_mistakes.detector import Detector
from scorejax.systems.classifier_mistakes.sources import ATTACKS
from scorejax.train.initial import make_init
from scorejax.train.optimizer import decaying_adam_from_config
from scorejax.train.system import System

CLASSIFIER_KEYS = (
    *VIEW_OPTIONS, "network", "num_classes", "objective", "unlabelled_weight", "ramp_steps",
    "augment_noise", "augment_shift", "vat_eps", "num_labelled", "num_valid", "num_calibration",
    "split_seed", "learning_rate", "warmup", "cosine_decay", "grad_clip", "optimizer", "adam_eps",
    "beta1", "beta2",
)  # fmt: skip
DETECTOR_KEYS = (
    "classifier", "densities", "alpha", "delta", "explained", "attacks", "attack_norm",
    "attack_eps", "num_attacked", "attack_steps", "attack_restarts",
)  # fmt: skip
KEYS = ("model", *CLASSIFIER_KEYS, *DETECTOR_KEYS)
"""Keys that a config needs, beside `system` and those of the training loop."""
OPTIONS = (*VIEW_DEFAULTS, "held_out_classes", "widths")
"""Keys that a config may have: without held_out_classes none is held out, and without widths these
are the default of `ConvClassifier`."""
OBJECTIVES = ("supervised", "pi_model", "mean_teacher", "virtual_adversarial")


def build(config: ConfigDict) -> System:
    """The training of a classifier. Raises: ValueError, or FileNotFoundError without its data."""
    model = make_model(config)
    if isinstance(model, Detector):
        raise ValueError(
            "a detector is fitted, not trained: python -m launch.evaluate --config=... "
            "--config.classifier=<workdir of the classifier>"
        )
    x = np.zeros((1, *model.data.shape), np.float32)
    return System(
        init=make_init(model.network, x),
        loss=model.loss,
        tx=model.tx,
        source=model.source(),
        evaluate=make_evaluate(model.metrics(), config.best_metric),
        paths=model.data.paths,
    )


def make_model(config: ConfigDict) -> Classifier | Detector:
    """The model of a config. Raises: ValueError for an impossible value."""
    require_keys(config, ("model",))
    return choose("model", config.model, {"classifier": classifier, "detector": detector})(config)


def classifier(config: ConfigDict) -> Classifier:
    """The first stage."""
    require_keys(config, CLASSIFIER_KEYS)
    require_known("objective", config.objective, OBJECTIVES)
    counts = ("num_labelled", "num_valid", "num_calibration", "ramp_steps", "num_classes")
    require(config, counts, lambda v: v >= 1, "to be at least 1")
    at_least_0 = ("unlabelled_weight", "augment_noise", "augment_shift")
    require(config, at_least_0, lambda v: 0 <= v < math.inf, "to be 0 or positive")
    require(config, ("vat_eps",), lambda v: 0 < v < math.inf, "to be positive")
    require(config, ("centered",), lambda v: not v, "to be False, since attacks are in [0, 1]")
    data = ImageView.from_options(config)
    augment = make_augment(noise=config.augment_noise, shift=config.augment_shift)
    unlabelled = config.objective != "supervised"
    sets = {name: config[name] for name in ("num_labelled", "num_valid", "num_calibration")}
    sets["held_out_classes"] = held_out_classes(config)
    return Classifier(
        data=data,
        network=network(config),
        tx=decaying_adam_from_config(config),
        unlabelled=(
            unlabelled_loss(config.objective, augment, eps=config.vat_eps) if unlabelled else None
        ),
        weight=config.unlabelled_weight,
        num_ramp_steps=config.ramp_steps,
        batch_size=config.batch_size,
        draw_sets=functools.partial(five_sets, data, seed=config.split_seed, **sets),
        held_out_classes=sets["held_out_classes"],
    )


def network(config: ConfigDict) -> nn.Module:
    """The classifier's network: "conv", a small one, or "wide_resnet", WRN-28-10.

    It has an output for each of the `num_classes` classes that is not held out; `widths` are those
    of "conv", where a config has them.
    """
    options = {"widths": tuple(config.widths)} if "widths" in config else {}
    networks = {"conv": functools.partial(ConvClassifier, **options), "wide_resnet": WideClassifier}
    num_classes = config.num_classes - len(held_out_classes(config))
    return choose("network", config.network, networks)(num_classes=num_classes)


def held_out_classes(config: ConfigDict) -> tuple[int, ...]:
    """The classes that no training set has. Raises: ValueError unless two others are left."""
    classes, num = tuple(config.get("held_out_classes", ())), config.num_classes
    known = set(classes) <= set(range(num)) and len(set(classes)) == len(classes)
    if not known or (classes and len(classes) > num - 2):
        raise ValueError(
            f"held_out_classes needs different classes 0 .. {num - 1}, and two others that are "
            f"left; got {classes}"
        )
    return classes


def detector(config: ConfigDict) -> Detector:
    """The second stage, on the run of a classifier, which is read once it is needed."""
    require_keys(config, DETECTOR_KEYS)
    require(config, ("densities",), len, f"one of {', '.join(sorted(DENSITIES))}, or more")
    for name in config.densities:
        require_known("density", name, DENSITIES)
    for name in config.attacks:
        require_known("attack", name, ATTACKS)
    counts = ("num_attacked", "attack_steps", "attack_restarts")
    require(config, counts, lambda v: v >= 1, "to be at least 1")
    require(config, ("alpha",), lambda v: 0 < v < 1, "to lie in (0, 1)")
    require(config, ("explained",), lambda v: 0 < v <= 1, "to lie in (0, 1]")
    require(config, ("delta",), lambda v: 0 <= v < 1, "to be 0, or to lie in (0, 1)")
    return Detector(
        workdir=config.classifier,
        make_classifier=lambda: trained_classifier(config.classifier, config.dataset),
        densities=tuple(config.densities),
        alpha=config.alpha,
        delta=config.delta or None,
        explained=config.explained,
        attacks=tuple(config.attacks),
        ball=Ball(config.attack_norm, config.attack_eps),
        num_attacked=config.num_attacked,
        num_steps=config.attack_steps,
        num_restarts=config.attack_restarts,
        seed=config.seed,
    )


def trained_classifier(workdir: str, dataset: str) -> Classifier:
    """The classifier of a run, as its own config says.

    Raises: ValueError, FileNotFoundError if there is none, or for one of another data set.
    """
    if not workdir:
        raise ValueError("set --config.classifier to the workdir of a trained classifier")
    config = runs.read_config(workdir)
    if (config.get("system"), config.get("model")) != ("classifier_mistakes", "classifier"):
        raise ValueError(
            f"--config.classifier={workdir} is a run of {config.get('system')!r}, and no "
            "classifier of 'classifier_mistakes'"
        )
    if config.dataset != dataset:
        raise ValueError(
            f"--config.classifier={workdir} is a run on {config.dataset!r}, and this config is of "
            f"{dataset!r}: attacks are sized by it. Take the config of {config.dataset!r}"
        )
    return classifier(config)
