# SPDX-License-Identifier: Apache-2.0
"""Diffusion recovery likelihood on CelebA, 32 x 32, the size of the published command.

Paper     Gao et al. 2021, arXiv:2012.08125; settings of its code
Command   python -m launch.train --workdir=runs/new --config=configs/recovery_ebm/celeba_32.py
          variants: full (the default), and :debug for seconds
Expected  samples (the paper quotes FIDs at 64 x 64)
Hardware  GPUs or TPUs, the batch divided among them; not run by us at this size
"""

from ml_collections import ConfigDict

from configs import variants
from configs.recovery_ebm import family


def get_config(variant: str = "") -> ConfigDict:
    config = family.scenes("celeba_square", 32, 6, 0.5)
    return variants.apply(config, variant, family.SIZES)
