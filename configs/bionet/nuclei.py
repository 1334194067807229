# SPDX-License-Identifier: Apache-2.0
"""BiO-Net on drawn nuclei with exact masks: in minutes, on a CPU, with no download.

Paper     Xiang et al. 2020, arXiv:2007.00243 (which has no such images; sizes are ours)
Command   python -m launch.train --config=configs/bionet/nuclei.py --workdir=runs/nuclei
          variants: t1, t2, t3 (passes, INT off), int, x0.25, x0.5, x0.75 (widths), w0 ... w3
          (backward skips, the coarsest ones), keras, and :debug, joined as in :t2,int
Expected  IoU 0.90, panoptic quality 0.60 on 32 test images; see docs/papers/bionet.md
Hardware  1 CPU core: three minutes
"""

from ml_collections import ConfigDict

from configs import variants
from configs.bionet import family


def get_config(variant: str = "") -> ConfigDict:
    config = family.default()
    config.layout = config.test_layout = "generated"
    config.num_images, config.test_num_images, config.image_side = 160, 32, 96
    config.validation_fraction = 0.2
    config.corner_patches = False
    config.side = 64
    config.shear = 15.0  # degrees; at 50 ellipses become needles

    config.multiplier = 0.25
    config.num_levels, config.num_backward_skips = 3, 3
    config.num_passes = 2
    config.integrate = False
    config.norm_momentum = 0.1  # 1000 steps are too few for 0.01

    config.num_train_steps = 1000
    config.batch_size = 8
    config.learning_rate = 3e-3
    config.learning_rate_decay = 5e-3
    config.min_distance = 4
    config.tile, config.overlap, config.margin, config.tile_batch = 96, 32, 8, 8
    config.log_every = 50
    config.eval_every = config.save_every = 500
    return variants.apply(config, variant, *family.VARIANTS)
