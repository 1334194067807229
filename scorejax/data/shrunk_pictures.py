# SPDX-License-Identifier: Apache-2.0
"""Pictures of a folder at the size of a model: each is read once, judged, and kept if it is large.

A picture of 12 megapixels takes a third of a second to read, every time. One with many more pixels
than the model sees is therefore shrunk once, to a PNG file below `cache_folder()`. Beside these lie
the verdicts on the pictures of each folder, so that the next start reads none of them again. A file
is known by its path, length and time of last change. The cache may be deleted at any time.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
import tqdm
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from scorejax.data.picture_files import Picture, load_picture
from scorejax.data.prefetch import NUM_THREADS, read_ahead
from scorejax.data.transforms import crop_then_shrink
from scorejax.files import save_text, written_whole

LARGE = 4
"""A picture is large if it has more than so many times the pixels that the model sees."""
_VERSION = "1"
"""Changes when pictures are read or shrunk in another way, so that older copies are not used."""
_CHANGE = "change"
"""Name under which a copy says what was changed of its picture."""
_SILENT_SECONDS = 3


class Verdict(NamedTuple):
    """The outcome of reading a picture: the problem, or else what was changed; "" for none."""

    problem: str
    change: str


def cache_folder() -> pathlib.Path:
    """The folder of shrunk pictures: in $SCOREJAX_CACHE_DIR, or else in ~/.cache/scorejax."""
    root = os.environ.get("SCOREJAX_CACHE_DIR") or "~/.cache/scorejax"
    return pathlib.Path(root).expanduser() / "pictures"


def load_shrunk(path: pathlib.Path, size: int) -> Picture:
    """A picture as `load_picture` reads it; of a large one, the central square in `size` pixels.

    The square is that of `transforms.crop_then_shrink`. It is read from the cache if it is there,
    else written to it. A cache that cannot be written is done without.
    Raises: ValueError, one line, as `load_picture`.
    """
    kept = cache_folder() / _name("shrunk", size, *_identity(path)).with_suffix(".png")
    # A copy that cannot be read, which makes Pillow raise exceptions of many types, is made anew.
    with contextlib.suppress(Exception), Image.open(kept) as file:
        return Picture(np.asarray(file.convert("RGB")), file.info.get(_CHANGE, ""))
    picture = load_picture(path)
    height, width = picture.pixels.shape[:2]
    if min(height, width) < size:
        changes = (picture.change, f"smaller than {size} pixels, enlarged")
        picture = picture._replace(change=" and ".join(filter(None, changes)))
    if height * width <= LARGE * size**2:
        return picture
    small = crop_then_shrink(picture.pixels, size)
    with contextlib.suppress(OSError), written_whole(kept) as file:
        text = PngInfo()
        text.add_text(_CHANGE, picture.change)
        Image.fromarray(small).save(file, format="PNG", pnginfo=text)
    return picture._replace(pixels=small)


def judge(folder: pathlib.Path, paths: Sequence[pathlib.Path], size: int) -> list[Verdict]:
    """The verdicts on pictures of a folder, each read as by `load_shrunk`, in their order.

    Sound ones that have not changed since they were judged are not read. A bar on a
    terminal shows the progress.
    """
    kept = cache_folder() / _name("verdicts", size, str(folder.resolve())).with_suffix(".json")
    before = _verdicts(kept)
    keys = {path: " ".join(map(str, _identity(path))) for path in paths}
    unread = [path for path in paths if keys[path] not in before]
    verdicts = read_ahead(lambda path: _verdict(path, size), unread, ahead=2 * NUM_THREADS)
    shown = {"unit": " pictures", "file": sys.stderr, "delay": _SILENT_SECONDS, "disable": None}
    shown |= {"desc": f"reading {folder}", "total": len(unread)}
    read = dict(tqdm.tqdm(zip(unread, verdicts, strict=True), **shown))
    found = [read.get(path) or Verdict("", before[keys[path]]) for path in paths]
    if unread and jax.process_index() == 0:
        # A problem is looked at again: permissions change, and the file does not.
        sound = {keys[p]: v.change for p, v in zip(paths, found, strict=True) if not v.problem}
        with contextlib.suppress(OSError):
            save_text(kept, json.dumps(sound))
    return found


def _verdict(path: pathlib.Path, size: int) -> Verdict:
    try:
        return Verdict("", load_shrunk(path, size).change)
    except (ValueError, OSError) as error:
        return Verdict(str(error), "")


def _verdicts(path: pathlib.Path) -> dict[str, str]:
    """Changes of sound pictures by their identity, as a former start kept them; {} without any."""
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def _identity(path: pathlib.Path) -> tuple[str, int, int]:
    """Path, length and time of last change of a file; a file that is gone has neither."""
    try:
        found = path.stat()
    except OSError:
        return str(path), -1, -1
    return str(path.resolve()), found.st_size, found.st_mtime_ns


def _name(kind: str, size: int, *identity: object) -> pathlib.Path:
    """The place within the cache of what is known of a file or a folder at a size."""
    key = hashlib.sha256("\n".join(map(str, (_VERSION, size, *identity))).encode()).hexdigest()
    return pathlib.Path(kind, key[:2], key[2:34])
