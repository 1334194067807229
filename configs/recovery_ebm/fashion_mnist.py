# SPDX-License-Identifier: Apache-2.0
"""Diffusion recovery likelihood on Fashion-MNIST, 28 x 28.

Paper     Gao et al. 2021, arXiv:2012.08125 (which has none; sizes are ours)
Command   python -m launch.train --workdir=runs/new --config=configs/recovery_ebm/fashion_mnist.py
          variants: fashion_mnist.py:recovery (the default), :denoising, a small network for a CPU;
          :debug or :denoising,debug for seconds
Data      apt-get install dataset-fashion-mnist, or its four files in --config.data_dir
Expected  samples of :denoising: see docs/results.md; the full size was not run by us
Hardware  one GPU; :denoising takes 2 CPU cores ten minutes
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
    return variants.apply(config, variant, OBJECTIVES, family.SIZES)


def denoising(config: ConfigDict) -> ConfigDict:
    """A fine ladder without chains, and a small network."""
    config = family.denoising(config)
    config.nf, config.num_res_blocks = 24, 1
    config.activation, config.spectral_norm = "swish", False
    config.num_train_steps, config.batch_size = 1600, 32
    config.optimizer, config.adam_eps = "adam", 1e-8
    config.learning_rate, config.warmup, config.cosine_decay = 1e-3, 100, True
    config.ema_rate = 0.995
    config.eval_every, config.save_every = 0, 400
    return config


OBJECTIVES = {"recovery": variants.unchanged, "denoising": denoising}
