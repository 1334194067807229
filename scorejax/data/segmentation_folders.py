# SPDX-License-Identifier: Apache-2.0
"""Folders of images and masks, in the layouts that nuclear segmentation is published in.

Whatever would silently change the pixels is refused in one line that names the file: 16-bit and
transparent images, pages beyond the first, masks of more than two levels. A damaged pair is fatal,
or is left out and named, as asked.
"""

import pathlib
from collections.abc import Callable
from typing import NamedTuple

from scorejax.choices import choose, require_known
from scorejax.data.picture_files import (
    DAMAGED,
    SUFFIXES,
    load_image,
    load_instances,
    load_mask,
    picture_paths,
)
from scorejax.data.polygons import load_polygons
from scorejax.data.segmentation import AnnotatedImage

MASKS = {"regions": load_mask, "instances": load_instances}
"""What makes instances of a picture of them, by what it shows."""
Pairs = list[tuple[pathlib.Path, pathlib.Path]]


class Reading(NamedTuple):
    """Annotated images in the order of their paths, and a line for each that was left out."""

    annotated: tuple[AnnotatedImage, ...]
    skipped: tuple[str, ...]


def read(
    root: str | pathlib.Path,
    layout: str = "folders",
    *,
    masks: str = "regions",
    damaged: str = "raise",
) -> Reading:
    """Reads all pairs below `root` into memory.

    Layouts: "folders" has images/ and masks/, or x/ and y/, with files of equal stems; "tnbc" has
    Slide_01/ and GT_01/ with files of equal names; "monuseg" has an XML file of polygons for each
    image, of equal stem, anywhere below. `masks` "regions" numbers the 4-connected regions of a
    mask; "instances" takes its levels for their numbers. `damaged` "skip" leaves out pairs that
    cannot be read and says so in `skipped`.
    Raises: ValueError, one line, also if nothing is there or nothing can be read, or if two images
    would share an annotation.
    """
    pairs_below = choose("layout", layout, LAYOUTS)
    annotate = choose("kind of masks", masks, MASKS)
    require_known("way with damaged files", damaged, DAMAGED)
    root = pathlib.Path(root).expanduser()
    if not root.is_dir():
        raise ValueError(f"{root} needs to be a folder; there is none.")
    annotated, skipped = [], []
    for image, annotation in pairs_below(root):
        try:
            annotated.append(_pair(image, annotation, annotate))
        except ValueError as error:
            if damaged == "raise":
                raise
            skipped.append(str(error))
    if not annotated:
        raise ValueError(f"{root} has no pair that can be read; the first problem: {skipped[0]}")
    return Reading(tuple(annotated), tuple(skipped))


def images(folder: str | pathlib.Path) -> list[pathlib.Path]:
    """The pictures of a folder, by name. Raises: ValueError if there is none."""
    folder = pathlib.Path(folder).expanduser()
    found = picture_paths(folder) if folder.is_dir() else []
    if not found:
        raise ValueError(f"{folder} needs at least one picture ({', '.join(SUFFIXES)}); got none.")
    return found


def _pair(image_path: pathlib.Path, annotation: pathlib.Path, annotate: Callable) -> AnnotatedImage:
    image = load_image(image_path)
    if annotation.suffix.lower() == ".xml":
        instances = load_polygons(annotation, image.shape[:2])
    else:
        instances = annotate(annotation)
    if instances.shape != image.shape[:2]:
        raise ValueError(
            f"{annotation} needs the size of its image, {image.shape[0]} x {image.shape[1]}; got "
            f"{instances.shape[0]} x {instances.shape[1]}."
        )
    return AnnotatedImage(str(image_path), image, instances)


def _folders(root: pathlib.Path) -> Pairs:
    for first, second in (("images", "masks"), ("x", "y")):
        if (root / first).is_dir() and (root / second).is_dir():
            paths, masks = images(root / first), picture_paths(root / second)
            return _paired(root / first, paths, root / second, masks)
    raise ValueError(f"{root} needs folders images/ and masks/, or x/ and y/; got neither.")


def _tnbc(root: pathlib.Path) -> Pairs:
    slides = sorted(path for path in root.glob("Slide_*") if path.is_dir())
    if not slides:
        raise ValueError(f"{root} needs folders Slide_01, GT_01 and so on; got none.")
    pairs = []
    for slide in slides:
        truth = root / slide.name.replace("Slide", "GT", 1)
        pairs += _paired(slide, images(slide), truth, picture_paths(truth))
    return pairs


def _monuseg(root: pathlib.Path) -> Pairs:
    pictures = picture_paths(root, deep=True)
    if not pictures:
        raise ValueError(f"{root} needs images with XML files of polygons; got no image.")
    return _paired(root, pictures, root, sorted(root.rglob("*.xml")))


LAYOUTS = {"folders": _folders, "monuseg": _monuseg, "tnbc": _tnbc}


def _paired(
    folder: pathlib.Path,
    pictures: list[pathlib.Path],
    truth: pathlib.Path,
    annotations: list[pathlib.Path],
) -> Pairs:
    """Each picture of a folder with the annotation of its stem. Raises: ValueError without it."""
    _by_stem(folder, pictures, "picture")  # Two of one stem would share its annotation.
    found = _by_stem(truth, annotations, "annotation")
    return [(path, _partner(path, found, truth)) for path in pictures]


def _by_stem(folder: pathlib.Path, paths: list[pathlib.Path], kind: str) -> dict[str, pathlib.Path]:
    found = {path.stem: path for path in paths}
    if len(found) < len(paths):
        twice = next(path for path in paths if found[path.stem] != path)
        raise ValueError(f"{folder} needs one {kind} of a name; got two of {twice.stem!r}.")
    return found


def _partner(
    path: pathlib.Path, annotations: dict[str, pathlib.Path], folder: pathlib.Path
) -> pathlib.Path:
    if path.stem not in annotations:
        raise ValueError(f"{path} needs an annotation {path.stem!r} in {folder}; got none.")
    return annotations[path.stem]
