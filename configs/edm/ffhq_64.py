# SPDX-License-Identifier: Apache-2.0
"""EDM on FFHQ, 64 x 64.

Paper     Karras et al. 2022, arXiv:2206.00364; its settings for FFHQ
Command   python -m launch.train --config=configs/edm/ffhq_64.py --workdir=runs/new
          variants: vp (DDPM++, the default), ve (NCSN++), and :debug or :ve,debug for seconds
Import    python -m launch.import_weights --architecture=edm/song_unet --workdir=runs/published \\
              --config=configs/edm/ffhq_64.py --weights=edm-ffhq-64x64-uncond-vp.pkl
Expected  FID 2.39 (vp), 2.53 (ve) in 79 evaluations, where training augments, as it does not here
Hardware  GPUs or TPUs, the batch divided among them; not run by us at this size
"""

from ml_collections import ConfigDict

from configs import variants
from configs.edm import family


def get_config(variant: str = "") -> ConfigDict:
    config = family.default()
    config.dataset, config.image_size = "ffhq", 64
    config.ch_mult = (1, 2, 2, 2)
    config.dropout = 0.05
    config.num_train_steps = 781_250
    config.batch_size = 256
    config.learning_rate = 2e-4
    config.warmup = 39_062
    config.ema_rate = 0.999645
    return variants.apply(config, variant, family.NETWORKS, family.SIZES)
