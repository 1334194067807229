# SPDX-License-Identifier: Apache-2.0
"""A folder of pictures as a data set: `train/` and `test/`, each with class folders or none."""

import pathlib
from collections.abc import Sequence

import numpy as np

from scorejax.choices import require_known
from scorejax.data.picture_files import SUFFIXES, load_image, picture_paths


class PictureFolder(Sequence):
    """Random access to {"image": uint8 (h, w, 3), "label": int32}, in the order of the paths.

    Labels number the folders of `train/` from 0; pictures outside of any have label 0. A picture
    is read when it is asked for. Raises: FileNotFoundError if the split has no pictures, ValueError
    for a class of the test split that training does not have, or, later, a damaged picture.
    """

    def __init__(self, root: pathlib.Path, split: str):
        self._folder = root / split
        self._paths = picture_paths(self._folder, deep=True)
        if not self._paths:
            raise FileNotFoundError(
                f"{self._folder} has no pictures ({', '.join(SUFFIXES)}); put yours there, in a "
                "folder per class or in none, or name another place with --config.data_dir"
            )
        own = split == "train"
        training = self._paths if own else picture_paths(root / "train", deep=True)
        classes = sorted({_class(path, root) for path in training} - {""})
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
    """The folder below the split's, or nothing."""
    _, *folders, _ = path.relative_to(root).parts
    return folders[0] if folders else ""
