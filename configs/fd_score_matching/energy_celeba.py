# SPDX-License-Identifier: Apache-2.0
"""The deep energy model of CelebA, 32 x 32, by FD-DSM at many noise levels.

Paper     Pang et al. 2020, arXiv:2007.03317, Section 5.1
Command   python -m launch.train --workdir=runs/new \\
              --config=configs/fd_score_matching/energy_celeba.py
          variants: full (the default), and :debug for seconds
Expected  samples; the paper has pictures and no number
Hardware  one GPU; not run by us at this size
"""

from ml_collections import ConfigDict

from configs import variants
from configs.fd_score_matching import family


def get_config(variant: str = "") -> ConfigDict:
    return variants.apply(family.energy("celeba", 32), variant, family.SIZES)
