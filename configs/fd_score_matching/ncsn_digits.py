# SPDX-License-Identifier: Apache-2.0
"""NCSN of 8 x 8 handwritten digits by FD-SSM-VR at ten levels of noise.

Paper     Pang et al. 2020, arXiv:2007.03317, Section 5.5 (which has no digits; sizes are ours)
Command   python -m launch.train --workdir=runs/new \\
              --config=configs/fd_score_matching/ncsn_digits.py
          variants: full (the default), and :debug for seconds
Expected  a held-out loss that falls, and samples
Hardware  2 CPU cores: some minutes
"""

from ml_collections import ConfigDict

from configs import variants
from configs.fd_score_matching import family


def get_config(variant: str = "") -> ConfigDict:
    config = family.ncsn("digits", 8)
    config.eval_features = "digits"
    config.nf = 24
    config.batch_size = 64
    config.ema_rate = 0.995
    config.num_train_steps = 3000
    config.eval_every = config.save_every = 1000
    config.eval_examples = 898
    return variants.apply(config, variant, family.SIZES)
