# SPDX-License-Identifier: Apache-2.0
"""Score SDEs on 32 x 32 patches of photographs: CIFAR-10's pipeline on a CPU, with no download.

Paper     Song et al. 2021, arXiv:2011.13456 (which has no such data; sizes are ours)
Command   python -m launch.train --config=configs/score_sde/photo_patches.py --workdir=runs/photos
          variants: photo_patches.py:vp (the default), :subvp, :ve; :debug or :ve,debug for seconds
Expected  test bits/dim, and samples: see docs/results.md
Hardware  2 CPU cores: half an hour to an hour
"""

from ml_collections import ConfigDict

from configs import variants
from configs.score_sde import family


def get_config(variant: str = "") -> ConfigDict:
    set_sde, resize = variants.choose(variant, family.SDES, family.SIZES)
    config = set_sde(family.default())
    config.dataset = "photo_patches"
    config.image_size = 32
    config.uniform_dequantization = True

    config.nf = 32
    config.ch_mult = (1, 2, 2)
    config.num_res_blocks = 1
    config.attn_resolutions = (16,)
    config.dropout = 0.0

    config.num_train_steps = 3000
    config.batch_size = 16
    config.learning_rate = 1e-3
    config.warmup = 200
    config.ema_rate = 0.999

    config.num_sampling_steps = 200
    config.rtol = config.atol = 1e-4
    config.eval_every = config.save_every = 1000
    config.eval_examples = 200
    config.eval_bits_examples = 8
    config.eval_samples = 16
    return resize(config)
