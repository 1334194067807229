# SPDX-License-Identifier: Apache-2.0
"""Defaults and variants of the BiO-Net experiments.

The values are those of the published PyTorch training script (arXiv:2007.00243).
"""

from ml_collections import ConfigDict

from configs.variants import make_edit, unchanged


def images() -> ConfigDict:
    """Four corners of each MoNuSeg image, augmented as the published script does."""
    config = ConfigDict()
    config.system = "bionet"
    config.seed = 42

    config.layout, config.data_dir = "monuseg", ""
    config.test_layout, config.test_data_dir = "monuseg", ""
    config.num_images = config.test_num_images = 0  # 0: all
    config.validation_fraction = 0.1  # of the training images, to rank checkpoints; 0: test images
    config.image_side = 512  # pixels, of generated images
    config.corner_patches = True
    config.masks = "regions"  # connected ones are instances; instances, classes: by their levels
    config.num_classes = 1  # foreground; more exclude each other, 0 is background: masks="classes"
    config.ignore_label = -1  # level of masks whose pixels do not count, such as 255; -1: none
    config.num_channels = 3
    config.normalisation = "levels"  # of 8 bits; percentiles, standard: each picture by itself
    config.damaged = "raise"  # skip: leaves out unreadable images
    config.side = 512
    config.augment = True
    config.rotation, config.translation, config.shear, config.scale = 15.0, 0.05, 50.0, 0.2
    config.flip = True
    config.border = "constant"
    config.brightness = config.colour = config.blur = config.noise = 0.0  # largest changes
    return config


def default() -> ConfigDict:
    """BiO-Net with three passes and INT, on `images`."""
    config = images()
    config.dialect = "torch"  # keras
    config.multiplier = 1.0
    config.num_levels = 4
    config.num_passes = 3
    config.progressive_passes = ()  # updates before the 2nd, 3rd, ... pass is made; (): 0 for all
    config.deep_supervision = 0.0  # weight of the mean loss of the passes before the last one
    config.integrate = True
    config.num_backward_skips = 4
    config.norm_momentum = 0.01  # weight of a new batch in the running statistics
    config.dtype = "float32"  # arithmetic of convolutions; bfloat16 on accelerators
    config.remat = False

    config.objective = "bce"  # dice, bce_dice, focal, tversky; of classes: ce, ce_dice, ...
    config.class_weights = ()  # of the background, of each class and of contacts; (): equal
    config.focal_gamma, config.tversky_alpha, config.tversky_beta = 2.0, 0.3, 0.7
    config.contact_width = 0  # pixels on either side of contacts of instances, predicted too
    config.num_train_steps = 75_000  # 300 epochs of 250
    config.batch_size = 2  # over all devices
    config.accumulation = 1
    config.num_steps_per_call = 10
    config.learning_rate = 0.01
    config.learning_rate_decay = 3e-5  # the rate is divided by 1 + decay * steps
    config.grad_clip, config.warmup = 0.0, 0  # norm of gradients, updates; 0: neither
    config.ema_rate = 0.0  # no average: it would not fit the running statistics

    config.threshold = 0.5
    config.min_distance = 6  # pixels between the centres of two instances
    config.tile, config.overlap, config.margin = 512, 128, 32
    config.tile_batch = 4
    config.eval_symmetries = 1  # 4: flips of a tile are averaged; 8: and quarter turns

    config.log_every = 250
    config.eval_every = config.save_every = 2500
    config.keep_latest = 2
    config.max_nonfinite_updates = 0  # skipped in a row; the next one ends the run
    config.best_metric = "iou"
    config.best_mode = "max"
    return config


def debug(config: ConfigDict) -> ConfigDict:
    """A small network and short training on generated images, for seconds on a CPU."""
    config.layout = config.test_layout = "generated"
    config.num_images, config.test_num_images, config.image_side = 10, 2, 48
    config.validation_fraction = 0.2
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


PASSES = {f"t{n}": make_edit(num_passes=n, integrate=False) for n in (1, 2, 3)}
INTEGRATION = {"int": make_edit(integrate=True)}  # applied after PASSES, which turn it off
WIDTHS = {f"x{m}": make_edit(multiplier=m) for m in (0.25, 0.5, 0.75)}
BACKWARD_SKIPS = {f"w{n}": make_edit(num_backward_skips=n) for n in range(4)}  # the coarsest n
DIALECTS = {"keras": make_edit(dialect="keras", norm_momentum=0.99)}
SIZES = {"full": unchanged, "debug": debug}
VARIANTS = (PASSES, INTEGRATION, WIDTHS, BACKWARD_SKIPS, DIALECTS, SIZES)
