# SPDX-License-Identifier: Apache-2.0
"""A deep kernel exponential family of the 13 measurements of 178 wines, by FD-SSM.

Paper     Pang et al. 2020, arXiv:2007.03317, Section 5.2 (on other UCI tables)
Command   python -m launch.train --workdir=runs/new \\
              --config=configs/fd_score_matching/kernel_wine.py
          variants: full (the default), and :debug for seconds
Expected  log-likelihood of test rows: see docs/papers/fd_score_matching.md
Hardware  2 CPU cores: a minute
"""

from ml_collections import ConfigDict

from configs import variants
from configs.fd_score_matching import family


def get_config(variant: str = "") -> ConfigDict:
    config = family.kernel("wine")
    config.num_inducing = 100  # of 142 training rows
    return variants.apply(config, variant, family.SIZES)
