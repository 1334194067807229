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

CAPTION_SIZE = 13
"""Height of a caption's letters in pixels."""
FRAME_MILLISECONDS = 60
NUM_COLOURS = 64
"""Of an animation, whose files would be large with more."""


class Evaluation(NamedTuple):
    """Scalars by name, and pictures by name as uint8 arrays (height, width, 3).

    An animation has a leading axis of frames. Tables are written by launch.evaluate, not logged in
    training. Captions, of pictures by name, stand above them with the step.
    """

    scalars: dict[str, float]
    pictures: dict[str, np.ndarray]
    tables: Mapping[str, Table] = types.MappingProxyType({})
    captions: Mapping[str, str] = types.MappingProxyType({})

    def captioned(self, step: int | None) -> dict[str, np.ndarray]:
        """The pictures, those that have captions with these and the step above them."""
        at = "" if step is None else f", step {step}"
        lines = {name: f"{caption}{at}" for name, caption in self.captions.items()}
        return {
            name: with_caption(picture, lines[name]) if name in lines else picture
            for name, picture in self.pictures.items()
        }


def json_values(report: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces non-finite floats by None, since JSON has no NaN or infinity."""
    finite = lambda value: not isinstance(value, float) or math.isfinite(value)
    return {name: value if finite(value) else None for name, value in report.items()}


def with_caption(picture: np.ndarray, caption: str) -> np.ndarray:
    """Adds a caption above a picture uint8 (h, w, 3), in as many lines as its width needs."""
    from PIL import Image, ImageDraw, ImageFont

    font, width = ImageFont.load_default(CAPTION_SIZE), picture.shape[1]
    lines: list[str] = []
    for word in caption.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width - CAPTION_SIZE:
            lines[-1] = longer
        else:
            lines.append(word)
    row = round(1.5 * CAPTION_SIZE)
    strip = Image.new("RGB", (width, row * len(lines) + row // 4), "white")
    for number, line in enumerate(lines):
        ImageDraw.Draw(strip).text((4, row * number + 2), line, fill="black", font=font)
    return np.concatenate([np.asarray(strip), picture])


def colour_key(width: int, names: Mapping[tuple[int, int, int], str]) -> np.ndarray:
    """Draws a strip uint8 (h, width, 3) with a square of each colour and what it stands for."""
    from PIL import Image, ImageDraw, ImageFont

    font, row, left = ImageFont.load_default(CAPTION_SIZE), round(1.5 * CAPTION_SIZE), 4
    places, top = [], 2
    for colour, name in names.items():
        right = left + CAPTION_SIZE + 6 + round(font.getlength(name)) + 12
        if right > width and places:
            right, left, top = right - left + 4, 4, top + row
        places.append((left, top, colour, name))
        left = right
    strip = Image.new("RGB", (width, top + row), "white")
    drawing = ImageDraw.Draw(strip)
    for left, top, colour, name in places:
        square = [left, top + 2, left + CAPTION_SIZE - 2, top + CAPTION_SIZE]
        drawing.rectangle(square, fill=colour, outline="black")
        drawing.text((left + CAPTION_SIZE + 4, top), name, fill="black", font=font)
    return np.asarray(strip)


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
