# SPDX-License-Identifier: Apache-2.0
"""Defaults and variants of the EDM experiments.

The values are the published settings (arXiv:2206.00364, Appendix F) for CIFAR-10.
"""

from ml_collections import ConfigDict

from configs.variants import unchanged


def default() -> ConfigDict:
    """DDPM++, which the paper calls its VP network, on CIFAR-10, without augmentation."""
    config = ConfigDict()
    config.system = "edm"
    config.seed = 42

    config.dataset = "cifar10"
    config.data_dir = ""  # empty: $SCOREJAX_DATA_DIR, else ~/tensorflow_datasets
    config.damaged = "raise"  # skip: leaves out pictures of dataset=folder that cannot be used
    config.image_size, config.random_flip = 32, True
    config.uniform_dequantization = False  # in training; bits/dim always use dequantised images
    config.centered = True  # images in [-1, 1]

    config.nf = 128
    config.ch_mult = (2, 2, 2)
    config.num_res_blocks = 4
    config.attn_resolutions = (16,)
    config.dropout = 0.13
    config.embedding_type = "positional"
    config.channel_mult_noise = 1
    config.progressive = config.progressive_input = "none"
    config.fir_kernel = (1, 1)
    config.augment_dim = 9  # width of the published networks' augmentation label; zeros here
    config.dtype = "float32"  # arithmetic of the body; bfloat16 on accelerators
    config.remat = False

    config.preconditioner = "edm"  # vp, ve: for networks trained on these SDEs
    config.sigma_data = 0.5
    config.level_mean, config.level_std = -1.2, 1.2  # of the log noise level in training
    config.sigma_min, config.sigma_max = 0.002, 80.0  # in sampling

    config.num_train_steps = 390_620  # 200 million images
    config.batch_size = 512  # over all devices
    config.accumulation = 1
    config.num_steps_per_call = 10
    config.learning_rate = 1e-3
    config.beta1 = 0.9
    config.adam_eps = 1e-8
    config.warmup = 19_531  # 10 million images
    config.ema_rate = 0.99929  # a half-life of half a million images

    # For --sampler=pc and ode, and for bits/dim.
    config.predictor, config.corrector = "reverse_diffusion", "langevin"
    config.snr = 0.16
    config.num_corrector_steps = 1
    config.num_sampling_steps = 1000
    config.denoise = True
    config.rtol = config.atol = 1e-5

    config.log_every = 100
    config.eval_every, config.save_every = 25_000, 5000
    config.eval_examples = 1000
    config.eval_bits_examples = 64
    config.eval_samples = 64
    config.eval_frechet_samples = 0  # for best_metric="frechet"
    config.eval_features = ""  # for "frechet": "digits", or the file of FID's weights
    config.eval_matmul_precision = "highest"  # of likelihoods, ODE solves, features; high, default
    config.keep_latest, config.max_nonfinite_updates = 2, 0
    config.best_metric, config.best_mode = "loss", "min"
    return config


def ncsnpp(config: ConfigDict) -> ConfigDict:
    """NCSN++, which the paper calls its VE network."""
    config.embedding_type = "fourier"
    config.channel_mult_noise = 2
    config.progressive_input = "residual"
    config.fir_kernel = (1, 3, 3, 1)
    return config


NETWORKS = {"vp": unchanged, "ve": ncsnpp}


def debug(config: ConfigDict) -> ConfigDict:
    """Small images, a small network and short training, for seconds on a CPU."""
    config.image_size = min(config.image_size, 16)
    config.nf = 8
    config.ch_mult, config.attn_resolutions = (1, 2), (config.image_size // 2,)
    config.num_res_blocks = 1
    config.num_train_steps = 40
    config.batch_size = 16
    config.warmup = 5
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
