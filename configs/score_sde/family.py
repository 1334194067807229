# SPDX-License-Identifier: Apache-2.0
"""What the experiments of the score-SDE paper have in common; a config states what differs.

The values are those of the published settings (arXiv:2011.13456, Appendix H) for 32 x 32 images.
"""

from ml_collections import ConfigDict

from scorejax.choices import require_known, unknown

SDES = ("vp", "subvp", "ve")
SIZES = ("full", "debug")


def default(sde: str) -> ConfigDict:
    """DDPM++ in continuous time for VP and sub-VP, NCSN++ for VE."""
    config = ConfigDict()
    config.system = "score_sde"
    config.seed = 42

    config.dataset = "cifar10"
    config.data_dir = ""  # $SCOREJAX_DATA_DIR, else ~/tensorflow_datasets
    config.image_size = 32
    config.random_flip = True
    config.uniform_dequantization = False  # in training; bits/dim are always of dequantised images
    config.centered = sde != "ve"  # images in [-1, 1]; else in [0, 1]

    config.sde = sde
    config.beta_min, config.beta_max = 0.1, 20.0  # vp, subvp
    config.sigma_min, config.sigma_max = 0.01, 50.0  # ve; the largest distance between two images
    config.objective = "denoising"  # likelihood, ddpm (vp), smld (ve)
    config.num_scales = 1000  # of ddpm and smld
    config.reduction = "half_sum" if sde == "ve" else "mean"

    config.model = "ncsnpp"
    config.nf = 128
    config.ch_mult = (1, 2, 2, 2)
    config.num_res_blocks = 4
    config.attn_resolutions = (16,)
    config.dropout = 0.1
    config.conditional = True
    config.embedding_type = "fourier" if sde == "ve" else "positional"
    config.fourier_scale = 16.0
    config.resblock_type = "biggan"
    config.resamp_with_conv = True
    config.fir = sde == "ve"
    config.progressive = "none"
    config.progressive_input = "residual" if sde == "ve" else "none"
    config.progressive_combine = "sum"
    config.skip_rescale = True
    config.init_scale = 0.0
    config.dtype = "float32"  # of the arithmetic in the body; bfloat16 on accelerators
    config.remat = False

    config.num_train_steps = 1_300_000
    config.batch_size = 128  # of all devices together
    config.accumulation = 1
    config.num_steps_per_call = 10
    config.learning_rate = 2e-4
    config.beta1 = 0.9
    config.adam_eps = 1e-8
    config.warmup = 5000
    config.grad_clip = 1.0  # 0 is none
    config.ema_rate = 0.999 if sde == "ve" else 0.9999

    config.predictor = "reverse_diffusion" if sde == "ve" else "euler_maruyama"
    config.corrector = "langevin" if sde == "ve" else "none"
    config.snr = 0.16
    config.num_corrector_steps = 1
    config.num_sampling_steps = 1000
    config.denoise = True
    config.rtol = config.atol = 1e-5  # of the probability-flow ODE

    config.log_every = 100
    config.eval_every = 50_000
    config.eval_examples = 1000
    config.eval_bits_examples = 64
    config.eval_samples = 64
    config.eval_frechet_samples = 0  # for best_metric="frechet"
    config.eval_features = ""  # of what that looks at: FID's weights, a file, or "digits"
    config.save_every = 10_000
    config.keep_latest = 2
    config.best_metric = "loss"
    config.best_mode = "min"
    return config


def official(
    sde: str, net: str, dataset: str, *, continuous: bool, deep: bool = False
) -> ConfigDict:
    """An experiment of the paper: `default` with a network, a data set, and its kind of time."""
    config = NETS[net](default(sde))
    if deep:
        config.num_res_blocks *= 2
        config.num_train_steps = 950_000
    if not continuous:
        config.embedding_type = "positional"
        config.objective = "smld" if sde == "ve" else "ddpm"
        if sde == "vp":
            config.predictor = "reverse_diffusion" if net == "ncsnpp" else "ancestral"
    return DATASETS[dataset](config)


def _ddpm(config: ConfigDict) -> ConfigDict:
    """The network of Ho et al. 2020, arXiv:2006.11239."""
    config.model = "ddpm"
    config.num_res_blocks = 2
    config.resblock_type = "ddpm"
    config.skip_rescale = False
    return _ddpmpp(config)


def _ddpmpp(config: ConfigDict) -> ConfigDict:
    config.embedding_type = "positional"
    config.fir = False
    config.progressive_input = "none"
    return config


def _ncsnpp(config: ConfigDict) -> ConfigDict:
    config.fir = True
    config.progressive_input = "residual"
    return config


def _pyramids(config: ConfigDict) -> ConfigDict:
    """NCSN++ for 256 pixels and more: images go in, and come out, at every level."""
    config = _ncsnpp(config)
    config.ch_mult = (1, 1, 2, 2, 2, 2, 2)
    config.num_res_blocks = 2
    config.progressive_input = "input_skip"
    config.progressive = "output_skip"
    return config


NETS = {"ddpm": _ddpm, "ddpmpp": _ddpmpp, "ncsnpp": _ncsnpp, "ncsnpp_pyramids": _pyramids}


def _cifar10(config: ConfigDict) -> ConfigDict:
    return config


def _celeba(config: ConfigDict) -> ConfigDict:
    config.dataset, config.image_size = "celeba", 64
    config.sigma_max, config.snr = 90.0, 0.17
    return config


def _large(config: ConfigDict, dataset: str, sigma_max: float) -> ConfigDict:
    """What the paper has for 256 x 256 images."""
    config.dataset, config.image_size = dataset, 256
    config.sigma_max, config.snr = sigma_max, 0.075
    config.dropout = 0.0
    config.num_train_steps = 2_400_000
    config.batch_size = 64
    if config.model == "ddpm":
        config.ch_mult = (1, 1, 2, 2, 4, 4)
        config.learning_rate = 2e-5
    else:
        config.num_sampling_steps = config.num_scales = 2000
    return config


def _megapixel(config: ConfigDict, dataset: str) -> ConfigDict:
    """What the paper has for 1024 x 1024 images."""
    config = _large(config, dataset, 1348.0)
    config.image_size = 1024
    config.snr = 0.15
    config.nf, config.num_res_blocks = 16, 1
    config.ch_mult = (1, 2, 4, 8, 16, 32, 32, 32)
    config.batch_size = 8
    config.ema_rate = 0.9999
    config.remat = True
    return config


DATASETS = {
    "cifar10": _cifar10,
    "celeba": _celeba,
    "bedroom": lambda config: _large(config, "lsun_bedroom", 378.0),
    "church": lambda config: _large(config, "lsun_church", 380.0),
    "celebahq_256": lambda config: _large(config, "celebahq", 348.0),
    "ffhq_256": lambda config: _large(config, "ffhq", 348.0),
    "celebahq_1024": lambda config: _megapixel(config, "celebahq"),
    "ffhq_1024": lambda config: _megapixel(config, "ffhq"),
}


def sized(config: ConfigDict, variant: str) -> ConfigDict:
    """The experiment in full, or for "debug" with small images as well. Raises: ValueError."""
    if variant:
        require_known("variant", variant, SIZES)
    if variant != "debug":
        return config
    config = debug(config)
    config.image_size, config.ch_mult, config.attn_resolutions = 16, config.ch_mult[:2], (8,)
    if config.model == "ddpm":
        config.nf = 32  # It normalises in 32 groups.
    return config


def debug(config: ConfigDict) -> ConfigDict:
    """The same experiment with everything small: trains in seconds on a CPU."""
    config.nf = 8
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


def parse(variant: str, sdes: tuple[str, ...] = SDES) -> tuple[str, str]:
    """The first SDE and "full", or what the variant says instead: "ve", "debug", "ve,debug" ..."""
    sde, size = sdes[0], SIZES[0]
    for word in filter(None, variant.split(",")):
        if word in sdes:
            sde = word
        elif word in SIZES:
            size = word
        else:
            raise unknown("variant", word, sdes + SIZES)
    return sde, size
