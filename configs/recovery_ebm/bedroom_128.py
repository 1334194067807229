# SPDX-License-Identifier: Apache-2.0
"""Diffusion recovery likelihood on LSUN bedrooms, 128 x 128.

Paper     Gao et al. 2021, arXiv:2012.08125; settings of its code
Command   python -m launch.train --workdir=runs/new --config=configs/recovery_ebm/bedroom_128.py
          variants: full (the default), and :debug for seconds
Expected  samples
Hardware  GPUs or TPUs, the batch divided among them; not run by us at this size
"""

from ml_collections import ConfigDict

from configs import variants
from configs.recovery_ebm import family


def get_config(variant: str = "") -> ConfigDict:
    config = family.scenes("lsun_bedroom_square", 128, 5, 0.5)
    return variants.apply(config, variant, family.SIZES)
