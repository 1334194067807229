# SPDX-License-Identifier: Apache-2.0
"""Imitates a car that drives out of a valley, in JAX; an end is a success there.

Paper     Kim et al. 2021, arXiv:2010.09808 (on larger tasks; this one is ours)
Data      none
Command   python -m launch.train --config=configs/density_imitation/mountain_car.py:expert \
              --workdir=runs/expert
          python -m launch.sample --workdir=runs/expert --num=25 --out=runs/expert/episodes
          python -m launch.train --config=configs/density_imitation/mountain_car.py \
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
        environment="mountain_car",
        hidden=(128, 128),
        capacity=50_000,
        num_random=5_000,
        num_train_steps=20_000,
        eval_every=2_000,
    )
