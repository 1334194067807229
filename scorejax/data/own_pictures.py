# SPDX-License-Identifier: Apache-2.0
"""Pictures of a folder of yours in the form of a data set that need not be there."""

import os
import pathlib

import numpy as np
from jaxtyping import UInt8

from scorejax.data import images, transforms
from scorejax.data.folder_contents import picture_paths
from scorejax.data.picture_files import load_picture
from scorejax.data.picture_folder import listed


def read_pictures(
    folder: str | os.PathLike, dataset: str, image_size: int, limit: int | None = None
) -> UInt8[np.ndarray, "n h w c"]:
    """The pictures below a folder, or the first `limit` by path, as images of a data set.

    What a picture is, `folder_contents` says; `folder` may be a single one.

    Pictures of another size are cropped to their central square and shrunk, which changes their
    likelihood.
    Raises: FileNotFoundError if there are none; ValueError, one line that names all of them, if
    pictures are damaged, smaller than the set's, or in colour and those of the set are not, or if
    the set has other than 256 levels.
    """
    spec = images.image_set(dataset)
    if spec.levels != 256:
        raise ValueError(
            f"the model's data set {dataset} has {spec.levels} grey levels, pictures have 256; "
            f"measure those of {folder} by a model of images with 256 levels"
        )
    paths = picture_paths(folder)[:limit]
    pictures, problems = [], []
    for path in paths:
        try:
            pictures.append(_fitted(path, spec.channels, image_size))
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError(f"{len(problems)} of {len(paths)} pictures: {listed(problems)}")
    return np.stack(pictures)


def _fitted(path: pathlib.Path, channels: int, size: int) -> UInt8[np.ndarray, "h w c"]:
    picture = load_picture(path).pixels
    if channels == 1:
        if (picture != picture[..., :1]).any():
            raise ValueError(f"{path} is in colour; the model's images are grey")
        picture = picture[..., :1]
    if min(picture.shape[:2]) < size:
        height, width = picture.shape[:2]
        raise ValueError(f"{path} has {width} x {height} pixels; the model's images have {size}")
    return transforms.crop_then_shrink(picture, size)
