# SPDX-License-Identifier: Apache-2.0
"""Reads a folder of pictures to segment, and writes masks, instances and overlays."""

import collections
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import tqdm
from jaxtyping import Int, UInt8
from PIL import Image

from scorejax.choices import require_known
from scorejax.data.picture_files import DAMAGED, load_image
from scorejax.data.segmentation_folders import images
from scorejax.evaluate import segmentation_pictures
from scorejax.evaluate.pictures import save_png
from scorejax.files import as_path, is_local, written_whole
from scorejax.train import parallel

MOST_INSTANCES = 2**16 - 1
"""Largest instance number that a 16-bit PNG can hold."""


class Readable(NamedTuple):
    """Paths of the readable pictures of a folder, sorted, and an error line for each other one."""

    paths: tuple[pathlib.Path, ...]
    skipped: tuple[str, ...]


def readable(folder: str | os.PathLike, *, damaged: str = "raise") -> Readable:
    """Reads every picture once, to detect damaged ones before a long computation.

    `damaged` "skip" leaves damaged pictures out; "raise" makes them an error.
    Raises: ValueError, one line, if a picture is damaged, no picture is readable, or two pictures
    differ only in their suffix, since their outputs would have the same name.
    """
    require_known("way with damaged files", damaged, DAMAGED)
    paths, kept, skipped = images(folder), [], []
    stem, count = collections.Counter(path.stem for path in paths).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{folder} needs pictures of different names; got {count} of {stem!r}.")
    for path in paths:
        try:
            load_image(path)
        except ValueError as error:
            if damaged == "raise":
                raise
            skipped.append(str(error))
        else:
            kept.append(path)
    if not kept:
        raise ValueError(f"{folder} has no readable picture; the first error: {skipped[0]}")
    return Readable(tuple(kept), tuple(skipped))


def require_apart(folder: str | os.PathLike, out: str | os.PathLike) -> None:
    """Raises ValueError if what is written to `out` would lie among the pictures of `folder`."""
    out = as_path(out)
    if is_local(out) and out.resolve() == pathlib.Path(folder).expanduser().resolve():
        raise ValueError(
            f"out needs to be another folder than images; both are {folder}. The next call would "
            "segment the masks there as pictures."
        )


def segment_pictures(
    segment: Callable[[Any, np.ndarray], Any],
    variables: Any,
    paths: Sequence[pathlib.Path],
    out: str | os.PathLike,
) -> None:
    """Saves what segment(variables, image (h, w, 3)).instances gives of each picture; see `save`.

    Creates the folder `out`. A bar on stderr shows the progress. With several processes all of them
    segment each picture, sharing its tiles, and the first one saves.
    """
    out, saves, variables = as_path(out), jax.process_index() == 0, parallel.share(variables)
    silent = None if saves else True
    if saves:
        out.mkdir(parents=True, exist_ok=True)
    for path in tqdm.tqdm(paths, unit=" pictures", file=sys.stderr, disable=silent):
        image = load_image(path)
        segmented = segment(variables, image)
        if saves:
            save(out / path.stem, image, segmented.instances)


def save(
    stem: str | os.PathLike, image: UInt8[np.ndarray, "h w 3"], instances: Int[np.ndarray, "h w"]
) -> None:
    """Writes <stem>_mask.png, <stem>_overlay.png and <stem>_instances.png (16 bits).

    More than `MOST_INSTANCES` instances are written to <stem>_instances.tif (32 bits) instead.
    """
    save_png(f"{stem}_mask.png", segmentation_pictures.mask_picture(instances))
    save_png(f"{stem}_overlay.png", segmentation_pictures.overlay(image, instances))
    if instances.max(initial=0) <= MOST_INSTANCES:
        with written_whole(f"{stem}_instances.png") as file:
            Image.fromarray(instances.astype(np.uint16)).save(file, format="PNG")
    else:
        with written_whole(f"{stem}_instances.tif") as file:
            numbers = Image.fromarray(instances.astype(np.int32))
            numbers.save(file, format="TIFF", compression="tiff_deflate")
