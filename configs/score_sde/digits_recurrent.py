# SPDX-License-Identifier: Apache-2.0
"""The score SDEs of digits with a network that runs several times through backward skips.

Paper     Xiang et al. 2020, arXiv:2007.00243, whose idea this is, for networks that segment; here
          in those of Song et al. 2021, arXiv:2011.13456
Command   python -m launch.train --config=configs/score_sde/digits_recurrent.py --workdir=runs/x
          variants: those of configs/score_sde/digits.py; --config.recurrence=1 is a single pass
          with the same parameters
Expected  not measured in full; after 500 steps no gain over --config.recurrence=1 at equal steps,
          and a loss at equal work: see docs/results.md
Hardware  2 CPU cores: ten minutes
"""

from ml_collections import ConfigDict

from configs.score_sde import digits


def get_config(variant: str = "") -> ConfigDict:
    config = digits.get_config(variant)
    config.model = "recurrent_ncsnpp"
    config.recurrence = 2
    return config
