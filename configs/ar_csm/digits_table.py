# SPDX-License-Identifier: Apache-2.0
"""Autoregressive conditional scores of scikit-learn's digits as a table (1,797 rows, 64 columns).

Paper     Meng et al. 2020, arXiv:2010.12810 (which has other tables; sizes are ours)
Command   python -m launch.train --workdir=runs/new --config=configs/ar_csm/digits_table.py
          variants: csm (the default), denoising, mixture; :debug for seconds
Expected  not run by us
Hardware  2 CPU cores: minutes
"""

from ml_collections import ConfigDict

from configs import variants
from configs.ar_csm import family


def get_config(variant: str = "") -> ConfigDict:
    config = family.small_table("digits")
    config.hidden = 128
    return variants.apply(config, variant, family.OBJECTIVES, family.SIZES)
