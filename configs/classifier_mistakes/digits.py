# SPDX-License-Identifier: Apache-2.0
"""Where does a classifier of 8 x 8 handwritten digits fail? With no download.

Paper     Shao, Song & Ermon 2020, arXiv:2010.02364 (which has no such digits; all is ours)
Command   python -m launch.train --config=configs/classifier_mistakes/digits.py --workdir=runs/new
          python -m launch.evaluate --config=configs/classifier_mistakes/digits.py:detector \
              --config.classifier=runs/new --metrics=failures --out=runs/new/failures
          variants: supervised (the default), pi_model, mean_teacher, vat; :debug for seconds
Expected  see docs/results.md
Hardware  2 CPU cores: minutes
"""

from ml_collections import ConfigDict

from configs import variants
from configs.classifier_mistakes import family


def get_config(variant: str = "") -> ConfigDict:
    config = family.default()
    config.dataset, config.image_size = "digits", 8
    # 300 labels leave mistakes to find; 502 images are for the density, 449 calibrate.
    config.num_labelled, config.num_valid, config.num_calibration = 300, 97, 449
    config.attack_eps = 0.15
    config.num_train_steps = 1000
    config.eval_every = config.save_every = 250
    return variants.apply(config, variant, family.OBJECTIVES, family.STAGES, family.SIZES)
