# SPDX-License-Identifier: Apache-2.0
"""What the experiments of NCSNv2 have in common; a config states what differs.

The values are those of the published settings (arXiv:2006.09011, Appendix B) for CIFAR-10.
"""

from ml_collections import ConfigDict

from scorejax.choices import require_known

SIZES = ("full", "debug")


def default() -> ConfigDict:
    """NCSNv2 on CIFAR-10."""
    config = ConfigDict()
    config.system = "ncsnv2"
    config.seed = 42

    config.dataset = "cifar10"
    config.data_dir = ""  # $SCOREJAX_DATA_DIR, else ~/tensorflow_datasets
    config.image_size = 32
    config.random_flip = True
    config.uniform_dequantization = False  # in training; bits/dim are always of dequantised images
    config.centered = False  # images in [0, 1], to which the noise levels belong

    config.model = "ncsnv2"  # ncsnv2_deeper, ncsnv2_deepest, ncsn
    config.nf = 128
    config.dtype = "float32"  # of the arithmetic in the body; bfloat16 on accelerators
    config.remat = False

    config.sigma_min, config.sigma_max = 0.01, 50.0  # technique 1
    config.num_scales = 232  # technique 2
    config.steps_per_level = 5
    config.step_size = 6.2e-6  # technique 4, of the last level; 0: as the rule chooses
    config.denoise = True

    config.num_train_steps = 300_000
    config.batch_size = 128  # of all devices together
    config.accumulation = 1
    config.num_steps_per_call = 10
    config.learning_rate = 1e-4
    config.beta1 = 0.9
    config.adam_eps = 1e-8
    config.ema_rate = 0.999  # technique 5

    # Of --sampler=pc, ode and the like, and of bits/dim: the ladder as a VE SDE.
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
    config.eval_features = ""  # of what that looks at: FID's weights, a file, or "digits"
    config.save_every = 5000
    config.keep_latest = 2
    config.best_metric = "loss"
    config.best_mode = "min"
    return config


def ladder(
    config: ConfigDict, sigma_max: float, num_scales: int, steps_per_level: int, step_size: float
) -> ConfigDict:
    """The noise levels and the chain of a row of the paper's table."""
    config.sigma_max, config.num_scales = sigma_max, num_scales
    config.steps_per_level, config.step_size = steps_per_level, step_size
    return config


def lsun(dataset: str, image_size: int) -> ConfigDict:
    """What the scenes have in common."""
    config = default()
    config.dataset, config.image_size, config.model = dataset, image_size, "ncsnv2_deeper"
    config.eval_samples = 36
    return config


def sized(config: ConfigDict, variant: str) -> ConfigDict:
    """The experiment in full, or for "debug" with everything small. Raises: ValueError."""
    if variant:
        require_known("variant", variant, SIZES)
    return debug(config) if variant == "debug" else config


def debug(config: ConfigDict) -> ConfigDict:
    """The same experiment with everything small: trains in seconds on a CPU."""
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
