# SPDX-License-Identifier: Apache-2.0
"""A folder of pictures as a data set: `train/` and `test/`, optionally with class folders."""

import pathlib
from collections.abc import Sequence

import numpy as np

from scorejax.choices import require_known
from scorejax.data.picture_files import SUFFIXES, load_image, picture_paths


class PictureFolder(Sequence):
    """Random access to {"image": uint8 (h, w, 3), "label": int32}, sorted by path.

    Labels number the class folders of `train/` from 0; a picture outside any has label 0. A picture
    is read when it is indexed. Raises: FileNotFoundError if the split has no pictures; ValueError
    if a class of the test split is not in the training split, or an indexed picture is damaged.
    """

    def __init__(self, root: pathlib.Path, split: str):
        self._folder = root / split
        self._paths = picture_paths(self._folder, deep=True)
        if not self._paths:
            raise FileNotFoundError(
                f"{self._folder} has no pictures ({', '.join(SUFFIXES)}); put yours there, with or "
                "without a folder per class, or set --config.data_dir to another folder"
            )
        is_train = split == "train"
        training_paths = self._paths if is_train else picture_paths(root / "train", deep=True)
        classes = sorted({_class(path, root) for path in training_paths} - {""})
        self._labels = {name: label for label, name in enumerate(classes)}
        for name in {_class(path, root) for path in self._paths} - {""}:
            require_known(f"class in {self._folder}", name, classes)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        path = self._paths[index]
        label = self._labels.get(_class(path, self._folder.parent), 0)
        return {"image": load_image(path), "label": np.int32(label)}


def _class(path: pathlib.Path, root: pathlib.Path) -> str:
    """Name of the class folder of a picture, or "" if it lies in none."""
    _, *folders, _ = path.relative_to(root).parts
    return folders[0] if folders else ""
