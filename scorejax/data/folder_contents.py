# SPDX-License-Identifier: Apache-2.0
"""Which files of a folder are pictures, and which of its folders are classes.

A picture is a visible file whose name ends in one of `SUFFIXES`, in the folder or in any visible
folder below it; links are followed. A class is a folder directly below that of the split with a
picture in it. Whatever programs leave behind (see `is_hidden`) is neither.
"""

import os
import pathlib
from collections.abc import Collection

SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".webp")
_LEFT_BEHIND = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information")
"""Folders of macOS archives, Synology disks and Windows; they hold copies and thumbnails."""


def is_hidden(name: str) -> bool:
    """Whether a file or a folder of this name is none of the user's, as .ipynb_checkpoints."""
    return name.startswith(".") or name in _LEFT_BEHIND


def visible_files(
    folder: str | os.PathLike, suffixes: Collection[str] | None, *, deep: bool = True
) -> list[pathlib.Path]:
    """Visible files that end in one of the suffixes, in any case, sorted by path; None takes all.

    They may lie in visible folders below, unless `deep` is false. A link to a folder above itself
    is not followed. A folder that is not there has no files.
    Raises: ValueError, one line, for a link to nothing; OSError for a folder that may not be read.
    """
    found: list[str] = []

    def is_wanted(entry: os.DirEntry) -> bool:
        if suffixes is None:
            return entry.is_file()
        return os.path.splitext(entry.name)[1].lower() in suffixes

    def walk(directory: str, above: frozenset[str]) -> None:
        real = os.path.realpath(directory)
        if real in above:
            return
        with os.scandir(directory) as entries:
            visible = [entry for entry in entries if not is_hidden(entry.name)]
        for entry in visible:
            if entry.is_dir():
                if deep:
                    walk(entry.path, above | {real})
            elif is_wanted(entry):
                found.append(entry.path)
            elif deep and entry.is_symlink() and not entry.is_file():
                raise ValueError(f"{entry.path} is a link to {os.readlink(entry.path)}, not there.")

    folder = pathlib.Path(folder).expanduser()
    if folder.is_dir():
        walk(str(folder), frozenset())
    return sorted(map(pathlib.Path, found))


def picture_paths(folder: str | os.PathLike) -> list[pathlib.Path]:
    """The pictures of a folder, sorted by path; one picture in place of a folder is its only one.

    Raises: FileNotFoundError, one line, if there are none; otherwise as `visible_files`.
    """
    folder = pathlib.Path(folder).expanduser()
    if folder.is_file():
        paths = [folder] if folder.suffix.lower() in SUFFIXES else []
    else:
        paths = visible_files(folder, SUFFIXES)
    if not paths:
        listed = ", ".join(SUFFIXES)
        if folder.is_file():
            raise FileNotFoundError(f"{folder} is no picture ({listed}), nor a folder of pictures")
        raise FileNotFoundError(f"{folder} has no pictures ({listed}); {contents(folder)}")
    return paths


def class_of(picture: pathlib.Path, split: pathlib.Path) -> str:
    """Name of the class folder of a picture below the folder of its split, or "" without one."""
    *folders, _ = picture.relative_to(split).parts
    return folders[0] if folders else ""


def contents(folder: pathlib.Path, most: int = 5) -> str:
    """Names the contents of a folder, for the end of an error line: "it has cats, dogs"."""
    if not folder.is_dir():
        return "it is not there"
    names = sorted(name for name in os.listdir(folder) if not is_hidden(name))
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"it has {', '.join(names[:most])}{more}" if names else "it is empty"
