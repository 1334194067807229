# SPDX-License-Identifier: Apache-2.0
"""BiO-Net trained on MoNuSeg and tested on TNBC: nuclei of breast cancer from another laboratory.

Paper     Xiang et al. 2020, arXiv:2007.00243, which trains on MoNuSeg in both cases
Data      MoNuSeg's training images, and TNBC's 50 images of 512 x 512 with their masks
          (Slide_01/, GT_01/, ...)
Command   python -m launch.train --config=configs/bionet/tnbc.py --workdir=runs/tnbc \\
          --config.data_dir=monuseg/train --config.test_data_dir=tnbc
          variants: those of configs/bionet/monuseg.py
Expected  lower scores than on MoNuSeg; we quote no number that we could not read ourselves
Hardware  one GPU of 16 GB; 1.1 TFLOP a step; not run by us at this size
"""

from ml_collections import ConfigDict

from configs import variants
from configs.bionet import family


def get_config(variant: str = "") -> ConfigDict:
    config = family.default()
    config.test_layout = "tnbc"
    return variants.apply(config, variant, *family.VARIANTS)
