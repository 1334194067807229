# SPDX-License-Identifier: Apache-2.0
"""Defaults and variants of the NCSNv2 experiments.

The values are the published settings (arXiv:2006.09011, Appendix B) for CIFAR-10.
"""

from ml_collections import ConfigDict

from configs.variants import unchanged


def default() -> ConfigDict:
    """NCSNv2 on CIFAR-10."""
    config = ConfigDict()
    config.system = "ncsnv2"
    config.seed = 42

    config.dataset = "cifar10"
    config.data_dir = ""  # empty: $SCOREJAX_DATA_DIR, else ~/tensorflow_datasets
    config.damaged = "raise"  # skip: leaves out pictures of dataset=folder that cannot be used
    config.image_size = 32
    config.random_flip = True
    config.uniform_dequantization = False  # in training; bits/dim always use dequantised images
    config.centered = False  # images in [0, 1], the range of the noise levels

    config.model = "ncsnv2"  # ncsnv2_deeper, ncsnv2_deepest, ncsn
    config.nf = 128
    config.dtype = "float32"  # arithmetic of the body; bfloat16 on accelerators
    config.remat = False

    config.sigma_min, config.sigma_max = 0.01, 50.0  # technique 1
    config.num_scales = 232  # technique 2
    config.steps_per_level = 5
    config.step_size = 6.2e-6  # technique 4, at the last level; 0: chosen by the rule
    config.denoise = True

    config.num_train_steps = 300_000
    config.batch_size = 128  # over all devices
    config.accumulation = 1
    config.num_steps_per_call = 10
    config.learning_rate = 1e-4
    config.beta1 = 0.9
    config.adam_eps = 1e-8
    config.ema_rate = 0.999  # technique 5

    # The ladder as a VE SDE: for every sampler but ald, and for bits/dim.
    config.predictor, config.corrector = "reverse_diffusion", "langevin"
    config.snr = 0.16
    config.num_corrector_steps = 1
    config.num_sampling_steps = 1000
    config.rtol = config.atol = 1e-5

    config.log_every = 100
    config.eval_every = 50_000
    config.eval_examples = 1000
    config.eval_bits_examples = 0
    config.eval_samples = 64
    config.eval_frechet_samples = 0  # for best_metric="frechet"
    config.eval_features = ""  # for "frechet": "digits", or the file of FID's weights
    config.eval_matmul_precision = "highest"  # of likelihoods, ODE solves, features; high, default
    config.save_every = 5000
    config.keep_latest = 2
    config.max_nonfinite_updates = 0  # skipped in a row; the next one ends the run
    config.best_metric = "loss"
    config.best_mode = "min"
    return config


def ladder(
    config: ConfigDict, sigma_max: float, num_scales: int, steps_per_level: int, step_size: float
) -> ConfigDict:
    """Sets the noise levels and the Langevin chain: one row of the paper's table."""
    config.sigma_max, config.num_scales = sigma_max, num_scales
    config.steps_per_level, config.step_size = steps_per_level, step_size
    return config


def lsun(dataset: str, image_size: int) -> ConfigDict:
    """NCSNv2, deeper, on an LSUN scene."""
    config = default()
    config.dataset, config.image_size, config.model = dataset, image_size, "ncsnv2_deeper"
    config.eval_samples = 36
    return config


def debug(config: ConfigDict) -> ConfigDict:
    """Small images, a small network and short training, for seconds on a CPU."""
    config.image_size = min(config.image_size, 16)
    config.nf = 8
    config.num_scales = min(config.num_scales, 10)
    config.steps_per_level, config.step_size = 2, 0.0
    config.num_train_steps = 40
    config.batch_size = 16
    config.learning_rate = 2e-3
    config.ema_rate = 0.9
    config.num_sampling_steps = 25
    config.rtol = config.atol = 1e-2
    config.log_every = 10
    config.eval_every = config.save_every = 20
    config.eval_examples = 32
    config.eval_bits_examples = 4
    config.eval_samples = 9
    return config


SIZES = {"full": unchanged, "debug": debug}
