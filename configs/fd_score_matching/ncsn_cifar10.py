# SPDX-License-Identifier: Apache-2.0
"""The first NCSN on CIFAR-10 by FD-SSM-VR at ten levels of noise.

Paper     Pang et al. 2020, arXiv:2007.03317, Section 5.5
Command   python -m launch.train --workdir=runs/new \\
              --config=configs/fd_score_matching/ncsn_cifar10.py
          variants: full (the default), and :debug for seconds
Expected  an FID like that of SSM-VR in place of FD-SSM-VR: --config.objective=ssm_vr
Hardware  GPUs or TPUs, the batch divided among them; not run by us at this size
"""

from ml_collections import ConfigDict

from configs import variants
from configs.fd_score_matching import family


def get_config(variant: str = "") -> ConfigDict:
    config = family.ncsn("cifar10", 32)
    config.random_flip = True
    return variants.apply(config, variant, family.SIZES)
