# SPDX-License-Identifier: Apache-2.0
"""Diffusion recovery likelihood on CIFAR-10.

Paper     Gao et al. 2021, arXiv:2012.08125; settings of its code
Command   python -m launch.train --workdir=runs/new --config=configs/recovery_ebm/cifar10.py
          variants: full (the default), and :debug for seconds
Expected  FID 9.58, inception score 8.30
Hardware  GPUs or TPUs, the batch divided among them; not run by us at this size
"""

from ml_collections import ConfigDict

from configs import variants
from configs.recovery_ebm import family


def get_config(variant: str = "") -> ConfigDict:
    config = family.default()
    return variants.apply(config, variant, family.SIZES)
