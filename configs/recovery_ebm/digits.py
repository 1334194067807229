# SPDX-License-Identifier: Apache-2.0
"""Diffusion recovery likelihood on 8 x 8 handwritten digits, with no download.

Paper     Gao et al. 2021, arXiv:2012.08125 (which has no digits; sizes are ours)
Command   python -m launch.train --workdir=runs/new --config=configs/recovery_ebm/digits.py
          variants: digits.py:recovery (the default), :denoising; :debug or :denoising,debug for
          seconds
Expected  samples, and a Frechet distance of digit features: see docs/results.md
Hardware  2 CPU cores: some minutes
"""

from ml_collections import ConfigDict

from configs import variants
from configs.recovery_ebm import family


def get_config(variant: str = "") -> ConfigDict:
    config = family.default()
    config.dataset, config.image_size = "digits", 8
    config.random_flip = False
    config.uniform_dequantization = True

    config.nf, config.ch_mult, config.num_res_blocks = 16, (1, 2), 2

    config.num_train_steps = 3000
    config.batch_size = 64
    config.num_steps_per_call = 10
    config.optimizer, config.adam_eps = "adam", 1e-8
    config.learning_rate, config.warmup = 5e-4, 100
    config.ema_rate = 0.995

    config.eval_every = config.save_every = 1000
    config.eval_examples = 898
    config.eval_frechet_samples, config.eval_features = 512, "digits"
    config.best_metric = "frechet"
    return variants.apply(config, variant, OBJECTIVES, family.SIZES)


def denoising(config: ConfigDict) -> ConfigDict:
    """A fine ladder without chains ("T1k"): the energies are log-densities, up to a constant."""
    config = family.denoising(config)
    config.nf, config.num_res_blocks = 32, 1
    config.activation, config.spectral_norm = "swish", False
    config.batch_size = 128
    config.learning_rate = 1e-3
    return config


OBJECTIVES = {"recovery": variants.unchanged, "denoising": denoising}
