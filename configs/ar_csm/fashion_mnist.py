# SPDX-License-Identifier: Apache-2.0
"""Autoregressive conditional scores of Fashion-MNIST, 28 x 28.

Paper     Meng et al. 2020, arXiv:2010.12810 (which has MNIST; sizes are ours)
Data      apt-get install dataset-fashion-mnist, or its four files in --config.data_dir
Command   python -m launch.train --workdir=runs/new --config=configs/ar_csm/fashion_mnist.py
          variants: pixelcnnpp (the default) or made; denoising (the default), mixture, csm, noisy;
          :small for minutes on a CPU, :debug for seconds
Expected  3.16 bits/dim of grey levels by :small (3.04 by :mixture,small); not run by us in full
Hardware  one GPU; :small 13 minutes of one CPU core
"""

from ml_collections import ConfigDict

from configs import variants
from configs.ar_csm import family


def get_config(variant: str = "") -> ConfigDict:
    config = family.pixelcnnpp(family.images("fashion_mnist", 28))
    config.num_filters, config.num_blocks, config.num_resolutions = 64, 2, 2
    # 256 grey levels, 0.0078 apart: noise of a sixth of that keeps them apart.
    config.sigma_max, config.sigma_min, config.num_levels = 1.0, 0.0013, 10
    # Periods from 4 to 0.25 resolve structure of 0.125; single levels are left to the layers.
    config.num_frequencies, config.max_frequency = 16, 4.0
    config.data_noise = 0.004

    config.num_train_steps = 100_000
    config.batch_size = 64
    config.learning_rate, config.ema_rate = 2e-4, 0.9995
    config.eval_every = config.save_every = 5000
    config.eval_examples, config.eval_bits_examples = 1000, 100
    config.eval_samples, config.eval_frechet_samples = 16, 0
    axes = family.OTHER_TRUNKS, family.IMAGE_OBJECTIVES, family.SIZES | {"small": small}
    return variants.apply(config, variant, *axes)


def small(config: ConfigDict) -> ConfigDict:
    """A small trunk and head, for a short training on a CPU."""
    config.num_filters, config.num_blocks, config.dropout = 12, 1, 0.0
    config.features, config.head_hidden = 32, 32
    # Half of the pixels are black: in z alone, an atom of one level is learned slowly.
    config.num_frequencies, config.max_frequency, config.min_variance = 24, 24.0, 1e-5
    config.num_train_steps, config.batch_size = 1000, 16
    config.learning_rate, config.ema_rate = 2e-3, 0.995
    config.eval_every = config.save_every = 1000
    config.eval_examples = 200
    return config
