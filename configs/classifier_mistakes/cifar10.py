# SPDX-License-Identifier: Apache-2.0
"""Where does WRN-28-10 fail on CIFAR-10?

Paper     Shao, Song & Ermon 2020, arXiv:2010.02364 (wide residual networks; training is ours)
Command   python -m launch.train --config=configs/classifier_mistakes/cifar10.py --workdir=runs/new
          python -m launch.evaluate --config=configs/classifier_mistakes/cifar10.py:detector \
              --config.classifier=runs/new --metrics=failures --out=runs/new/failures
          variants: supervised (the default), pi_model, mean_teacher, vat; :debug for seconds
Expected  not run by us
Hardware  GPUs or TPUs
"""

from ml_collections import ConfigDict

from configs import variants
from configs.classifier_mistakes import family


def get_config(variant: str = "") -> ConfigDict:
    config = family.default()
    config.dataset, config.image_size = "cifar10", 32
    config.random_flip = True
    config.num_labelled, config.num_valid, config.num_calibration = 40_000, 2000, 5000
    config.network = "wide_resnet"
    config.attack_eps = 8 / 255
    config.ramp_steps = 20_000  # a teacher of rate 0.999 forgets its start in 5000
    config.augment_shift = 4
    config.num_train_steps, config.batch_size = 80_000, 128
    config.warmup, config.ema_rate = 1000, 0.999
    config.grad_clip = 1.0
    config.eval_every = config.save_every = 5000
    return variants.apply(config, variant, family.OBJECTIVES, family.STAGES, family.SIZES)
