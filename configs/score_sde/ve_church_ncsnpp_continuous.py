# SPDX-License-Identifier: Apache-2.0
"""NCSN++ on LSUN churches, 256 x 256.

Paper     Song et al. 2021, arXiv:2011.13456; its settings ve/church_ncsnpp_continuous
Command   python -m launch.train --workdir=runs/new \\
              --config=configs/score_sde/ve_church_ncsnpp_continuous.py
          variants: full (the default), and :debug for seconds
Expected  no number is published
Hardware  GPUs or TPUs, the batch divided among them; not run by us at this size
"""

from ml_collections import ConfigDict

from configs import variants
from configs.score_sde import family


def get_config(variant: str = "") -> ConfigDict:
    config = family.official("ve", "ncsnpp_pyramids", "church", continuous=True)
    return variants.apply(config, variant, family.OFFICIAL_SIZES)
