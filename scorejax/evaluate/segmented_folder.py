# SPDX-License-Identifier: Apache-2.0
"""Reads a folder of pictures to segment, and writes masks, instances and overlays."""

import collections
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import tqdm
from jaxtyping import Int, UInt8
from PIL import Image

from scorejax.choices import require_known
from scorejax.data.channels import displayed
from scorejax.data.folder_contents import picture_paths
from scorejax.data.large_pictures import rows_of_strip
from scorejax.data.picture_files import DAMAGED, load_image
from scorejax.data.picture_folder import listed
from scorejax.data.png_strips import write_strips
from scorejax.evaluate import segmentation_pictures
from scorejax.evaluate.pictures import save_png
from scorejax.files import as_path, is_local, written_whole
from scorejax.train import parallel

MOST_INSTANCES = 2**16 - 1
"""Largest instance number that a 16-bit PNG can hold."""


Load = Callable[[os.PathLike], np.ndarray]
"""Reads a picture (h, w, c). Raises: ValueError, one line, for one that cannot be read."""


class Readable(NamedTuple):
    """Paths of the readable pictures of a folder, sorted, and an error line for each other one."""

    paths: tuple[pathlib.Path, ...]
    skipped: tuple[str, ...]
    names: tuple[str, ...]
    """Path of each readable picture within the folder, without its suffix."""


def readable(
    folder: str | os.PathLike, *, damaged: str = "raise", load: Load = load_image
) -> Readable:
    """Reads every picture once, to detect damaged ones before a long computation.

    `folder` may be a single picture, and has other folders' pictures below it: `folder_contents`.
    `damaged` "skip" leaves damaged pictures out; "raise" makes them an error. `load`
    reads one.
    Raises: FileNotFoundError, one line, if there is no picture; ValueError, one line that names all
    damaged pictures, or if none is readable, or if two pictures differ only in their suffix, since
    their outputs would have the same name.
    """
    require_known("way with damaged files", damaged, DAMAGED)
    folder, kept, skipped = pathlib.Path(folder).expanduser(), {}, []
    top = folder.parent if folder.is_file() else folder
    name_of = {
        path: path.relative_to(top).with_suffix("").as_posix() for path in picture_paths(folder)
    }
    name, count = collections.Counter(name_of.values()).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{folder} needs pictures of different names; got {count} of {name!r}.")
    for path, name in name_of.items():
        try:
            load(path)
        except ValueError as error:
            skipped.append(str(error))
        else:
            kept[path] = name
    if not kept or (skipped and damaged == "raise"):
        remedy = "; add --damaged=skip to leave them out" if kept else ""
        raise ValueError(
            f"{len(skipped)} of {len(name_of)} pictures cannot be used: {listed(skipped)}{remedy}"
        )
    return Readable(tuple(kept), tuple(skipped), tuple(kept.values()))


def require_apart(folder: str | os.PathLike, out: str | os.PathLike) -> None:
    """Raises ValueError if what is written to `out` would lie among the pictures of `folder`."""
    out = as_path(out)
    folder = pathlib.Path(folder).expanduser()
    if is_local(out) and folder.is_dir() and out.resolve().is_relative_to(folder.resolve()):
        raise ValueError(
            f"out needs to be outside of images; {out} is {folder}, or lies in it. The next call "
            "would segment the masks there as pictures."
        )


def segment_pictures(
    segment: Callable[[Any, np.ndarray], Any],
    variables: Any,
    pictures: Readable,
    out: str | os.PathLike,
    *,
    load: Load = load_image,
) -> None:
    """Saves the instances of segment(variables, load(path)) of each picture, or its classes.

    See `save` and `save_classes`.
    Creates the folder `out`, with those that the pictures lie in. A bar on stderr shows the
    progress. With several processes all of them segment each picture, sharing its tiles, and the
    first one saves.
    Raises: RuntimeError, one line, if the probabilities of pictures, which are not saved, are not
    finite.
    """
    out, saves, variables = as_path(out), jax.process_index() == 0, parallel.share(variables)
    silent = None if saves else True
    if saves:
        out.mkdir(parents=True, exist_ok=True)
    named, failed = list(zip(pictures.paths, pictures.names, strict=True)), []
    for path, name in tqdm.tqdm(named, unit=" pictures", file=sys.stderr, disable=silent):
        image = load(path)
        segmented = segment(variables, image)
        if not np.isfinite(segmented.probability).all():
            failed.append(path)
        elif saves and segmented.classes is not None:
            num_classes = segmented.probability.shape[-1]
            save_classes(out / name, displayed(image), segmented.classes, num_classes)
        elif saves:
            save(out / name, displayed(image), segmented.instances)
    if failed:
        raise RuntimeError(
            f"the network's probabilities are not finite for {len(failed)} of {len(named)} "
            f"pictures, first {failed[0]}, which are not saved. Look at the run's loss, or take an "
            "earlier --step"
        )


def save(
    stem: str | os.PathLike, image: UInt8[np.ndarray, "h w 3"], instances: Int[np.ndarray, "h w"]
) -> None:
    """Writes <stem>_mask.png, <stem>_overlay.png and <stem>_instances.png (16 bits).

    More than `MOST_INSTANCES` instances are written to <stem>_instances.tif (32 bits) instead.
    """
    save_png(f"{stem}_mask.png", segmentation_pictures.mask_picture(instances))
    overlay = segmentation_pictures.overlay(image, instances)
    save_png(f"{stem}_overlay.png", segmentation_pictures.with_legend(overlay, truth=False))
    num_rows = rows_of_strip(instances.shape[1])
    if instances.max(initial=0) > MOST_INSTANCES:
        with written_whole(f"{stem}_instances.tif") as file:
            numbers = Image.fromarray(instances.astype(np.int32, copy=False))
            numbers.save(file, format="TIFF", compression="tiff_deflate")
    elif len(instances) > num_rows:
        with written_whole(f"{stem}_instances.png") as file:
            write_strips(file, instances, num_rows, np.uint16)
    else:
        with written_whole(f"{stem}_instances.png") as file:
            Image.fromarray(instances.astype(np.uint16)).save(file, format="PNG")


def save_classes(
    stem: str | os.PathLike,
    image: UInt8[np.ndarray, "h w 3"],
    classes: Int[np.ndarray, "h w"],
    num_classes: int,
) -> None:
    """Writes <stem>_classes.png, whose indices are the classes, and <stem>_overlay.png.

    The palette has a colour for each class, as the masks of Pascal VOC have.
    """
    save_png(
        f"{stem}_overlay.png", segmentation_pictures.class_overlay(image, classes, num_classes)
    )
    picture = Image.fromarray(classes.astype(np.uint8))
    picture.putpalette(segmentation_pictures.class_colours(num_classes).tobytes())
    with written_whole(f"{stem}_classes.png") as file:
        picture.save(file, format="PNG")
