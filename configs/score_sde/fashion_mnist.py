# SPDX-License-Identifier: Apache-2.0
"""Score SDEs on Fashion-MNIST, 28 x 28.

Paper     Song et al. 2021, arXiv:2011.13456 (which has no Fashion-MNIST; sizes are ours)
Data      apt-get install dataset-fashion-mnist, or its four files in --config.data_dir
Command   python -m launch.train --config=configs/score_sde/fashion_mnist.py --workdir=runs/fashion
          variants: fashion_mnist.py:vp (the default), :subvp, :ve; :debug or :ve,debug for seconds
Expected  no number is published for this set and these networks; not run by us at this size
Hardware  one GPU or TPU
"""

from ml_collections import ConfigDict

from configs import variants
from configs.score_sde import family


def get_config(variant: str = "") -> ConfigDict:
    set_sde, resize = variants.choose(variant, family.SDES, family.SIZES)
    config = set_sde(family.default())
    config.dataset = "fashion_mnist"
    config.image_size = 28
    config.sigma_max = 21.0  # The largest distance between two of 6000 images.

    config.nf = 64
    config.ch_mult = (1, 2, 2)
    config.num_res_blocks = 2
    config.attn_resolutions = (14,)

    config.num_train_steps = 200_000
    config.eval_every = config.save_every = 10_000
    return resize(config)
