# SPDX-License-Identifier: Apache-2.0
"""NCSNv2 on CIFAR-10.

Paper     Song & Ermon 2020, arXiv:2006.09011; its settings cifar10.yml
Command   python -m launch.train --workdir=runs/new --config=configs/ncsnv2/cifar10.py
          variants: full (the default), and :debug for seconds
Expected  FID 10.87, inception score 8.40, with the last denoising step
Hardware  GPUs or TPUs, the batch divided among them; not run by us at this size
"""

from ml_collections import ConfigDict

from configs import variants
from configs.ncsnv2 import family


def get_config(variant: str = "") -> ConfigDict:
    config = family.default()
    return variants.apply(config, variant, family.SIZES)
