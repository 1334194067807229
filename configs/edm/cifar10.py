# SPDX-License-Identifier: Apache-2.0
"""EDM on CIFAR-10, without labels of classes.

Paper     Karras et al. 2022, arXiv:2206.00364; its settings for CIFAR-10, unconditional
Command   python -m launch.train --config=configs/edm/cifar10.py --workdir=runs/new
          variants: vp (DDPM++, the default), ve (NCSN++), and :debug or :ve,debug for seconds
Import    python -m launch.import_weights --architecture=edm/song_unet --workdir=runs/published \\
              --config=configs/edm/cifar10.py --weights=edm-cifar10-32x32-uncond-vp.pkl
Expected  FID 1.97 (vp), 1.98 (ve) in 35 evaluations, where training augments, as it does not here
Hardware  GPUs or TPUs, the batch divided among them; not run by us at this size
"""

from ml_collections import ConfigDict

from configs import variants
from configs.edm import family


def get_config(variant: str = "") -> ConfigDict:
    return variants.apply(family.default(), variant, family.NETWORKS, family.SIZES)
