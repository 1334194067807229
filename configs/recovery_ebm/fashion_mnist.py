# SPDX-License-Identifier: Apache-2.0
"""Diffusion recovery likelihood on Fashion-MNIST, 28 x 28.

Paper     Gao et al. 2021, arXiv:2012.08125 (which has none; sizes are ours)
Command   python -m launch.train --workdir=runs/new --config=configs/recovery_ebm/fashion_mnist.py
          variants: full (the default), and :debug for seconds
Expected  samples
Hardware  one GPU, or 2 CPU cores: some hours
"""

from ml_collections import ConfigDict

from configs import variants
from configs.recovery_ebm import family


def get_config(variant: str = "") -> ConfigDict:
    config = family.default()
    config.dataset, config.image_size = "fashion_mnist", 28
    config.random_flip = True
    config.uniform_dequantization = True

    config.nf, config.ch_mult, config.num_res_blocks = 32, (1, 2, 2), 2  # 28, 14, 7 pixels

    config.num_train_steps = 50_000
    config.batch_size = 64
    config.num_steps_per_call = 10
    config.ema_rate = 0.999

    config.eval_every, config.save_every = 5000, 1000
    config.eval_examples = 1000
    return variants.apply(config, variant, family.SIZES)
