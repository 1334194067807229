# SPDX-License-Identifier: Apache-2.0
"""The first NCSN on CIFAR-10.

Paper     Song & Ermon 2020, arXiv:2006.09011; its settings cifar10.yml of NCSN (arXiv:1907.05600)
Command   python -m launch.train --workdir=runs/new --config=configs/ncsnv2/ncsn_cifar10.py
          variants: full (the default), and :debug for seconds
Expected  FID 25.32, inception score 8.87, without a denoising step
Hardware  GPUs or TPUs, the batch divided among them; not run by us at this size
"""

from ml_collections import ConfigDict

from configs import variants
from configs.ncsnv2 import family


def get_config(variant: str = "") -> ConfigDict:
    config = family.ladder(family.default(), 1.0, 10, 100, 2e-5)
    config.model = "ncsn"
    config.uniform_dequantization = True
    config.learning_rate = 1e-3
    config.ema_rate = 0.0
    config.denoise = False
    return variants.apply(config, variant, family.SIZES)
