# SPDX-License-Identifier: Apache-2.0
"""A deep kernel exponential family of 569 tumours, by FD-SSM, without the redundant measurements.

Paper     Pang et al. 2020, arXiv:2007.03317, Section 5.2 (on other UCI tables)
Command   python -m launch.train --workdir=runs/new \\
              --config=configs/fd_score_matching/kernel_breast_cancer.py
          variants: full (the default), and :debug for seconds
Expected  score-matching loss and log-likelihood of test rows; see the effective size beside it
Hardware  2 CPU cores: some minutes
"""

from ml_collections import ConfigDict

from configs import variants
from configs.fd_score_matching import family


def get_config(variant: str = "") -> ConfigDict:
    return variants.apply(family.kernel("breast_cancer"), variant, family.SIZES)
