# SPDX-License-Identifier: Apache-2.0
"""Imitates a walking pair of legs, of MuJoCo, whose episodes end when it falls.

Paper     Kim et al. 2021, arXiv:2010.09808 (whose numbers are of another version of it)
Data      pip install 'scorejax[rl]', for gymnasium's simulators
Command   python -m launch.train --config=configs/density_imitation/walker2d.py:expert \
              --workdir=runs/expert
          python -m launch.sample --workdir=runs/expert --num=25 --out=runs/expert/episodes
          python -m launch.train --config=configs/density_imitation/walker2d.py \
              --config.demonstrations=runs/expert/episodes.npz --workdir=runs/imitator
          variants: expert; ndi (the default), gail, red, sqil, value_dice, bc; debug for seconds
Expected  not run by us
Hardware  one core: two hours
"""

from ml_collections import ConfigDict

from configs.density_imitation import family


def get_config(variant: str = "") -> ConfigDict:
    return family.locomotion(
        variant,
        environment="Walker2d-v5",
        num_train_steps=1_000_000,
        eval_every=50_000,
    )
