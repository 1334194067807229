# SPDX-License-Identifier: Apache-2.0
"""Diffusion recovery likelihood on eight Gaussians in the plane.

Paper     Gao et al. 2021, arXiv:2012.08125 (which has none; sizes are ours)
Command   python -m launch.train --workdir=runs/new --config=configs/recovery_ebm/eight_gaussians.py
          variants: full (the default), and :debug for seconds
Expected  KL(truth || model) of 0.02 to 0.04 nats at level 0
Hardware  2 CPU cores: 140 to 165 CPU-seconds
"""

from ml_collections import ConfigDict

from configs import variants
from configs.recovery_ebm import family


def get_config(variant: str = "") -> ConfigDict:
    return variants.apply(family.plane("eight_gaussians"), variant, family.SIZES)
