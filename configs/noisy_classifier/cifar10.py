# SPDX-License-Identifier: Apache-2.0
"""A classifier of noisy CIFAR-10 images, to guide score models: WRN-28-10.

Paper     Song et al. 2021, arXiv:2011.13456, Appendix I.1 (WRN-28-10; training is ours)
Command   python -m launch.train --config=configs/noisy_classifier/cifar10.py --workdir=runs/guide
          variants: vp or ve (the SDE), :debug for seconds, both as in :ve,debug
Expected  no number is published
Hardware  GPUs or TPUs; not run by us at this size
"""

from ml_collections import ConfigDict

from configs import variants
from configs.noisy_classifier import family


def get_config(variant: str = "") -> ConfigDict:
    set_sde, resize = variants.choose(variant, family.SDES, family.SIZES, default="ve")
    config = set_sde(family.default())
    return resize(config)
