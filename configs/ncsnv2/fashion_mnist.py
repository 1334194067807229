# SPDX-License-Identifier: Apache-2.0
"""NCSNv2 on Fashion-MNIST, 28 x 28, or 14 x 14 on a CPU.

Paper     Song & Ermon 2020, arXiv:2006.09011 (which has no Fashion-MNIST; sizes are ours)
Data      apt-get install dataset-fashion-mnist, or its four files in --config.data_dir
Command   python -m launch.train --config=configs/ncsnv2/fashion_mnist.py --workdir=runs/clothes
          variants: full (the default), :small of 14 x 14 pixels, :debug for seconds
Ladder    python -m launch.evaluate --config=configs/ncsnv2/fashion_mnist.py --metrics=ladder
Expected  samples and bits/dim of :small: see docs/results.md; the full size was not run by us
Hardware  one GPU or TPU; :small takes 2 CPU cores ten minutes
"""

from ml_collections import ConfigDict

from configs import variants
from configs.ncsnv2 import family


def get_config(variant: str = "") -> ConfigDict:
    config = family.ladder(family.default(), 22.0, 106, 5, 0.0)
    config.dataset, config.image_size = "fashion_mnist", 28
    config.nf = 64
    config.num_train_steps = 200_000
    config.eval_every, config.save_every = 10_000, 10_000
    return variants.apply(config, variant, family.SIZES | {"small": small})


def small(config: ConfigDict) -> ConfigDict:
    """14 x 14 pixels, for minutes on a CPU."""
    config = family.ladder(config, 11.0, 46, 5, 0.0)
    config.image_size, config.nf = 14, 16
    config.num_train_steps = 1500
    config.batch_size = 64
    config.learning_rate = 1e-3
    config.ema_rate = 0.995
    config.num_sampling_steps = 200
    config.rtol = config.atol = 1e-3
    config.eval_every = config.save_every = 500
    config.eval_examples = 1000
    return config
