# SPDX-License-Identifier: Apache-2.0
"""DDPM under the sub-VP SDE, on CIFAR-10.

Paper     Song et al. 2021, arXiv:2011.13456; its settings subvp/cifar10_ddpm_continuous
Command   python -m launch.train --workdir=runs/new \\
              --config=configs/score_sde/subvp_cifar10_ddpm_continuous.py
          variants: full (the default), and :debug for seconds
Expected  FID by the ODE 3.56, 3.05 bits/dim
Hardware  GPUs or TPUs, the batch divided among them; not run by us at this size
"""

from ml_collections import ConfigDict

from configs import variants
from configs.score_sde import family


def get_config(variant: str = "") -> ConfigDict:
    config = family.official("subvp", "ddpm", "cifar10", continuous=True)
    return variants.apply(config, variant, family.OFFICIAL_SIZES)
