# SPDX-License-Identifier: Apache-2.0
"""Results of an evaluation: scalars, pictures and tables."""

import csv
import io
import math
import os
import types
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from scorejax.files import save_text, written_whole

Table: TypeAlias = Sequence[Mapping[str, Any]]
"""Rows, all with the same columns."""

FRAME_MILLISECONDS = 60
NUM_COLOURS = 64
"""Of an animation, whose files would be large with more."""


class Evaluation(NamedTuple):
    """Scalars by name, and pictures by name as uint8 arrays (height, width, 3).

    An animation has a leading axis of frames. Tables are written by launch.evaluate, not logged in
    training.
    """

    scalars: dict[str, float]
    pictures: dict[str, np.ndarray]
    tables: Mapping[str, Table] = types.MappingProxyType({})


def json_values(report: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces non-finite floats by None, since JSON has no NaN or infinity."""
    finite = lambda value: not isinstance(value, float) or math.isfinite(value)
    return {name: value if finite(value) else None for name, value in report.items()}


def save_picture(stem: str | os.PathLike, picture: np.ndarray) -> str:
    """Writes <stem>.png, or <stem>.gif of an animation, atomically; returns the path.

    Raises: ValueError unless the picture is uint8 (h, w, 3) or (frames, h, w, 3).
    """
    if picture.dtype != np.uint8 or picture.ndim not in (3, 4) or picture.shape[-1] != 3:
        raise ValueError(
            f"a picture needs uint8 (h, w, 3), or frames of it; got {picture.dtype} {picture.shape}"
        )
    import PIL.Image  # Imported here: most programs write none.

    path = f"{stem}.gif" if picture.ndim == 4 else f"{stem}.png"
    with written_whole(path) as file:
        if picture.ndim == 3:
            PIL.Image.fromarray(picture).save(file, format="PNG")
            return path
        first, *others = [PIL.Image.fromarray(frame).quantize(NUM_COLOURS) for frame in picture]
        options = {"append_images": others, "duration": FRAME_MILLISECONDS, "loop": 0}
        first.save(file, format="GIF", save_all=True, **options)
    return path


def save_table(path: str | os.PathLike, rows: Table) -> None:
    """Writes rows as CSV in UTF-8, below a header, atomically. Raises: OSError as `save_text`."""
    text = io.StringIO()
    columns = list(rows[0]) if rows else []
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    save_text(path, text.getvalue())
