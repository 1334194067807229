# SPDX-License-Identifier: Apache-2.0
"""What classifiers of noisy images have in common; a config states what differs.

The network is that of the paper (arXiv:2011.13456, Appendix I.1); how it was trained is not
published, so that optimiser and schedule are ours.
"""

from ml_collections import ConfigDict

from configs.score_sde import family as score_sde

AS_THE_SCORE_MODEL = (
    "seed", "dataset", "data_dir", "image_size", "random_flip", "uniform_dequantization",
    "centered", "sde", "beta_min", "beta_max", "sigma_min", "sigma_max",
)  # fmt: skip
"""What a classifier has in common with the models that it is to guide: data and noise."""


def default(sde: str) -> ConfigDict:
    """WRN-28-10 on CIFAR-10 under an SDE."""
    config = ConfigDict()
    config.system = "noisy_classifier"
    guided = score_sde.default(sde)
    config.update({key: guided[key] for key in AS_THE_SCORE_MODEL})

    config.num_classes = 10
    config.width = 16
    config.widen_factor = 10
    config.num_blocks = 4
    config.num_stages = 3

    config.num_train_steps = 200_000
    config.batch_size = 128  # of all devices together
    config.accumulation = 1
    config.num_steps_per_call = 10
    config.learning_rate = 3e-4
    config.warmup = 1000
    config.grad_clip = 1.0  # 0 is none
    config.ema_rate = 0.999

    config.log_every = 100
    config.eval_every = config.save_every = 10_000
    config.eval_examples = 2000
    config.num_noise_bins = 10
    config.keep_latest = 2
    config.best_metric = "accuracy"
    config.best_mode = "max"
    return config


def debug(config: ConfigDict) -> ConfigDict:
    """The same experiment with everything small: trains in seconds on a CPU."""
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
