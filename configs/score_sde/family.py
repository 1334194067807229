# SPDX-License-Identifier: Apache-2.0
"""Defaults, networks, data sets and variants of the score-SDE experiments.

The values are the published settings (arXiv:2011.13456, Appendix H) for 32 x 32 images.
"""

from ml_collections import ConfigDict

from configs.variants import make_edit, unchanged


def default() -> ConfigDict:
    """DDPM++ in continuous time under the VP SDE, on CIFAR-10."""
    config = ConfigDict()
    config.system = "score_sde"
    config.seed = 42

    config.dataset = "cifar10"
    config.data_dir = ""  # empty: $SCOREJAX_DATA_DIR, else ~/tensorflow_datasets
    config.damaged = "raise"  # skip: leaves out pictures of dataset=folder that cannot be used
    config.image_size = 32
    config.random_flip = True
    config.uniform_dequantization = False  # in training; bits/dim always use dequantised images
    config.centered = True  # images in [-1, 1], else in [0, 1]

    config.sde = "vp"
    config.beta_min, config.beta_max = 0.1, 20.0  # vp, subvp
    config.sigma_min, config.sigma_max = 0.01, 50.0  # ve; the largest distance between two images
    config.objective = "denoising"  # likelihood, ddpm (vp), smld (ve)
    config.num_scales = 1000  # noise levels of ddpm and smld
    config.reduction = "mean"  # over pixels; half_sum

    _set_network(config)
    _set_training(config)
    _set_sampling(config)
    _set_evaluation(config)
    return config


def _set_network(config: ConfigDict) -> None:
    config.model = "ncsnpp"  # ddpm
    config.nf = 128  # channels at full resolution
    config.ch_mult = (1, 2, 2, 2)
    config.num_res_blocks = 4
    config.attn_resolutions = (16,)  # pixels
    config.dropout = 0.1
    config.conditional = True  # on the noise level
    config.embedding_type = "positional"  # fourier
    config.fourier_scale = 16.0
    config.resblock_type = "biggan"  # ddpm
    config.resamp_with_conv = True
    config.fir = False
    config.progressive = "none"
    config.progressive_input = "none"
    config.progressive_combine = "sum"
    config.skip_rescale = True
    config.init_scale = 0.0
    config.dtype = "float32"  # arithmetic of the body; bfloat16 on accelerators
    config.remat = False


def _set_training(config: ConfigDict) -> None:
    config.num_train_steps = 1_300_000
    config.batch_size = 128  # over all devices
    config.accumulation = 1
    config.num_steps_per_call = 10
    config.learning_rate = 2e-4
    config.beta1 = 0.9
    config.adam_eps = 1e-8
    config.warmup = 5000  # steps
    config.grad_clip = 1.0  # global norm; 0: no clipping
    config.ema_rate = 0.9999


def _set_sampling(config: ConfigDict) -> None:
    config.predictor = "euler_maruyama"
    config.corrector = "none"
    config.snr = 0.16
    config.num_corrector_steps = 1
    config.num_sampling_steps = 1000
    config.denoise = True
    config.rtol = config.atol = 1e-5  # probability-flow ODE


def _set_evaluation(config: ConfigDict) -> None:
    config.log_every = 100
    config.eval_every = 50_000
    config.eval_examples = 1000
    config.eval_bits_examples = 64
    config.eval_samples = 64
    config.eval_frechet_samples = 0  # for best_metric="frechet"
    config.eval_features = ""  # for "frechet": "digits", or the file of FID's weights
    config.eval_matmul_precision = "highest"  # of likelihoods, ODE solves, features; high, default
    config.save_every = 10_000
    config.keep_latest = 2
    config.max_nonfinite_updates = 0  # skipped in a row; the next one ends the run
    config.best_metric = "loss"
    config.best_mode = "min"


def ve(config: ConfigDict) -> ConfigDict:
    """NCSN++ under the VE SDE."""
    config.centered = False
    config.sde = "ve"
    config.reduction = "half_sum"
    config.embedding_type = "fourier"
    config.fir = True
    config.progressive_input = "residual"
    config.ema_rate = 0.999
    config.predictor, config.corrector = "reverse_diffusion", "langevin"
    return config


SDES = {"vp": unchanged, "subvp": make_edit(sde="subvp"), "ve": ve}


def official(
    sde: str, net: str, dataset: str, *, continuous: bool, deep: bool = False
) -> ConfigDict:
    """An experiment of the paper, by SDE, network, data set, and continuous or discrete time."""
    config = NETS[net](SDES[sde](default()))
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
    """NCSN++ for 256 pixels and more: images enter, and leave, at every resolution."""
    config = _ncsnpp(config)
    config.ch_mult = (1, 1, 2, 2, 2, 2, 2)
    config.num_res_blocks = 2
    config.progressive_input = "input_skip"
    config.progressive = "output_skip"
    return config


NETS = {"ddpm": _ddpm, "ddpmpp": _ddpmpp, "ncsnpp": _ncsnpp, "ncsnpp_pyramids": _pyramids}


def _large(config: ConfigDict, dataset: str, sigma_max: float) -> ConfigDict:
    """The paper's settings for 256 x 256 images."""
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
    """The paper's settings for 1024 x 1024 images."""
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
    "cifar10": unchanged,
    "celeba": make_edit(dataset="celeba", image_size=64, sigma_max=90.0, snr=0.17),
    "bedroom": lambda config: _large(config, "lsun_bedroom", 378.0),
    "church": lambda config: _large(config, "lsun_church", 380.0),
    "celebahq_256": lambda config: _large(config, "celebahq", 348.0),
    "ffhq_256": lambda config: _large(config, "ffhq", 348.0),
    "celebahq_1024": lambda config: _megapixel(config, "celebahq"),
    "ffhq_1024": lambda config: _megapixel(config, "ffhq"),
}


def debug(config: ConfigDict) -> ConfigDict:
    """A small network and short training, for seconds on a CPU; the image size stays."""
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


def _debug_official(config: ConfigDict) -> ConfigDict:
    """Small images, a small network and short training, for seconds on a CPU."""
    config = debug(config)
    config.image_size, config.ch_mult, config.attn_resolutions = 16, config.ch_mult[:2], (8,)
    if config.model == "ddpm":
        config.nf = 32  # DDPM normalises in 32 groups.
    return config


SIZES = {"full": unchanged, "debug": debug}
OFFICIAL_SIZES = {"full": unchanged, "debug": _debug_official}
