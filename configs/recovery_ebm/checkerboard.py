# SPDX-License-Identifier: Apache-2.0
"""Diffusion recovery likelihood on a checkerboard in the plane.

Paper     Gao et al. 2021, arXiv:2012.08125 (which has none; sizes are ours)
Command   python -m launch.train --workdir=runs/new --config=configs/recovery_ebm/checkerboard.py
          variants: full (the default), and :debug for seconds
Expected  not measured; rings with the same constants do not converge, see docs/results.md
Hardware  2 CPU cores: some minutes
"""

from ml_collections import ConfigDict

from configs import variants
from configs.recovery_ebm import family


def get_config(variant: str = "") -> ConfigDict:
    return variants.apply(family.fine_plane("checkerboard"), variant, family.SIZES)
