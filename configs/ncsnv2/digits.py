# SPDX-License-Identifier: Apache-2.0
"""NCSNv2 on 8 x 8 handwritten digits: in minutes, on a CPU, with no download.

Paper     Song & Ermon 2020, arXiv:2006.09011 (which has no digits; sizes are ours)
Command   python -m launch.train --config=configs/ncsnv2/digits.py --workdir=runs/ncsnv2_digits
          variants: full (the default), and :debug for seconds
Ladder    python -m launch.evaluate --config=configs/ncsnv2/digits.py --metrics=ladder
Expected  samples, bits/dim and the ablation of each technique: see docs/results.md
Hardware  2 CPU cores: five minutes
"""

from ml_collections import ConfigDict

from configs import variants
from configs.ncsnv2 import family


def get_config(variant: str = "") -> ConfigDict:
    config = family.ladder(family.default(), 4.4, 22, 10, 0.0)
    config.dataset, config.image_size = "digits", 8
    config.eval_features = "digits"
    config.random_flip = False
    config.uniform_dequantization = True
    config.nf = 24  # a step costs as much as in configs/score_sde/digits.py:ve

    config.num_train_steps = 2000
    config.batch_size = 64
    config.learning_rate = 1e-3
    config.ema_rate = 0.995

    config.num_sampling_steps = 200
    config.rtol = config.atol = 1e-4
    config.eval_every = config.save_every = 1000
    config.eval_examples = 898
    config.eval_bits_examples = 0
    return variants.apply(config, variant, family.SIZES)
