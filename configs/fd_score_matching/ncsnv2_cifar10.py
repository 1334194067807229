# SPDX-License-Identifier: Apache-2.0
"""NCSNv2 on CIFAR-10 by FD-SSM-VR down the ladder of 232 levels.

Paper     Pang et al. 2020, arXiv:2007.03317, Section 5.5 and its code, version 2
Command   python -m launch.train --workdir=runs/new \\
              --config=configs/fd_score_matching/ncsnv2_cifar10.py
          variants: full (the default), and :debug for seconds
Expected  an FID like that of SSM-VR in place of FD-SSM-VR: --config.objective=ssm_vr
Hardware  GPUs or TPUs, the batch divided among them; not run by us at this size
"""

from ml_collections import ConfigDict

from configs import variants
from configs.fd_score_matching import family


def get_config(variant: str = "") -> ConfigDict:
    config = family.ncsn("cifar10", 32)
    config.model = "ncsnv2"
    config.random_flip, config.uniform_dequantization = True, False
    config.sigma_max, config.num_scales = 50.0, 232
    config.steps_per_level, config.step_size = 5, 6.2e-6
    config.denoise = True
    config.num_train_steps = 300_000
    config.learning_rate = 1e-4
    config.ema_rate = 0.999
    return variants.apply(config, variant, family.SIZES)
