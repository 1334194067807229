# SPDX-License-Identifier: Apache-2.0
"""Defaults and variants of the classifiers of noisy images.

The network is the paper's (arXiv:2011.13456, Appendix I.1). Its training is not published:
optimiser and schedule are ours.
"""

from ml_collections import ConfigDict

from configs.variants import make_edit, unchanged


def default() -> ConfigDict:
    """WRN-28-10 on CIFAR-10 under the VP SDE; data and noise as of the score models to guide."""
    config = ConfigDict()
    config.system = "noisy_classifier"
    config.seed = 42

    config.dataset = "cifar10"
    config.data_dir = ""  # empty: $SCOREJAX_DATA_DIR, else ~/tensorflow_datasets
    config.damaged = "raise"  # skip: leaves out pictures of dataset=folder that cannot be used
    config.image_size = 32
    config.random_flip = True
    config.uniform_dequantization = False
    config.centered = True  # images in [-1, 1], else in [0, 1]

    config.sde = "vp"
    config.beta_min, config.beta_max = 0.1, 20.0  # vp
    config.sigma_min, config.sigma_max = 0.01, 50.0  # ve

    config.num_classes = 10
    config.width = 16
    config.widen_factor = 10
    config.num_blocks = 4
    config.num_stages = 3

    config.num_train_steps = 200_000
    config.batch_size = 128  # over all devices
    config.accumulation = 1
    config.num_steps_per_call = 10
    config.learning_rate = 3e-4
    config.warmup = 1000  # steps
    config.grad_clip = 1.0  # global norm; 0: no clipping
    config.ema_rate = 0.999

    config.log_every = 100
    config.eval_every = config.save_every = 10_000
    config.eval_examples = 2000
    config.num_noise_bins = 10
    config.keep_latest = 2
    config.max_nonfinite_updates = 0  # skipped in a row; the next one ends the run
    config.best_metric = "accuracy"
    config.best_mode = "max"
    return config


def debug(config: ConfigDict) -> ConfigDict:
    """A small network and short training, for seconds on a CPU."""
    config.width, config.widen_factor, config.num_blocks = 4, 2, 1
    config.num_train_steps = 40
    config.batch_size = 16
    config.learning_rate = 2e-3
    config.warmup = 5
    config.ema_rate = 0.9
    config.log_every = 10
    config.eval_every = config.save_every = 20
    config.eval_examples = 32
    config.num_noise_bins = 3
    return config


SDES = {"vp": unchanged, "ve": make_edit(sde="ve", centered=False)}
SIZES = {"full": unchanged, "debug": debug}
