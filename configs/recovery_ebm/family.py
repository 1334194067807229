# SPDX-License-Identifier: Apache-2.0
"""Defaults and variants of the experiments with diffusion recovery likelihood.

The values are those of the published code (ruiqigao/recovery_likelihood) for CIFAR-10.
"""

from ml_collections import ConfigDict

from configs.variants import unchanged
from scorejax.models.recovery_resnet import CH_MULT


def default() -> ConfigDict:
    """Six energies of images of 32 x 32 pixels, chains of 30 steps ("T6")."""
    config = ConfigDict()
    config.system = "recovery_ebm"
    config.seed = 42

    config.dataset = "cifar10"
    config.data_dir = ""  # empty: $SCOREJAX_DATA_DIR, else ~/tensorflow_datasets
    config.damaged = "raise"  # skip: leaves out pictures of dataset=folder that cannot be used
    config.image_size, config.random_flip = 32, True
    config.uniform_dequantization = False
    config.centered = True  # images in [-1, 1]

    config.model = "resnet"
    config.nf = 128
    config.ch_mult = CH_MULT[32]
    config.num_res_blocks = 8
    config.attn_resolutions = ()
    config.activation = "leaky_relu"  # swish, softplus, elu
    config.spectral_norm = True
    config.dtype = "float32"  # arithmetic of the body; bfloat16 on accelerators
    config.remat = False

    config.ladder = "blocks"  # fine: every step of the chain is a level
    config.num_levels = 6
    config.step_scale = 2e-4  # b^2: step sizes relative to the noise
    config.step_rule, config.detail = "cumulative", 0.0  # see schedules.RecoveryLevels
    config.energy_unit = "steps"  # nats: networks are log-densities, losses log-likelihoods
    config.objective = "recovery"  # denoising
    config.num_chain_steps = 30  # Langevin steps a level; 0, for fine ladders: one normal draw
    config.noise_scale = 0.99  # of samples; training has 1
    config.energy_band = 1.0  # |F(negative) - F(positive)| a dimension beyond which a run ends

    config.num_train_steps = 1_000_000
    config.batch_size = 256  # over all devices
    config.accumulation = 1
    config.num_steps_per_call = 1
    config.optimizer = "keras_adam"  # adam
    config.learning_rate = 1e-4
    config.beta1, config.beta2 = 0.9, 0.999
    config.adam_eps = 1e-7
    config.warmup = 1000
    config.cosine_decay = False  # the rate falls to 0 at the last step
    config.grad_clip = 0.0
    config.ema_rate = 0.999

    config.log_every = 100
    config.eval_every = 40_000
    config.eval_examples = 1000
    config.eval_samples = 64
    config.eval_frechet_samples = 0  # for best_metric="frechet"
    config.eval_features = ""  # for "frechet": "digits", or the file of FID's weights
    config.eval_matmul_precision = "highest"  # of features; high, default
    config.eval_chain_steps, config.eval_chains = 10_000, 64  # launch.evaluate's long_chains
    config.save_every = 5000
    config.keep_latest = 2
    config.max_nonfinite_updates = 0  # skipped in a row; the next one ends the run
    config.best_metric = ""
    config.best_mode = "min"
    return config


def scenes(dataset: str, image_size: int, num_res_blocks: int, beta1: float) -> ConfigDict:
    """Scenes or faces: the published command for a data set, with the batch that it intends."""
    config = default()
    config.dataset, config.image_size = dataset, image_size
    config.ch_mult, config.num_res_blocks = CH_MULT[image_size], num_res_blocks
    config.batch_size = 128 if image_size <= 64 else 64
    config.beta1 = beta1
    return config


def denoising(config: ConfigDict) -> ConfigDict:
    """Every step of DDPM's chain a level, with energies by denoising and one draw a level."""
    config.ladder, config.num_levels = "fine", 1000
    config.objective, config.energy_unit = "denoising", "nats"
    config.num_chain_steps, config.noise_scale = 0, 1.0
    return config


def plane(toy: str) -> ConfigDict:
    """Points of the plane with a known density; sizes are ours."""
    config = default()
    for key in ("data_dir", "damaged", "image_size", "random_flip", "uniform_dequantization"):
        del config[key]
    del config.centered
    for key in ("nf", "ch_mult", "num_res_blocks", "attn_resolutions", "dtype", "remat"):
        del config[key]
    for key in ("eval_samples", "eval_frechet_samples", "eval_features", "eval_matmul_precision"):
        del config[key]
    config.dataset = toy
    config.num_train_examples, config.data_seed = 100_000, 0
    config.model = "mlp"
    config.hidden, config.num_hidden = 128, 3
    config.activation, config.spectral_norm = "swish", False
    # The first kernel is small, of variance 2 / (2 + hidden): unscaled, F is far too smooth.
    config.input_scale = 30.0
    config.num_frequencies, config.frequency = 0, 1.0

    # Networks in nats: with F in units of a step, 3e-3 nats here, one update of Adam is many nats.
    config.energy_unit = "nats"
    # 20 such steps make a relaxation time at every level: energies are nearly log-densities.
    config.step_rule, config.step_scale = "added", 0.1
    config.num_levels, config.num_chain_steps = 11, 20
    config.noise_scale = 1.0

    config.num_train_steps = 4000
    config.batch_size = 512
    config.num_steps_per_call = 10
    config.optimizer, config.adam_eps = "adam", 1e-8
    config.learning_rate, config.warmup, config.cosine_decay = 1e-3, 100, True
    config.beta2, config.grad_clip = 0.99, 1.0
    config.ema_rate = 0.995
    config.eval_every = config.save_every = 1000
    config.eval_examples = 10_000
    config.best_metric = "divergence"
    return config


SMALL = {
    "image_size": 8, "nf": 8, "ch_mult": (1, 2), "num_res_blocks": 1, "hidden": 16,
    "num_hidden": 1, "num_chain_steps": 3, "num_train_steps": 40, "batch_size": 16,
    "num_steps_per_call": 10, "warmup": 10, "log_every": 10, "eval_every": 20, "save_every": 20,
    "eval_examples": 32, "eval_samples": 9, "eval_chain_steps": 10, "eval_chains": 4,
    "num_train_examples": 1000, "spectral_norm": True,
}  # fmt: skip
"""Values of `debug`; each config has some of these keys."""


def fine_plane(toy: str) -> ConfigDict:
    """A toy with structure of std 0.03 or less: finer levels, and a network that can follow it."""
    config = plane(toy)
    config.num_levels, config.step_scale = 21, 0.06
    config.input_scale, config.num_frequencies = 5.0, 64
    config.num_train_steps = 3000
    return config


def fine_denoising(config: ConfigDict) -> ConfigDict:
    """Energies of such a toy by denoising, on levels that are as many at every scale.

    Chains that resolve a std d have steps s^2 < 4 d^2, and forget a distance r in r^2 / s^2 steps:
    for rings 0.25 apart, of noise 0.03, in the order of a hundred at every level.
    """
    config = denoising(config)
    config.ladder, config.num_levels = "geometric", 500
    config.num_frequencies, config.frequency = 128, 3.0
    # Without it, energies away from the data are whatever periodic features make of them.
    config.background = 0.005
    config.learning_rate, config.num_train_steps = 2e-3, 4000
    return config


FINE_OBJECTIVES = {"denoising": fine_denoising, "recovery": unchanged}
"""Of `fine_plane`; the first one is the default."""


def debug(config: ConfigDict) -> ConfigDict:
    """Small data, a small network and short training, for seconds on a CPU."""
    small = SMALL | ({} if config.num_chain_steps else {"num_chain_steps": 0})
    config.update({key: value for key, value in small.items() if key in config})
    config.learning_rate = 1e-3
    config.ema_rate = 0.9
    return config


SIZES = {"full": unchanged, "debug": debug}
