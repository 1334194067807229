# SPDX-License-Identifier: Apache-2.0
"""Targets of a segmentation network: a foreground, exclusive classes, contacts.

The labels of a picture, (h, w), are cropped and moved together with it, and encoded afterwards, so
that the width of contacts does not depend on the movement. IGNORED marks pixels that do not count.
"""

import dataclasses
import os

import numpy as np
from jaxtyping import Bool, Float32, Int, Int32
from scipy import ndimage

from scorejax.data.picture_files import IGNORED, load_levels


@dataclasses.dataclass(frozen=True)
class Encoding:
    """How labels become the mask that a network is trained on.

    One class is a foreground, with k = 1 mask; with a `contact_width` a second mask is where
    instances meet. More classes exclude each other, class 0 is the background, and each has a mask.
    Raises: ValueError for contacts of several classes, or a negative number.
    """

    num_classes: int = 1
    contact_width: int = 0
    """Pixels of an instance this near to another one are a contact."""
    ignores: bool = False
    """Whether some pixels do not count: batches then say which."""

    def __post_init__(self) -> None:
        if self.num_classes < 1 or self.contact_width < 0:
            raise ValueError(
                "segmentation needs num_classes >= 1 and contact_width >= 0; got "
                f"num_classes={self.num_classes}, contact_width={self.contact_width}"
            )
        if self.num_classes > 1 and self.contact_width:
            raise ValueError(
                f"contact_width={self.contact_width} separates the instances of one class; got "
                f"num_classes={self.num_classes}"
            )

    @property
    def num_masks(self) -> int:
        """Outputs of the network."""
        return self.num_classes + (self.contact_width > 0)

    def __call__(self, labels: Int[np.ndarray, "b h w"]) -> dict[str, Float32[np.ndarray, "..."]]:
        """{"mask": (b, h, w, num_masks)}, and "known" (b, h, w) if some pixels do not count.

        Labels are classes, or with contacts the numbers of instances.
        """
        if self.num_classes > 1:
            masks = [labels == number for number in range(self.num_classes)]
        else:
            masks = [labels > 0]
        if self.contact_width:
            masks.append(np.stack([contacts(one, self.contact_width) for one in labels]))
        encoded = {"mask": np.stack(masks, axis=-1).astype(np.float32)}
        if self.ignores:
            encoded["known"] = (labels != IGNORED).astype(np.float32)
        return encoded


def contacts(instances: Int[np.ndarray, "h w"], width: int) -> Bool[np.ndarray, "h w"]:
    """Pixels of instances with another instance within `width` pixels along rows and columns.

    The outline against the background is no contact: the foreground shows it.
    """
    window = (2 * width + 1,) * 2
    far = np.iinfo(np.int32).max
    highest = ndimage.maximum_filter(instances, window, mode="nearest")
    lowest = ndimage.minimum_filter(np.where(instances > 0, instances, far), window, mode="nearest")
    return (instances > 0) & (highest != lowest)


def load_classes(
    path: str | os.PathLike, *, num_classes: int, ignore_label: int = IGNORED
) -> Int32[np.ndarray, "h w"]:
    """Reads a mask whose levels, see `load_levels`, are the classes 0 .. num_classes - 1.

    Pixels of the level `ignore_label` become IGNORED.
    Raises: ValueError, one line, as `load_levels`, or for another level.
    """
    levels, ignored = load_levels(path, ignore_label=ignore_label)
    values = np.unique(levels)
    if values[0] < 0 or values[-1] >= num_classes:
        first = ", ".join(map(str, values[:4])) + (", …" if len(values) > 4 else "")
        raise ValueError(
            f"{path} needs the levels 0 to {num_classes - 1}, one for each class; got "
            f"{len(values)}: {first}. Set num_classes, or ignore_label for a level without class."
        )
    return np.where(ignored, IGNORED, levels).astype(np.int32)


def class_regions(classes: Int[np.ndarray, "h w"]) -> Int32[np.ndarray, "h w"]:
    """Numbers the 4-connected regions of each class above 0 from 1; 0 is elsewhere."""
    regions = np.zeros(classes.shape, np.int32)
    for number in np.unique(classes[classes > 0]):
        inside = classes == number
        regions[inside] = ndimage.label(inside)[0][inside] + regions.max()
    return regions
