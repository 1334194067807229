# SPDX-License-Identifier: Apache-2.0
"""Autoregressive conditional scores of CIFAR-10, at the size of PixelCNN++.

Paper     Meng et al. 2020, arXiv:2010.12810; trunk of Salimans et al. 2017, arXiv:1701.05517
Command   python -m launch.train --workdir=runs/new --config=configs/ar_csm/cifar10.py
          variants: denoising (the default), mixture, csm, noisy; :debug for seconds
Expected  the paper's numbers could not be read; not run by us at this size
Hardware  8 TPU cores or GPUs, days
"""

from ml_collections import ConfigDict

from configs import variants
from configs.ar_csm import family


def get_config(variant: str = "") -> ConfigDict:
    config = family.pixelcnnpp(family.images("cifar10", 32))
    config.random_flip = True
    config.num_filters, config.num_blocks, config.num_resolutions = 160, 5, 3
    config.dropout = 0.5
    config.features = 64
    config.head_hidden, config.num_head_hidden = 128, 3
    # 256 grey levels, 0.0078 apart: noise of a sixth of that keeps them apart.
    config.sigma_max, config.sigma_min, config.num_levels = 1.0, 0.0013, 10
    # Periods from 4 to 0.25 resolve structure of 0.125; single levels are left to the layers.
    config.num_frequencies, config.max_frequency = 16, 4.0
    config.data_noise = 0.01

    config.num_train_steps = 500_000
    config.batch_size = 128
    config.num_steps_per_call = 1
    config.learning_rate, config.ema_rate = 2e-4, 0.9995
    config.eval_every = config.save_every = 10_000
    config.eval_examples, config.eval_bits_examples = 1000, 64
    config.eval_samples, config.eval_frechet_samples = 64, 0
    return variants.apply(config, variant, family.IMAGE_OBJECTIVES, family.SIZES)
