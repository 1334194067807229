# SPDX-License-Identifier: Apache-2.0
"""Imitates an arm that reaches for a target, of MuJoCo.

Paper     Kim et al. 2021, arXiv:2010.09808 (on larger tasks; this one is ours)
Data      pip install 'scorejax[rl]', for gymnasium's simulators
Command   python -m launch.train --config=configs/density_imitation/reacher.py:expert \
              --workdir=runs/expert
          python -m launch.sample --workdir=runs/expert --num=25 --out=runs/expert/episodes
          python -m launch.train --config=configs/density_imitation/reacher.py \
              --config.demonstrations=runs/expert/episodes.npz --workdir=runs/imitator
          variants: expert; ndi (the default), gail, red, sqil, value_dice, bc; debug for seconds
Expected  not run by us
Hardware  2 CPU cores: minutes
"""

from ml_collections import ConfigDict

from configs.density_imitation import family


def get_config(variant: str = "") -> ConfigDict:
    return family.configured(
        variant,
        environment="Reacher-v5",
        num_demonstrations=25,  # the goal does not move in one
        hidden=(128, 128),
        capacity=51_000,
        num_train_steps=50_000,
        eval_every=5_000,
    )
