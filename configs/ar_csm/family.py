# SPDX-License-Identifier: Apache-2.0
"""Defaults and variants of the experiments with AR-CSM. Sizes are ours; no code was published."""

from ml_collections import ConfigDict

from configs.variants import Edit, make_edit, unchanged


def default() -> ConfigDict:
    """Settings that all experiments share: training, evaluation, a MADE trunk, a score head."""
    config = ConfigDict()
    config.system = "ar_csm"
    config.seed = 42

    config.model = "made"  # pixelcnnpp, of images
    config.hidden, config.num_hidden = 128, 3
    config.order_seed = 0  # 0: dimensions in their order; else a random order by this seed
    config.num_trunk_frequencies, config.max_trunk_frequency = 0, 1.0  # of the inputs of a MADE
    config.features = 32  # of a context
    config.head = "score"  # mixture
    config.head_hidden, config.num_head_hidden = 64, 2
    config.num_frequencies, config.max_frequency = 0, 1.0
    config.min_variance = 1e-3  # of a score head, in squared units of the data
    config.num_components, config.mixture_kind = 10, "gaussian"  # logistic

    config.objective = "csm"  # denoising; likelihood, of mixtures
    config.data_noise = 0.0  # std of noise that csm adds to the data
    config.weighted = True  # by the variance of each conditional; False: the paper's loss
    config.sigma_max, config.sigma_min, config.num_levels = 1.0, 0.05, 8
    config.noisy_context = False
    config.langevin_step = 0.5  # in units of sigma_min^2
    config.langevin_steps = 50  # at each level
    config.num_cells = 96  # of the quadrature

    config.batch_size = 512
    config.accumulation = 1
    config.num_steps_per_call = 10
    config.optimizer, config.adam_eps = "adam", 1e-8
    config.beta1, config.beta2 = 0.9, 0.999
    config.learning_rate, config.warmup, config.cosine_decay = 1e-3, 100, True
    config.grad_clip = 0.0
    config.ema_rate = 0.999

    config.log_every = 100
    config.keep_latest = 2
    config.max_nonfinite_updates = 0
    config.best_metric, config.best_mode = "", "min"
    return config


def plane(toy: str) -> ConfigDict:
    """Points of the plane with a known density."""
    config = default()
    config.dataset = toy
    config.num_train_examples, config.data_seed = 100_000, 0
    config.objective = "denoising"
    config.sigma_min, config.num_levels = 0.03, 10
    config.num_frequencies, config.max_frequency = 16, 4.0
    config.num_train_steps = 5000
    config.eval_every = config.save_every = 1000
    config.eval_examples = 10_000
    config.best_metric = "divergence"
    return config


def fine(config: ConfigDict) -> ConfigDict:
    """A trunk and a head that follow curves which bend within a few hundredths of a unit."""
    config.num_trunk_frequencies, config.max_trunk_frequency = 32, 8.0
    config.num_frequencies, config.max_frequency = 32, 8.0
    config.features, config.head_hidden = 64, 128
    config.learning_rate = 2e-3
    return config


def table(name: str) -> ConfigDict:
    """Standardised rows of a table, 80 % of them for training."""
    config = default()
    config.dataset = name
    config.split_seed, config.held_out, config.dequantize = 0, 0.1, True
    config.data_noise = 0.05
    config.hidden, config.num_hidden, config.features = 192, 2, 48
    config.head_hidden = 96
    config.batch_size = 256
    config.learning_rate, config.grad_clip = 2e-3, 1.0
    config.ema_rate = 0.995
    config.num_train_steps = 8000
    config.eval_every = config.save_every = 4000
    config.eval_examples = config.eval_bits_examples = 2000
    config.best_metric, config.best_mode = "valid_log_prob", "max"
    return config


def small_table(name: str) -> ConfigDict:
    """A table of some hundred rows, which a network of the full size would learn by heart."""
    config = table(name)
    config.hidden, config.num_hidden, config.features = 32, 1, 8
    config.head_hidden, config.num_components = 16, 3
    config.data_noise = 0.1
    config.batch_size = 128
    config.num_train_steps = 1000
    config.eval_every = config.save_every = 200
    return config


def images(dataset: str, image_size: int) -> ConfigDict:
    """Images whose contexts are of grey levels."""
    config = default()
    config.dataset, config.image_size, config.data_dir = dataset, image_size, ""
    config.damaged = "raise"  # skip: leaves out pictures of dataset=folder that cannot be used
    config.centered, config.random_flip, config.uniform_dequantization = True, False, False
    config.objective = "denoising"
    config.mixture_kind = "logistic"
    config.eval_features, config.eval_matmul_precision = "", "highest"
    return config


def pixelcnnpp(config: ConfigDict) -> ConfigDict:
    """The trunk of PixelCNN++ in place of MADE; sizes for tiny images."""
    config.model = "pixelcnnpp"
    config.num_filters, config.num_blocks, config.num_resolutions = 32, 2, 1
    config.dropout = 0.3
    return config


def noisy(config: ConfigDict) -> ConfigDict:
    """Contexts of noisy values, to denoise; such a model draws no samples."""
    config.objective, config.noisy_context = "denoising", True
    return config


def dequantised(config: ConfigDict) -> ConfigDict:
    """Exact composite score matching of dequantised images, with a little noise."""
    config.objective, config.uniform_dequantization = "csm", True
    return config


IMAGE_OBJECTIVES: dict[str, Edit] = {
    "csm": dequantised,
    "denoising": make_edit(objective="denoising"),
    "noisy": noisy,
    "mixture": make_edit(head="mixture", objective="likelihood"),
}
TRUNKS: dict[str, Edit] = {"made": unchanged, "pixelcnnpp": pixelcnnpp}
OTHER_TRUNKS: dict[str, Edit] = {
    "pixelcnnpp": unchanged,
    "made": make_edit(model="made", hidden=1024),
}
OBJECTIVES: dict[str, Edit] = {
    "csm": make_edit(objective="csm"),
    "denoising": make_edit(objective="denoising"),
    "mixture": make_edit(head="mixture", objective="likelihood"),
}
"""Exact composite score matching, by denoising, and the likelihood of a mixture."""

SMALL = {
    "image_size": 8, "hidden": 64, "num_hidden": 1, "features": 8, "head_hidden": 8,
    "num_head_hidden": 1, "num_levels": 2, "num_components": 2, "num_cells": 24, "num_filters": 4,
    "num_blocks": 1, "num_resolutions": 1, "langevin_steps": 2, "num_train_steps": 40,
    "batch_size": 16, "num_steps_per_call": 10, "warmup": 10, "log_every": 10, "eval_every": 20,
    "save_every": 20, "eval_examples": 32, "eval_bits_examples": 8, "eval_samples": 9,
    "eval_frechet_samples": 0, "num_train_examples": 1000,
}  # fmt: skip
"""Values of `debug`; each config has some of these keys."""


def debug(config: ConfigDict) -> ConfigDict:
    """Small data, a small network and short training, for seconds on a CPU."""
    config.update({key: value for key, value in SMALL.items() if key in config})
    config.ema_rate = 0.9
    return config


SIZES: dict[str, Edit] = {"full": unchanged, "debug": debug}
