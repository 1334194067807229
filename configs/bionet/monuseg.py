# SPDX-License-Identifier: Apache-2.0
"""BiO-Net on MoNuSeg: nuclei in stained sections of seven organs.

Paper     Xiang et al. 2020, arXiv:2007.00243
Data      the MoNuSeg challenge: 30 training and 14 test images, .tif with .xml of polygons, in
          two folders
Command   python -m launch.train --config=configs/bionet/monuseg.py --workdir=runs/monuseg \\
          --config.data_dir=monuseg/train --config.test_data_dir=monuseg/test
          variants: t1, t2, t3 (passes, INT off), int, x0.25, x0.5, x0.75 (widths), w0 ... w3
          (backward skips, the coarsest ones), keras, and :debug, joined as in :t2,int,x0.5
Expected  IoU 0.704, Dice 0.825 (the authors' page; their best checkpoint was chosen on the test
          images, and scores averaged over batches of two: the metric "published")
Hardware  one GPU of 16 GB; 1.1 TFLOP a step; not run by us at this size
"""

from ml_collections import ConfigDict

from configs import variants
from configs.bionet import family


def get_config(variant: str = "") -> ConfigDict:
    return variants.apply(family.default(), variant, *family.VARIANTS)
