# SPDX-License-Identifier: Apache-2.0
"""NCSN++ in continuous time, on CIFAR-10.

Paper     Song et al. 2021, arXiv:2011.13456; its settings ve/cifar10_ncsnpp_continuous
Command   python -m launch.train --workdir=runs/new \\
              --config=configs/score_sde/ve_cifar10_ncsnpp_continuous.py
          variants: full (the default), and :debug for seconds
Expected  FID 2.38, inception score 9.83
Hardware  GPUs or TPUs, the batch divided among them; not run by us at this size
"""

from ml_collections import ConfigDict

from configs import variants
from configs.score_sde import family


def get_config(variant: str = "") -> ConfigDict:
    config = family.official("ve", "ncsnpp", "cifar10", continuous=True)
    return variants.apply(config, variant, family.OFFICIAL_SIZES)
