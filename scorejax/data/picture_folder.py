# SPDX-License-Identifier: Apache-2.0
"""A folder of pictures as a data set: `train/` and `test/`, optionally with class folders."""

import collections
import functools
import pathlib
from collections.abc import Sequence

import numpy as np

from scorejax.choices import require_known
from scorejax.data.folder_contents import SUFFIXES, class_of, contents, visible_files
from scorejax.data.picture_files import DAMAGED
from scorejax.data.shrunk_pictures import Verdict, judge, load_shrunk

MOST_NAMED = 20
"""Largest number of unusable pictures that a message names."""


class PictureFolder(Sequence):
    """Random access to {"image": uint8 (h, w, 3), "label": int32}, sorted by path.

    Labels number the classes of `train/` by name from 0, see `folder_contents`; without classes
    they are 0. A picture is read when it is indexed, by `shrunk_pictures.load_shrunk` at `size`.
    With `damaged` "skip", all are read once and those that cannot be are left out.
    Raises: FileNotFoundError if the split has no pictures; ValueError if some of its pictures lie
    in class folders and others do not, if a class of the test split is not in the training split,
    for another `damaged` than "raise" or "skip", if "skip" leaves no picture, or an indexed picture
    cannot be read.
    """

    def __init__(self, root: pathlib.Path, split: str, size: int, damaged: str = "raise"):
        require_known("way with damaged files", damaged, DAMAGED)
        self.folder, self._size = root / split, size
        everything = visible_files(self.folder, None)
        self._paths = [path for path in everything if path.suffix.lower() in SUFFIXES]
        self.others = collections.Counter(
            path.suffix.lower() for path in everything if path.suffix.lower() not in SUFFIXES
        )
        """Number of files of each suffix that is not that of a picture."""
        if not self._paths:
            of_root = contents(root) if not root.is_file() else "it is a file"
            raise FileNotFoundError(
                f"{self.folder} has no pictures ({', '.join(SUFFIXES)}); put yours there, with or "
                f"without a folder per class, or set --config.data_dir to another folder than "
                f"{root}: {of_root}"
            )
        self._labels = self._numbered_classes(root / "train")
        self._pictures = self._paths
        if damaged == "skip":
            self._paths = [path for path, verdict in self.verdicts.items() if not verdict.problem]
            if not self._paths:
                problems = listed([verdict.problem for verdict in self.verdicts.values()])
                raise ValueError(f"{self.folder} has no picture that can be used: {problems}")

    def _numbered_classes(self, train: pathlib.Path) -> dict[str, int]:
        """Labels by the names of training's classes. Raises: ValueError for other pictures."""
        # Going through a large folder takes seconds: that of training is not gone through twice.
        training = self._paths if self.folder == train else visible_files(train, SUFFIXES)
        names = {class_of(path, train) for path in training}
        classes = sorted(names - {""})
        labels = {name: label for label, name in enumerate(classes or [""])}
        for path in self._paths:
            name = class_of(path, self.folder)
            if name or not classes:
                require_known(f"class in {self.folder}", name, labels)
            else:
                raise ValueError(
                    f"{path} lies in no class folder, beside those of train/: {classes[0]} and so "
                    "on. Move such pictures into one, or those of all classes into none."
                )
        return labels

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        path = self._paths[index]
        label = self._labels[class_of(path, self.folder)]
        return {"image": load_shrunk(path, self._size).pixels, "label": np.int32(label)}

    @functools.cached_property
    def verdicts(self) -> dict[pathlib.Path, Verdict]:
        """The verdict on each picture, also on those left out; all are read for it, see `judge`."""
        found = judge(self.folder, self._pictures, self._size)
        return dict(zip(self._pictures, found, strict=True))


def require_readable(*folders: PictureFolder) -> None:
    """Reads every picture of some folders once.

    Raises: ValueError, one line that names all pictures that cannot be used, with their number and
    that of the others.
    """
    verdicts = [verdict for folder in folders for verdict in folder.verdicts.values()]
    problems = [verdict.problem for verdict in verdicts if verdict.problem]
    if problems:
        raise ValueError(
            f"{len(problems)} of {len(verdicts)} pictures cannot be used: {listed(problems)}. Mend "
            "or remove them, or add --config.damaged=skip to train without them, on the other "
            f"{len(verdicts) - len(problems)}"
        )


def notes(*folders: PictureFolder) -> tuple[str, ...]:
    """One line a folder: its pictures, those changed or left out, and files of other suffixes."""
    return tuple(f"{folder.folder}: {_note(folder)}" for folder in folders)


def _note(folder: PictureFolder) -> str:
    problems = [v.problem for v in folder.verdicts.values() if v.problem]
    changes = collections.Counter(v.change for v in folder.verdicts.values() if v.change)
    parts = [f"{len(folder)} of {len(folder.verdicts)} pictures are used"]
    parts += [f"{num} of them {how}" for how, num in changes.items()]
    if folder.others:
        kinds = (f"{num} {suffix or 'without any'}" for suffix, num in folder.others.most_common())
        parts.append(f"not read, by suffix: {', '.join(kinds)}")
    if problems:
        parts.append(f"{len(problems)} left out: {listed(problems)}")
    return "; ".join(parts)


def listed(problems: Sequence[str]) -> str:
    """The problems of pictures, the first `MOST_NAMED` of them, in one line."""
    problems = [problem.rstrip(".") for problem in problems]
    more = f"; and {len(problems) - MOST_NAMED} more" if len(problems) > MOST_NAMED else ""
    return "; ".join(problems[:MOST_NAMED]) + more
