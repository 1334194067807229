# SPDX-License-Identifier: Apache-2.0
"""Autoregressive conditional scores of the table `wine` (178 rows, 13 columns).

Paper     Meng et al. 2020, arXiv:2010.12810 (which has other tables; sizes are ours)
Command   python -m launch.train --workdir=runs/new --config=configs/ar_csm/wine.py
          variants: csm (the default), denoising, mixture; :debug for seconds
Expected  -19 to -15 nats of test rows, below a Gaussian, see docs/results.md
Hardware  2 CPU cores: minutes
"""

from ml_collections import ConfigDict

from configs import variants
from configs.ar_csm import family


def get_config(variant: str = "") -> ConfigDict:
    return variants.apply(family.small_table("wine"), variant, family.OBJECTIVES, family.SIZES)
