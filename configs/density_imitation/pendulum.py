# SPDX-License-Identifier: Apache-2.0
"""Imitates the swing-up of a pendulum, in JAX; without any package or download.

Paper     Kim et al. 2021, arXiv:2010.09808 (on MuJoCo; this task is ours)
Command   python -m launch.train --config=configs/density_imitation/pendulum.py:expert \
              --workdir=runs/expert
          python -m launch.sample --workdir=runs/expert --num=25 --out=runs/expert/episodes
          python -m launch.train --config=configs/density_imitation/pendulum.py \
              --config.demonstrations=runs/expert/episodes.npz --workdir=runs/imitator
          variants: expert; ndi (the default), gail, red, sqil, value_dice, bc; debug for seconds
Expected  see docs/results.md
Hardware  2 CPU cores: minutes
"""

from ml_collections import ConfigDict

from configs.density_imitation import family


def get_config(variant: str = "") -> ConfigDict:
    return family.configured(
        variant,
        environment="pendulum",
        hidden=(128, 128),
        capacity=50_000,
        num_train_steps=20_000,
        eval_every=2_000,
    )
