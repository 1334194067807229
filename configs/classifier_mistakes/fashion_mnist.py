# SPDX-License-Identifier: Apache-2.0
"""Where does a classifier of Fashion-MNIST, 28 x 28, fail?

Paper     Shao, Song & Ermon 2020, arXiv:2010.02364 (sizes are ours)
Data      apt-get install dataset-fashion-mnist, or its four files in --config.data_dir
Command   python -m launch.train --workdir=runs/new \
              --config=configs/classifier_mistakes/fashion_mnist.py
          python -m launch.evaluate --config=configs/classifier_mistakes/fashion_mnist.py:detector \
              --config.classifier=runs/new --metrics=failures --out=runs/new/failures
          variants: supervised (the default), pi_model, mean_teacher, vat; :debug for seconds
Expected  accuracy 0.87 to 0.88 (three seeds), see docs/results.md
Hardware  2 CPU cores: ten minutes, and as much for the report
"""

from ml_collections import ConfigDict

from configs import variants
from configs.classifier_mistakes import family


def get_config(variant: str = "") -> ConfigDict:
    config = family.default()
    config.dataset, config.image_size = "fashion_mnist", 28
    config.num_labelled, config.num_valid, config.num_calibration = 40_000, 5000, 5000
    config.attack_eps = 0.1
    config.ramp_steps = 5000  # a teacher of rate 0.999 forgets its start in 5000
    config.augment_shift = 2
    config.num_train_steps, config.batch_size, config.learning_rate = 3000, 128, 5e-3
    config.widths = (16, 32, 64)
    config.eval_every = config.save_every = 1000
    config.ema_rate = 0.999
    return variants.apply(config, variant, family.OBJECTIVES, family.STAGES, family.SIZES)
