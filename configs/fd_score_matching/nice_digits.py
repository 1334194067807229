# SPDX-License-Identifier: Apache-2.0
"""A NICE flow of 8 x 8 handwritten digits by FD-SSM, judged by its exact likelihood.

Paper     Pang et al. 2020, arXiv:2007.03317, Section 5.3 (which has MNIST; sizes are ours)
Command   python -m launch.train --config=configs/fd_score_matching/nice_digits.py --workdir=runs/x
          variants: full (the default), and :debug for seconds
Expected  bits/dim by objective: see docs/papers/fd_score_matching.md
Hardware  2 CPU cores: some minutes
"""

from ml_collections import ConfigDict

from configs import variants
from configs.fd_score_matching import family


def get_config(variant: str = "") -> ConfigDict:
    config = family.nice("digits", 8)
    config.squeeze = 0.05  # the 17 levels of a digit are coarse: logits of +-2.9
    config.hidden, config.num_hidden = 128, 2
    config.num_train_steps = 5000
    config.cosine_decay = True
    config.ema_rate = 0.99
    config.eval_every = config.save_every = 1000
    config.eval_examples = 898
    config.eval_exact_examples = 200
    return variants.apply(config, variant, family.SIZES)
