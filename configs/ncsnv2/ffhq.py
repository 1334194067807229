# SPDX-License-Identifier: Apache-2.0
"""NCSNv2, deepest, on FFHQ, 256 x 256.

Paper     Song & Ermon 2020, arXiv:2006.09011; its settings ffhq.yml
Command   python -m launch.train --workdir=runs/new --config=configs/ncsnv2/ffhq.py
          variants: full (the default), and :debug for seconds
Expected  no number is published
Hardware  GPUs or TPUs, the batch divided among them; not run by us at this size
"""

from ml_collections import ConfigDict

from configs import variants
from configs.ncsnv2 import family


def get_config(variant: str = "") -> ConfigDict:
    config = family.ladder(family.default(), 348.0, 2311, 3, 9e-7)
    config.dataset, config.image_size, config.model = "ffhq", 256, "ncsnv2_deepest"
    config.batch_size = 32
    config.adam_eps = 1e-3  # for stability
    config.remat = True
    config.num_train_steps = 80_000
    config.eval_every = 20_000
    config.eval_samples = 36
    return variants.apply(config, variant, family.SIZES)
