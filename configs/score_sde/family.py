# SPDX-License-Identifier: Apache-2.0
"""What the experiments of the score-SDE paper have in common; a config states what differs.

The values are those of the published settings (arXiv:2011.13456, Appendix H) for 32 x 32 images.
"""

from ml_collections import ConfigDict

from scorejax.choices import unknown

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
    config.save_every = 10_000
    config.keep_latest = 2
    config.best_metric = "loss"
    config.best_mode = "min"
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


def parse(variant: str) -> tuple[str, str]:
    """("vp", "full"), or what the variant says instead: "ve", "debug", "subvp,debug" ..."""
    sde, size = SDES[0], SIZES[0]
    for word in filter(None, variant.split(",")):
        if word in SDES:
            sde = word
        elif word in SIZES:
            size = word
        else:
            raise unknown("variant", word, SDES + SIZES)
    return sde, size
