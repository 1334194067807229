# SPDX-License-Identifier: Apache-2.0
"""Instances of a predicted mask whose borders are predicted too.

The borders cut touching objects apart; each piece that is left grows back over the borders.
"""

import numpy as np
from jaxtyping import Bool, Float, Int32

MINIMUM_SEED = 2
"""Smallest piece in pixels that becomes an object of its own; a lone pixel is noise."""


def separate_by_borders(
    mask: Bool[np.ndarray, "h w"], border: Float[np.ndarray, "h w"], *, threshold: float = 0.5
) -> Int32[np.ndarray, "h w"]:
    """Splits a mask where the probability of a border is above a threshold.

    Seeds are the 4-connected pieces of the mask without borders. They grow over the mask by a
    watershed of the border probability. A region of the mask without a seed, such as an object as
    narrow as its border, becomes an object as a whole. Objects are numbered from 1 without gaps.
    """
    from scipy import ndimage
    from skimage.segmentation import relabel_sequential, watershed

    seeds, num = ndimage.label(mask & (border <= threshold))
    small = np.bincount(seeds.ravel(), minlength=num + 1) < MINIMUM_SEED
    seeds[small[seeds]] = 0
    instances = watershed(border, seeds, mask=mask).astype(np.int32)
    rest, _ = ndimage.label(mask & (instances == 0))
    instances = np.where(rest > 0, rest + num, instances)
    return relabel_sequential(instances)[0].astype(np.int32)
