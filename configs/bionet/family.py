# SPDX-License-Identifier: Apache-2.0
"""What the experiments of BiO-Net have in common; a config states what differs.

The values are those of the published PyTorch training script (arXiv:2007.00243).
"""

import re

from ml_collections import ConfigDict

from scorejax.choices import require_known

SIZES = ("full", "debug")
WORDS = ("t1", "t2", "t3", "int", "x0.25", "x0.5", "x0.75", "w0", "w1", "w2", "w3", "keras")
"""Of variants: passes, INT, the multiplier of all widths, the number of backward skips (the
coarsest ones), and the Keras version."""


def default() -> ConfigDict:
    """BiO-Net with three passes and INT, on four corners of each MoNuSeg image."""
    config = ConfigDict()
    config.system = "bionet"
    config.seed = 42

    config.layout, config.data_dir = "monuseg", ""
    config.test_layout, config.test_data_dir = "monuseg", ""
    config.num_images = config.test_num_images = 0  # 0: all
    config.image_side = 512  # of generated images
    config.corner_patches = True
    config.masks = "regions"  # of a mask are the instances; instances: its levels number them
    config.damaged = "raise"  # skip: images that cannot be read are left out
    config.side = 512
    config.augment = True
    config.rotation, config.translation, config.shear, config.scale = 15.0, 0.05, 50.0, 0.2
    config.flip = True
    config.border = "constant"

    config.dialect = "torch"  # keras
    config.multiplier = 1.0
    config.num_levels = 4
    config.num_passes = 3
    config.integrate = True
    config.num_backward_skips = 4
    config.norm_momentum = 0.01  # weight of a new batch in the running statistics
    config.dtype = "float32"  # of the arithmetic in convolutions; bfloat16 on accelerators
    config.remat = False

    config.objective = "bce"  # dice, bce_dice
    config.num_train_steps = 75_000  # 300 epochs of 250
    config.batch_size = 2  # of all devices together
    config.accumulation = 1
    config.num_steps_per_call = 10
    config.learning_rate = 0.01
    config.learning_rate_decay = 3e-5  # the rate is divided by 1 + decay * updates
    config.ema_rate = 0.0  # no average: the running statistics are those of the weights themselves

    config.threshold = 0.5
    config.min_distance = 6  # pixels between the centres of two instances
    config.tile, config.overlap, config.margin = 512, 128, 32
    config.tile_batch = 4

    config.log_every = 250
    config.eval_every = config.save_every = 2500
    config.keep_latest = 2
    config.best_metric = "iou"
    config.best_mode = "max"
    return config


def with_variant(config: ConfigDict, variant: str) -> ConfigDict:
    """The experiment changed by words such as "t2,int,x0.5,w3,debug". Raises: ValueError."""
    words = list(filter(None, variant.split(",")))
    for word in words:
        require_known("variant", word, WORDS + SIZES)
    if any(re.fullmatch(r"t\d", word) for word in words):
        config.integrate = False  # unless it is asked for
    for word in words:
        _apply(config, word)
    return debug(config) if "debug" in words else config


def _apply(config: ConfigDict, word: str) -> None:
    if word == "int":
        config.integrate = True
    elif word == "keras":
        config.dialect, config.norm_momentum = "keras", 0.99
    elif word[0] == "t":
        config.num_passes = int(word[1:])
    elif word[0] == "x":
        config.multiplier = float(word[1:])
    elif word[0] == "w":
        config.num_backward_skips = int(word[1:])


def debug(config: ConfigDict) -> ConfigDict:
    """The same experiment on generated images with everything small: seconds on a CPU."""
    config.layout = config.test_layout = "generated"
    config.num_images, config.test_num_images, config.image_side = 8, 2, 48
    config.corner_patches = False
    config.side = 32
    config.multiplier = min(config.multiplier, 0.125)
    config.num_levels = 2
    config.num_backward_skips = min(config.num_backward_skips, 2)
    config.norm_momentum = max(config.norm_momentum, 0.3)
    config.learning_rate = 0.01
    config.num_train_steps = 40
    config.batch_size = 4
    config.tile, config.overlap, config.margin = 32, 16, 4
    config.min_distance = 4
    config.log_every = 10
    config.eval_every = config.save_every = 20
    return config
