# SPDX-License-Identifier: Apache-2.0
"""NCSNv2 on CelebA, 64 x 64.

Paper     Song & Ermon 2020, arXiv:2006.09011; its settings celeba.yml
Command   python -m launch.train --workdir=runs/new --config=configs/ncsnv2/celeba.py
          variants: full (the default), and :debug for seconds
Expected  FID 10.23, with the last denoising step
Hardware  GPUs or TPUs, the batch divided among them; not run by us at this size
"""

from ml_collections import ConfigDict

from configs import variants
from configs.ncsnv2 import family


def get_config(variant: str = "") -> ConfigDict:
    config = family.ladder(family.default(), 90.0, 500, 5, 3.3e-6)
    config.dataset, config.image_size = "celeba", 64
    config.num_train_steps = 210_000
    return variants.apply(config, variant, family.SIZES)
