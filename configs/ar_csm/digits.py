# SPDX-License-Identifier: Apache-2.0
"""Autoregressive conditional scores of 8 x 8 handwritten digits, with no download.

Paper     Meng et al. 2020, arXiv:2010.12810 (which has no such digits; sizes are ours)
Command   python -m launch.train --workdir=runs/new --config=configs/ar_csm/digits.py
          variants: made (the default) or pixelcnnpp; denoising (the default), mixture, csm, noisy;
          :debug, or :pixelcnnpp,mixture,debug, for seconds
Expected  1.77 bits/dim of grey levels by a small pixelcnnpp: flags in docs/results.md
Hardware  2 CPU cores: minutes
"""

from ml_collections import ConfigDict

from configs import variants
from configs.ar_csm import family


def get_config(variant: str = "") -> ConfigDict:
    config = family.images("digits", 8)
    config.hidden, config.num_hidden = 512, 2
    # 17 grey levels, 0.125 apart: noise of a sixth of that keeps them apart.
    config.sigma_max, config.sigma_min, config.num_levels = 1.0, 0.02, 10
    config.num_frequencies, config.max_frequency = 24, 8.0  # periods from 3 to 0.125
    config.data_noise = 0.03
    config.num_cells = 192

    config.num_train_steps = 4000
    config.batch_size = 128
    config.eval_every = config.save_every = 1000
    config.eval_examples = config.eval_bits_examples = 200
    config.eval_samples = 64
    config.eval_frechet_samples, config.eval_features = 512, "digits"
    axes = family.TRUNKS, family.IMAGE_OBJECTIVES, family.SIZES
    return variants.apply(config, variant, *axes)
