# SPDX-License-Identifier: Apache-2.0
"""A NICE flow of Fashion-MNIST, 28 x 28, by FD-SSM, judged by its exact likelihood.

Paper     Pang et al. 2020, arXiv:2007.03317, Section 5.3 (which has MNIST)
Data      apt-get install dataset-fashion-mnist, or its four files in --config.data_dir
Command   python -m launch.train --workdir=runs/new \\
              --config=configs/fd_score_matching/nice_fashion_mnist.py
          variants: full (the default), and :debug for seconds
Expected  bits/dim and score-matching loss in runs/new/metrics.jsonl; not run by us at this size
Hardware  one GPU or TPU
"""

from ml_collections import ConfigDict

from configs import variants
from configs.fd_score_matching import family


def get_config(variant: str = "") -> ConfigDict:
    return variants.apply(family.nice("fashion_mnist", 28), variant, family.SIZES)
