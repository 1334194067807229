# SPDX-License-Identifier: Apache-2.0
"""The deep energy model of Fashion-MNIST, framed to 32 x 32, by FD-DSM at many noise levels.

Paper     Pang et al. 2020, arXiv:2007.03317, Section 5.1
Data      apt-get install dataset-fashion-mnist, or its four files in --config.data_dir
Command   python -m launch.train --workdir=runs/new \\
              --config=configs/fd_score_matching/energy_fashion_mnist.py
          variants: full (the default), and :debug for seconds
Sliced    as in the paper: --config.objective=fd_ssm --config.data_noise=0.005
          --config.learning_rate=1e-5 --config.batch_size=64
Expected  samples; the paper prints score-matching losses for MNIST alone
Hardware  one GPU; not run by us at this size
"""

from ml_collections import ConfigDict

from configs import variants
from configs.fd_score_matching import family


def get_config(variant: str = "") -> ConfigDict:
    config = family.energy("fashion_mnist", 28)
    config.padding = 2
    return variants.apply(config, variant, family.SIZES)
