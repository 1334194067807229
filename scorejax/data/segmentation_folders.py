# SPDX-License-Identifier: Apache-2.0
"""Reads folders of images and masks, in the layouts of published nuclear segmentation sets.

Files whose pixels would silently change are refused in one line that names the file: 16-bit or
transparent images, more than one page, masks of more than two levels. A damaged pair raises an
error or is skipped and reported, as the caller chooses.
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
"""Reader of instances by the kind of mask."""
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
    damaged: str = "raise",
) -> Reading:
    """Reads all pairs of image and annotation below `root` into memory.

    Layout "folders" has images/ and masks/, or x/ and y/, with equal file stems; "tnbc" has
    Slide_01/ and GT_01/ and so on, with equal file stems; "monuseg" has an XML file of polygons
    beside each image, of equal stem, anywhere below `root`. `masks` "regions" numbers the
    4-connected regions of a mask; "instances" takes its grey levels as instance numbers. `damaged`
    "skip" leaves out unreadable pairs and lists them in `skipped`; "raise" makes them an error.
    Raises: ValueError, one line, if a pair is unreadable, there is none, or two images share an
    annotation.
    """
    list_pairs = choose("layout", layout, LAYOUTS)
    read_mask = choose("kind of masks", masks, MASKS)
    require_known("way with damaged files", damaged, DAMAGED)
    root = pathlib.Path(root).expanduser()
    if not root.is_dir():
        raise ValueError(f"{root} needs to be a folder; it is not.")
    annotated, skipped = [], []
    for image, annotation in list_pairs(root):
        try:
            annotated.append(_read_pair(image, annotation, read_mask))
        except ValueError as error:
            if damaged == "raise":
                raise
            skipped.append(str(error))
    if not annotated:
        raise ValueError(f"{root} has no readable pair; the first error: {skipped[0]}")
    return Reading(tuple(annotated), tuple(skipped))


def images(folder: str | pathlib.Path) -> list[pathlib.Path]:
    """Paths of the pictures of a folder, sorted. Raises: ValueError if there is none."""
    folder = pathlib.Path(folder).expanduser()
    paths = picture_paths(folder) if folder.is_dir() else []
    if not paths:
        raise ValueError(f"{folder} needs at least one picture ({', '.join(SUFFIXES)}); got none.")
    return paths


def _read_pair(
    image_path: pathlib.Path, annotation: pathlib.Path, read_mask: Callable
) -> AnnotatedImage:
    image = load_image(image_path)
    if annotation.suffix.lower() == ".xml":
        instances = load_polygons(annotation, image.shape[:2])
    else:
        instances = read_mask(annotation)
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
            return _match(root / first, paths, root / second, masks)
    raise ValueError(f"{root} needs folders images/ and masks/, or x/ and y/; got neither.")


def _tnbc(root: pathlib.Path) -> Pairs:
    slides = sorted(path for path in root.glob("Slide_*") if path.is_dir())
    if not slides:
        raise ValueError(f"{root} needs folders Slide_01, GT_01 and so on; got none.")
    pairs = []
    for slide in slides:
        truth = root / slide.name.replace("Slide", "GT", 1)
        pairs += _match(slide, images(slide), truth, picture_paths(truth))
    return pairs


def _monuseg(root: pathlib.Path) -> Pairs:
    pictures = picture_paths(root, deep=True)
    if not pictures:
        raise ValueError(f"{root} needs images with XML files of polygons; got no image.")
    return _match(root, pictures, root, sorted(root.rglob("*.xml")))


LAYOUTS = {"folders": _folders, "monuseg": _monuseg, "tnbc": _tnbc}


def _match(
    folder: pathlib.Path,
    pictures: list[pathlib.Path],
    truth: pathlib.Path,
    annotations: list[pathlib.Path],
) -> Pairs:
    """Pairs each picture with the annotation of its stem. Raises: ValueError if there is none."""
    _by_stem(folder, pictures, "picture")  # Two of one stem would share its annotation.
    annotation_of = _by_stem(truth, annotations, "annotation")
    for path in pictures:
        if path.stem not in annotation_of:
            raise ValueError(f"{path} needs an annotation {path.stem!r} in {truth}; got none.")
    return [(path, annotation_of[path.stem]) for path in pictures]


def _by_stem(folder: pathlib.Path, paths: list[pathlib.Path], kind: str) -> dict[str, pathlib.Path]:
    by_stem = {path.stem: path for path in paths}
    if len(by_stem) < len(paths):
        twice = next(path for path in paths if by_stem[path.stem] != path)
        raise ValueError(f"{folder} needs one {kind} per name; got two of {twice.stem!r}.")
    return by_stem
