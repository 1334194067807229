# SPDX-License-Identifier: Apache-2.0
"""A folder of pictures as a data set: `train/` and `test/`, optionally with class folders."""

import pathlib
from collections.abc import Sequence

import numpy as np

from scorejax.choices import require_known
from scorejax.data.folder_contents import SUFFIXES, class_of, contents, visible_files
from scorejax.data.picture_files import load_image


class PictureFolder(Sequence):
    """Random access to {"image": uint8 (h, w, 3), "label": int32}, sorted by path.

    Labels number the classes of `train/` by name from 0, see `folder_contents`; without classes
    they are 0. A picture is read when it is indexed.
    Raises: FileNotFoundError if the split has no pictures; ValueError if some of its pictures lie
    in class folders and others do not, if a class of the test split is not in the training split,
    or an indexed picture is damaged.
    """

    def __init__(self, root: pathlib.Path, split: str):
        self._folder = root / split
        self._paths = visible_files(self._folder, SUFFIXES)
        if not self._paths:
            of_root = contents(root) if not root.is_file() else "it is a file"
            raise FileNotFoundError(
                f"{self._folder} has no pictures ({', '.join(SUFFIXES)}); put yours there, with or "
                f"without a folder per class, or set --config.data_dir to another folder than "
                f"{root}: {of_root}"
            )
        train = root / "train"
        # Going through a large folder takes seconds: that of training is not gone through twice.
        training = self._paths if self._folder == train else visible_files(train, SUFFIXES)
        names = {class_of(path, train) for path in training}
        classes = sorted(names - {""})
        self._labels = {name: label for label, name in enumerate(classes or [""])}
        for path in self._paths:
            name = class_of(path, self._folder)
            if name or not classes:
                require_known(f"class in {self._folder}", name, self._labels)
            else:
                raise ValueError(
                    f"{path} lies in no class folder, beside those of train/: {classes[0]} and so "
                    "on. Move such pictures into one, or those of all classes into none."
                )

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        path = self._paths[index]
        label = self._labels[class_of(path, self._folder)]
        return {"image": load_image(path), "label": np.int32(label)}
