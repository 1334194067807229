# SPDX-License-Identifier: Apache-2.0
"""EDM on 8 x 8 handwritten digits: in minutes, on a CPU, with no download.

Paper     Karras et al. 2022, arXiv:2206.00364 (which has no digits; sizes are ours)
Command   python -m launch.train --config=configs/edm/digits.py --workdir=runs/edm_digits
          variants: vp (DDPM++, the default), ve (NCSN++), and :debug or :ve,debug for seconds
Expected  samples in 35 evaluations, and bits/dim: see docs/results.md
Hardware  2 CPU cores: five minutes
"""

from ml_collections import ConfigDict

from configs import variants
from configs.edm import family


def get_config(variant: str = "") -> ConfigDict:
    config = family.default()
    config.dataset, config.image_size = "digits", 8
    config.eval_features = "digits"
    config.random_flip = False
    config.uniform_dequantization = True

    config.nf = 32
    config.ch_mult = (1, 2)
    config.num_res_blocks = 1
    config.attn_resolutions = (4,)
    config.dropout = 0.1
    config.augment_dim = 0

    config.num_train_steps = 2000
    config.batch_size = 64
    config.warmup = 200
    config.ema_rate = 0.995

    config.num_sampling_steps = 200
    config.rtol = config.atol = 1e-4
    config.eval_every = config.save_every = 1000
    config.eval_examples = 898
    config.eval_bits_examples = 32
    return variants.apply(config, variant, family.NETWORKS, family.SIZES)
