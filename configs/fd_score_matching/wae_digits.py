# SPDX-License-Identifier: Apache-2.0
"""A WAE of 8 x 8 handwritten digits, whose codes FD-SSM-VR leads to the prior.

Paper     Pang et al. 2020, arXiv:2007.03317, Section 5.4 (which has CelebA; sizes are ours)
Command   python -m launch.train --workdir=runs/new \\
              --config=configs/fd_score_matching/wae_digits.py
          variants: full (the default), and :debug for seconds
Expected  codes of variance about one, reconstructions, samples
Hardware  2 CPU cores: some minutes
"""

from ml_collections import ConfigDict

from configs import variants
from configs.fd_score_matching import family


def get_config(variant: str = "") -> ConfigDict:
    config = family.autoencoder("implicit_wae", "digits", 8)
    config.hidden = 128
    config.num_train_steps = 10_000
    config.eval_every = config.save_every = 2000
    config.eval_examples = 898
    return variants.apply(config, variant, family.SIZES)
