# SPDX-License-Identifier: Apache-2.0
"""Reads folders of images and masks, in the layouts of published nuclear segmentation sets.

Files whose pixels would silently change are refused in one line that names the file: 16-bit or
transparent images, more than one page, masks of more than two levels. A damaged pair raises an
error or is skipped and reported, as the caller chooses.
"""

import functools
import os
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from scorejax.choices import choose, require_known
from scorejax.data.folder_contents import SUFFIXES, contents, picture_paths, visible_files
from scorejax.data.picture_files import (
    DAMAGED,
    IGNORED,
    load_image,
    load_instances,
    load_mask,
)
from scorejax.data.polygons import load_polygons
from scorejax.data.segmentation import AnnotatedImage
from scorejax.data.segmentation_targets import load_classes

MASKS = {"regions": load_mask, "instances": load_instances, "classes": load_classes}
"""Reader by the kind of mask; that of classes needs `num_classes`."""
Pairs = list[tuple[pathlib.Path, pathlib.Path]]


class Reading(NamedTuple):
    """Annotated images sorted by path, and one error line for each skipped pair."""

    annotated: tuple[AnnotatedImage, ...]
    skipped: tuple[str, ...]


def read(
    root: str | pathlib.Path,
    layout: str = "folders",
    *,
    masks: str = "regions",
    num_classes: int = 1,
    ignore_label: int = IGNORED,
    damaged: str = "raise",
    load: Callable[[os.PathLike], np.ndarray] = load_image,
) -> Reading:
    """Reads all pairs of image and annotation below `root` into memory.

    Layout "folders" has images/ and masks/, or x/ and y/, with equal names but for the suffix;
    "tnbc" has Slide_01/ and GT_01/ and so on, likewise; "monuseg" has an XML file of polygons for
    each image, of equal stem, anywhere below `root`. What a picture is, `folder_contents` says.
    `masks` "regions" numbers the 4-connected regions of a mask; "instances" takes its grey levels
    as instance numbers, "classes" as the classes 0 .. num_classes - 1. Pixels of a mask whose level
    is `ignore_label` count nowhere. `damaged` "skip" leaves out unreadable pairs and lists them in
    `skipped`; "raise" makes them an error. `load` reads an image.
    Raises: ValueError, one line, if a pair is unreadable, there is none, or two images share an
    annotation; FileNotFoundError, one line, if a folder has no picture.
    """
    list_pairs = choose("layout", layout, LAYOUTS)
    read_mask = choose("kind of masks", masks, MASKS)
    if masks == "classes" and layout == "monuseg":
        raise ValueError(
            "layout 'monuseg' has polygons of instances; masks='classes' needs pictures"
        )
    options = {"num_classes": num_classes} if masks == "classes" else {}
    read_mask = functools.partial(read_mask, ignore_label=ignore_label, **options)
    make = AnnotatedImage.of_classes if masks == "classes" else AnnotatedImage.of_instances
    require_known("way with damaged files", damaged, DAMAGED)
    root = pathlib.Path(root).expanduser()
    if not root.is_dir():
        raise ValueError(f"{root} needs to be a folder; it is not.")
    annotated, skipped = [], []
    for image, annotation in list_pairs(root):
        try:
            pixels = load(image)
            numbers = _read_numbers(annotation, pixels.shape[:2], read_mask)
            annotated.append(make(str(image), pixels, numbers))
        except ValueError as error:
            if damaged == "raise":
                raise
            skipped.append(str(error))
    if not annotated:
        raise ValueError(f"{root} has no readable pair; the first error: {skipped[0]}")
    return Reading(tuple(annotated), tuple(skipped))


def _read_numbers(
    annotation: pathlib.Path, size: tuple[int, int], read_mask: Callable
) -> np.ndarray:
    """Instances or classes (h, w) of an image of a size. Raises: ValueError for another size."""
    if annotation.suffix.lower() == ".xml":
        numbers = load_polygons(annotation, size)
    else:
        numbers = read_mask(annotation)
    if numbers.shape != size:
        raise ValueError(
            f"{annotation} needs the size of its image, {size[0]} x {size[1]}; got "
            f"{numbers.shape[0]} x {numbers.shape[1]}."
        )
    return numbers


def _folders(root: pathlib.Path) -> Pairs:
    for first, second in (("images", "masks"), ("x", "y")):
        if (root / first).is_dir() and (root / second).is_dir():
            return _match_folders(root / first, root / second)
    raise ValueError(f"{root} needs folders images/ and masks/, or x/ and y/; {contents(root)}.")


def _tnbc(root: pathlib.Path) -> Pairs:
    slides = sorted(path for path in root.glob("Slide_*") if path.is_dir())
    if not slides:
        raise ValueError(f"{root} needs folders Slide_01, GT_01 and so on; {contents(root)}.")
    pairs = []
    for slide in slides:
        pairs += _match_folders(slide, root / slide.name.replace("Slide", "GT", 1))
    return pairs


def _monuseg(root: pathlib.Path) -> Pairs:
    pictures, polygons = picture_paths(root), visible_files(root, (".xml",))
    name = lambda path: path.stem
    return _match(
        _by_name(root, pictures, "picture", name),
        root,
        _by_name(root, polygons, "annotation", name),
    )


LAYOUTS = {"folders": _folders, "monuseg": _monuseg, "tnbc": _tnbc}


def _match_folders(folder: pathlib.Path, truth: pathlib.Path) -> Pairs:
    """Pairs the pictures of a folder with those of another by their names within the folders."""
    name = lambda path, within: path.relative_to(within).with_suffix("").as_posix()
    pictures = _by_name(folder, picture_paths(folder), "picture", lambda p: name(p, folder))
    masks = visible_files(truth, SUFFIXES)
    return _match(pictures, truth, _by_name(truth, masks, "annotation", lambda p: name(p, truth)))


def _match(
    pictures: dict[str, pathlib.Path], truth: pathlib.Path, annotations: dict[str, pathlib.Path]
) -> Pairs:
    """Pairs each picture with the annotation of its name. Raises: ValueError if there is none."""
    for name, path in pictures.items():
        if name not in annotations:
            raise ValueError(f"{path} needs an annotation {name!r} in {truth}; got none.")
    return [(path, annotations[name]) for name, path in pictures.items()]


def _by_name(
    folder: pathlib.Path,
    paths: list[pathlib.Path],
    kind: str,
    name: Callable[[pathlib.Path], str],
) -> dict[str, pathlib.Path]:
    """Paths by name. Raises: ValueError for two of one name, which would share an annotation."""
    by_name = {name(path): path for path in paths}
    if len(by_name) < len(paths):
        twice = next(path for path in paths if by_name[name(path)] != path)
        raise ValueError(f"{folder} needs one {kind} per name; got two of {name(twice)!r}.")
    return by_name
