# SPDX-License-Identifier: Apache-2.0
"""Defaults and variants of the experiments with classifier mistakes; all sizes are ours."""

from ml_collections import ConfigDict

from configs.variants import Edit, make_edit, unchanged


def default() -> ConfigDict:
    """A classifier of images and its training, and the detector of its failures."""
    config = ConfigDict()
    config.system = "classifier_mistakes"
    config.seed = 42
    config.model = "classifier"  # detector, of a run that is named by `classifier`

    config.data_dir = ""  # empty: $SCOREJAX_DATA_DIR, else ~/tensorflow_datasets
    config.damaged = "raise"  # skip: leaves out pictures of dataset=folder that cannot be used
    config.random_flip = False
    config.uniform_dequantization = False
    config.centered = False  # attacks are on images in [0, 1]
    config.split_seed = 0  # of the five disjoint sets

    config.network = "conv"  # wide_resnet
    config.num_classes = 10  # of the data set
    config.held_out_classes = ()  # in no training set; their test images are a source of failures
    config.objective = "supervised"  # pi_model, mean_teacher, virtual_adversarial
    config.unlabelled_weight = 1.0  # of the loss without labels, at the end of its ramp
    config.ramp_steps = 500
    config.augment_noise, config.augment_shift = 0.05, 1  # of pi_model and mean_teacher
    config.vat_eps = 1.0  # length of the step of virtual_adversarial

    config.batch_size = 64
    config.accumulation = 1
    config.num_steps_per_call = 10
    config.optimizer, config.adam_eps = "adam", 1e-8
    config.beta1, config.beta2 = 0.9, 0.999
    config.learning_rate, config.warmup, config.cosine_decay = 1e-3, 50, True
    config.grad_clip = 0.0
    config.ema_rate = 0.99
    config.log_every = 100
    config.keep_latest = 2
    config.max_nonfinite_updates = 0
    config.best_metric, config.best_mode = "accuracy", "max"

    config.classifier = ""  # workdir of the first stage
    config.densities = ("gaussian_mixture", "gaussian", "maf")  # the first one meets the attacks
    config.alpha = 0.05  # false alarms among images that the classifier gets right
    config.delta = 0.0  # 0: alpha holds on average; else in all but this share of calibrations
    config.explained = 1.0  # share of the variance of features that densities see
    config.attacks = ("adaptive", "feature_matching", "pgd", "fgsm", "deepfool", "carlini_wagner")
    config.attack_norm = "inf"
    config.num_attacked, config.attack_steps, config.attack_restarts = 200, 40, 5
    return config


def debug(config: ConfigDict) -> ConfigDict:
    """Small sets and short training, for seconds on a CPU."""
    config.update({"num_train_steps": 40, "batch_size": 16, "log_every": 10, "warmup": 5})
    config.update({"eval_every": 20, "save_every": 20, "num_attacked": 16, "attack_steps": 3})
    config.update({"attack_restarts": 1, "densities": ("gaussian",), "ramp_steps": 20})
    config.update({"network": "conv", "num_labelled": 300, "num_valid": 97})
    config.num_calibration = min(config.num_calibration, 400)
    return config


OBJECTIVES: dict[str, Edit] = {
    "supervised": unchanged,
    "pi_model": make_edit(objective="pi_model"),
    "mean_teacher": make_edit(objective="mean_teacher"),
    "vat": make_edit(objective="virtual_adversarial"),
}
STAGES: dict[str, Edit] = {"classifier": unchanged, "detector": make_edit(model="detector")}
SIZES: dict[str, Edit] = {"full": unchanged, "debug": debug}
