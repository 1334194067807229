# SPDX-License-Identifier: Apache-2.0
"""BiO-Net with class masks: nuclei in focus and out of focus, or the classes of your own masks.

Paper     Xiang et al. 2020, arXiv:2007.00243 (which has one class; sizes are ours)
Data      drawn nuclei by default; your own: --config.layout=folders --config.data_dir=mine/train
          --config.test_layout=folders --config.test_data_dir=mine/test --config.num_images=0
          --config.test_num_images=0 --config.num_classes=K, each folder with images/ and masks/,
          whose levels are the classes 0 (background) to K - 1
Command   python -m launch.train --config=configs/bionet/classes.py --workdir=runs/classes
          variants: those of configs/bionet/nuclei.py
Expected  mean IoU 0.81 on 32 test images, 0.85 with eval_symmetries=8; see docs/papers/bionet.md
Hardware  1 CPU core: three minutes
"""

from ml_collections import ConfigDict

from configs import variants
from configs.bionet import family, nuclei


def get_config(variant: str = "") -> ConfigDict:
    config = nuclei.get_config()
    config.num_classes, config.masks = 3, "classes"
    config.objective = "ce_dice"
    config.best_metric = "mean_iou"
    return variants.apply(config, variant, *family.VARIANTS)
