# SPDX-License-Identifier: Apache-2.0
"""Score SDEs on 8 x 8 handwritten digits: the whole method in minutes, on a CPU, with no download.

Paper     Song et al. 2021, arXiv:2011.13456 (which has no digits; sizes are ours)
Command   python -m launch.train --config=configs/score_sde/digits.py --workdir=runs/digits
          variants: digits.py:vp (the default), :subvp, :ve; :debug or :ve,debug for seconds
Expected  test bits/dim of 17 grey levels, and samples: see docs/results.md
Hardware  2 CPU cores: five minutes
"""

from ml_collections import ConfigDict

from configs import variants
from configs.score_sde import family


def get_config(variant: str = "") -> ConfigDict:
    set_sde, resize = variants.choose(variant, family.SDES, family.SIZES)
    config = set_sde(family.default())
    config.dataset = "digits"
    config.eval_features = "digits"
    config.image_size = 8
    config.random_flip = False
    config.uniform_dequantization = True
    config.sigma_max = 5.0  # The largest distance between two digits is 4.5.

    config.nf = 32
    config.ch_mult = (1, 2)
    config.num_res_blocks = 1
    config.attn_resolutions = (4,)

    config.num_train_steps = 2000
    config.batch_size = 64
    config.learning_rate = 1e-3
    config.warmup = 200
    config.ema_rate = 0.995

    config.num_sampling_steps = 200
    config.rtol = config.atol = 1e-4  # within 0.002 bits/dim of 1e-5
    config.eval_every = config.save_every = 1000
    config.eval_examples = 898
    config.eval_bits_examples = 32
    return resize(config)
