# SPDX-License-Identifier: Apache-2.0
"""DDPM++ under the sub-VP SDE, twice as deep, on CIFAR-10.

Paper     Song et al. 2021, arXiv:2011.13456; its settings subvp/cifar10_ddpmpp_deep_continuous
Command   python -m launch.train --workdir=runs/new \\
              --config=configs/score_sde/subvp_cifar10_ddpmpp_deep_continuous.py
          variants: full (the default), and :debug for seconds
Expected  FID 2.41, inception score 9.57; by the ODE FID 2.92, 2.99 bits/dim
Hardware  GPUs or TPUs, the batch divided among them; not run by us at this size
"""

from ml_collections import ConfigDict

from configs import variants
from configs.score_sde import family


def get_config(variant: str = "") -> ConfigDict:
    config = family.official("subvp", "ddpmpp", "cifar10", continuous=True, deep=True)
    return variants.apply(config, variant, family.OFFICIAL_SIZES)
