# SPDX-License-Identifier: Apache-2.0
"""DDPM++ in discrete time, on CIFAR-10.

Paper     Song et al. 2021, arXiv:2011.13456; its settings vp/cifar10_ddpmpp
Command   python -m launch.train --workdir=runs/new \\
              --config=configs/score_sde/vp_cifar10_ddpmpp.py
          variants: full (the default), and :debug for seconds
Expected  FID 2.78, inception score 9.64
Hardware  GPUs or TPUs, the batch divided among them; not run by us at this size
"""

from ml_collections import ConfigDict

from configs import variants
from configs.score_sde import family


def get_config(variant: str = "") -> ConfigDict:
    config = family.official("vp", "ddpmpp", "cifar10", continuous=False)
    return variants.apply(config, variant, family.OFFICIAL_SIZES)
