# SPDX-License-Identifier: Apache-2.0
"""DDPM on LSUN bedrooms, 256 x 256.

Paper     Song et al. 2021, arXiv:2011.13456; its settings vp/ddpm/bedroom
Command   python -m launch.train --workdir=runs/new \\
              --config=configs/score_sde/vp_bedroom_ddpm.py
          variants: full (the default), and :debug for seconds
Expected  no number is published
Hardware  GPUs or TPUs, the batch divided among them; not run by us at this size
"""

from ml_collections import ConfigDict

from configs import variants
from configs.score_sde import family


def get_config(variant: str = "") -> ConfigDict:
    config = family.official("vp", "ddpm", "bedroom", continuous=False)
    return variants.apply(config, variant, family.OFFICIAL_SIZES)
