# SPDX-License-Identifier: Apache-2.0
"""Imitates a policy in a scalar linear system with Gaussian noise.

Paper     Kim et al. 2021, arXiv:2010.09808 (on larger tasks; this one is ours)
Data      none
Command   python -m launch.train --config=configs/density_imitation/linear_gaussian.py:expert \
              --workdir=runs/expert
          python -m launch.sample --workdir=runs/expert --num=25 --out=runs/expert/episodes
          python -m launch.train --config=configs/density_imitation/linear_gaussian.py \
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
        environment="linear_gaussian",
        hidden=(64, 64),
        capacity=50_000,
        num_train_steps=20_000,
        eval_every=2_000,
        density="gaussian",
        lambda_pi=1.0,
        lambda_f=1.0,
        entropy_term="learned",
    )
