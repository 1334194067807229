# SPDX-License-Identifier: Apache-2.0
"""Autoregressive conditional scores of the table `breast_cancer` (569 rows, 30 columns).

Paper     Meng et al. 2020, arXiv:2010.12810 (which has other tables; sizes are ours)
Command   python -m launch.train --workdir=runs/new --config=configs/ar_csm/breast_cancer.py
          variants: csm (the default), denoising, mixture; :debug for seconds
Expected  -10.3 nats on dequantised rows, which this config no longer takes, see docs/results.md
Hardware  2 CPU cores: minutes
"""

from ml_collections import ConfigDict

from configs import variants
from configs.ar_csm import family


def get_config(variant: str = "") -> ConfigDict:
    config = family.small_table("breast_cancer")
    config.dequantize = False  # few values repeat, and flows are compared on the values as stored
    return variants.apply(config, variant, family.OBJECTIVES, family.SIZES)
