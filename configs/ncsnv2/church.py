# SPDX-License-Identifier: Apache-2.0
"""NCSNv2, deeper, on LSUN churches, 96 x 96.

Paper     Song & Ermon 2020, arXiv:2006.09011; its settings church.yml
Command   python -m launch.train --workdir=runs/new --config=configs/ncsnv2/church.py
          variants: full (the default), and :debug for seconds
Expected  no number is published
Hardware  GPUs or TPUs, the batch divided among them; not run by us at this size
"""

from ml_collections import ConfigDict

from configs import variants
from configs.ncsnv2 import family


def get_config(variant: str = "") -> ConfigDict:
    # The settings file says 64 pixels; sigma_max and num_scales fit the 96 of the paper.
    config = family.ladder(family.lsun("lsun_church", 96), 140.0, 788, 4, 4.9e-6)
    config.num_train_steps = 200_000
    return variants.apply(config, variant, family.SIZES)
