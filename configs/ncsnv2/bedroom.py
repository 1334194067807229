# SPDX-License-Identifier: Apache-2.0
"""NCSNv2, deeper, on LSUN bedrooms, 128 x 128.

Paper     Song & Ermon 2020, arXiv:2006.09011; its settings bedroom.yml
Command   python -m launch.train --workdir=runs/new --config=configs/ncsnv2/bedroom.py
          variants: full (the default), and :debug for seconds
Expected  no number is published
Hardware  GPUs or TPUs, the batch divided among them; not run by us at this size
"""

from ml_collections import ConfigDict

from configs import variants
from configs.ncsnv2 import family


def get_config(variant: str = "") -> ConfigDict:
    config = family.ladder(family.lsun("lsun_bedroom", 128), 190.0, 1086, 3, 1.8e-6)
    config.num_train_steps = 150_000
    return variants.apply(config, variant, family.SIZES)
