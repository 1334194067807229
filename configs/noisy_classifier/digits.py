# SPDX-License-Identifier: Apache-2.0
"""A classifier of noisy 8 x 8 digits, to guide score models of digits.

Paper     Song et al. 2021, arXiv:2011.13456, Appendix I.1 (which has no digits; sizes are ours)
Command   python -m launch.train --config=configs/noisy_classifier/digits.py --workdir=runs/guide
          variants: vp or ve (the SDE), :debug for seconds, both as in :ve,debug
Expected  accuracy by noise level: see docs/control.md
Hardware  2 CPU cores: some minutes
"""

from ml_collections import ConfigDict

from configs import variants
from configs.noisy_classifier import family


def get_config(variant: str = "") -> ConfigDict:
    set_sde, resize = variants.choose(variant, family.SDES, family.SIZES)
    config = set_sde(family.default())
    config.dataset = "digits"
    config.image_size = 8
    config.random_flip = False
    config.uniform_dequantization = True  # as the score models are trained
    config.sigma_max = 5.0

    config.widen_factor, config.num_blocks, config.num_stages = 2, 1, 2

    config.num_train_steps = 2000
    config.learning_rate = 2e-3
    config.warmup = 100
    config.ema_rate = 0.99
    config.eval_every = config.save_every = 1000
    config.eval_examples = 898
    return resize(config)
