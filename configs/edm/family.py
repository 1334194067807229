# SPDX-License-Identifier: Apache-2.0
"""What the experiments of EDM have in common; a config states what differs.

The values are those of the published settings (arXiv:2206.00364, Appendix F) for CIFAR-10.
"""

from ml_collections import ConfigDict

from configs.score_sde import family as score_sde
from scorejax.choices import require_known

NETS = ("vp", "ve")
SIZES = ("full", "debug")


def default() -> ConfigDict:
    """DDPM++, which the paper calls its VP network, on CIFAR-10, without augmentation."""
    config = ConfigDict()
    config.system = "edm"
    config.seed = 42

    config.dataset = "cifar10"
    config.data_dir = ""  # $SCOREJAX_DATA_DIR, else ~/tensorflow_datasets
    config.image_size = 32
    config.random_flip = True
    config.uniform_dequantization = False  # in training; bits/dim are always of dequantised images
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
    config.augment_dim = 9  # weights of labels that published networks have; always zeros here
    config.dtype = "float32"  # of the arithmetic in the body; bfloat16 on accelerators
    config.remat = False

    config.preconditioner = "edm"  # vp, ve: those of networks that were trained on these SDEs
    config.sigma_data = 0.5
    config.level_mean, config.level_std = -1.2, 1.2  # of the logarithm of the noise level
    config.sigma_min, config.sigma_max = 0.002, 80.0  # of sampling

    config.num_train_steps = 390_620  # 200 million images
    config.batch_size = 512  # of all devices together
    config.accumulation = 1
    config.num_steps_per_call = 10
    config.learning_rate = 1e-3
    config.beta1 = 0.9
    config.adam_eps = 1e-8
    config.warmup = 19_531  # 10 million images
    config.ema_rate = 0.99929  # half of it after half a million images

    # Of --sampler=pc, ode and the like, and of bits/dim.
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
    config.eval_features = ""  # of what that looks at: FID's weights, a file, or "digits"
    config.keep_latest = 2
    config.best_metric = "loss"
    config.best_mode = "min"
    return config


def varied(config: ConfigDict, variant: str) -> ConfigDict:
    """With the network and the size of a variant: "ve", "debug", "ve,debug". Raises: ValueError."""
    for word in filter(None, variant.split(",")):
        require_known("variant", word, NETS + SIZES)
        config = _ncsnpp(config) if word == "ve" else config
        config = debug(config) if word == "debug" else config
    return config


def _ncsnpp(config: ConfigDict) -> ConfigDict:
    """NCSN++, which the paper calls its VE network."""
    config.embedding_type = "fourier"
    config.channel_mult_noise = 2
    config.progressive_input = "residual"
    config.fir_kernel = (1, 3, 3, 1)
    return config


def debug(config: ConfigDict) -> ConfigDict:
    """The same experiment with everything small: trains in seconds on a CPU."""
    config = score_sde.debug(config)
    config.image_size = min(config.image_size, 16)
    config.ch_mult, config.attn_resolutions = (1, 2), (config.image_size // 2,)
    return config
