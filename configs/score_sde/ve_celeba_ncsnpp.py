# SPDX-License-Identifier: Apache-2.0
"""NCSN++ on CelebA, 64 x 64.

Paper     Song et al. 2021, arXiv:2011.13456; its settings ve/celeba_ncsnpp
Command   python -m launch.train --workdir=runs/new \\
              --config=configs/score_sde/ve_celeba_ncsnpp.py
          variants: full (the default), and :debug for seconds
Expected  FID about 2.5, as an author says in the code's discussion
Hardware  GPUs or TPUs, the batch divided among them; not run by us at this size
"""

from ml_collections import ConfigDict

from configs import variants
from configs.score_sde import family


def get_config(variant: str = "") -> ConfigDict:
    config = family.official("ve", "ncsnpp", "celeba", continuous=False)
    return variants.apply(config, variant, family.OFFICIAL_SIZES)
