# SPDX-License-Identifier: Apache-2.0
"""Autoregressive conditional scores of four rings in the plane.

Paper     Meng et al. 2020, arXiv:2010.12810 (sizes are ours)
Command   python -m launch.train --workdir=runs/new --config=configs/ar_csm/rings.py
          variants: csm, denoising (the default), mixture; :debug for seconds
Expected  KL divergence 0.069 nats after 5000 steps: docs/results.md
Hardware  2 CPU cores: minutes
"""

from ml_collections import ConfigDict

from configs import variants
from configs.ar_csm import family


def get_config(variant: str = "") -> ConfigDict:
    return variants.apply(
        family.fine(family.plane("rings")), variant, family.OBJECTIVES, family.SIZES
    )
