# SPDX-License-Identifier: Apache-2.0
"""An index as a folder: written atomically, checked on opening, read by memory maps.

    meta.json      settings; names, sizes and SHA-256 of the other files, and its own digest
    rows.bin       pages of page_bytes, each of whole rows in the order of the first tree's leaves
    ids.npy leaves.npy tuples.npy moments.npy gauge.npy tree_000.npy ...

A folder is written under a temporary name beside its own, flushed to the disk, and renamed, so that
a killed build leaves no index. Its remains are removed by the next build that starts at least ten
seconds later. An existing index is never written to; any number of processes may have it open.
"""

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from scorejax.bregman.divergences import DIVERGENCES, Divergence, get
from scorejax.bregman.divergences.cauchy import Gauge, PointTuples
from scorejax.bregman.divergences.sided import Sided
from scorejax.bregman.index.ball_tree import Tree
from scorejax.bregman.index.bregman_index import BregmanIndex, Shares
from scorejax.bregman.index.pages import PagedRows, page_layout
from scorejax.files import require_local

FORMAT = 1
META, ROWS = "meta.json", "rows.bin"
_CHUNK = 2**22
_SECONDS_TO_LOCK = 10


def require_free(path: str | os.PathLike) -> pathlib.Path:
    """The path, for an index to be written. Raises: ValueError if it exists or is in a bucket."""
    path = require_local(path, "an index")
    if os.path.lexists(path):
        raise ValueError(f"{path} is there already. Remove it, or name another folder.")
    return path


def save(index: BregmanIndex, path: str | os.PathLike) -> None:
    """Writes an index, or leaves nothing. Raises: ValueError if the path exists; OSError."""
    path = require_free(path)
    with _building(path) as folder:
        for name, array in _arrays(index).items():
            with _written(folder / name) as file:
                np.save(file, array, allow_pickle=False)
        with _written(folder / ROWS) as file:
            _write_rows(file, index.rows, index.page_bytes)
        meta = {**_description(index), "files": _digests(folder)}
        with _written(folder / META) as file:
            file.write(json.dumps({**meta, "sha256": _digest(meta)}, indent=1).encode())
        _flush_folder(folder)
        try:
            os.rename(folder, path)
        except OSError as error:
            if not path.exists():
                raise
            raise ValueError(f"{path} was made by another build meanwhile.") from error
    _flush_folder(path.parent)


def open_index(
    path: str | os.PathLike, *, divergence: Divergence | None = None, verify: bool = True
) -> BregmanIndex:
    """The index in a folder, with its large arrays mapped read-only.

    `divergence` is required for a divergence of the user's. `verify` checks the digest of every
    file.
    Raises: ValueError, naming the file, if one is missing, truncated or changed; ValueError if the
    divergence is missing or another one.
    """
    path = require_local(path, "an index")
    meta = read_meta(path)
    _check_files(path, meta["files"], verify)
    space = Sided(_divergence(meta, divergence), meta["side"])
    load = lambda name, mode="r": np.load(path / name, mmap_mode=mode, allow_pickle=False)
    offsets = np.cumsum(meta["part_sizes"])[:-1]
    gauge = load("gauge.npy", None)
    trees = (Tree(load(f"tree_{i:03d}.npy"), leaves) for i, leaves in enumerate(meta["num_leaves"]))
    return BregmanIndex(
        space=space,
        parts=tuple(np.split(load("parts.npy", None), offsets)),
        gauge=Gauge(meta["gauge"], *gauge),
        trees=tuple(trees),
        leaves=load("leaves.npy"),
        tuples=PointTuples(load("tuples.npy"), load("sizes.npy", None)),
        rows=_map_rows(path / ROWS, meta),
        ids=load("ids.npy"),
        moments=load("moments.npy", None),
        page_bytes=meta["page_bytes"],
        leaf_size=meta["leaf_size"],
        shares=meta["shares"] and Shares(*map(np.array, meta["shares"])),
        path=str(path),
        columns=tuple(meta["columns"]) if meta.get("columns") else None,  # Older ones lack the key.
    )


def read_meta(path: str | os.PathLike) -> dict[str, Any]:
    """The contents of meta.json. Raises: ValueError if it is missing or was changed."""
    file = require_local(path, "an index") / META
    if not file.is_file():
        raise ValueError(f"{path} holds no index: there is no {META}.")
    try:
        meta = json.loads(file.read_bytes())
        digest = meta.pop("sha256")
    except (ValueError, KeyError, AttributeError, TypeError):
        raise ValueError(f"{file} is damaged: it is not what a build wrote.") from None
    if digest != _digest(meta):
        raise ValueError(f"{file} is damaged: it is not what a build wrote.")
    if meta["format"] != FORMAT:
        raise ValueError(f"{file} has format {meta['format']}; this version reads {FORMAT}.")
    return meta


def _arrays(index: BregmanIndex) -> dict[str, np.ndarray]:
    trees = {f"tree_{i:03d}.npy": tree.nodes for i, tree in enumerate(index.trees)}
    return {
        "ids.npy": index.ids,
        "leaves.npy": index.leaves,
        "tuples.npy": index.tuples.values,
        "sizes.npy": index.tuples.sizes,
        "moments.npy": index.moments,
        "gauge.npy": np.stack([index.gauge.origin, index.gauge.anchor]),
        "parts.npy": np.concatenate(index.parts),
        **trees,
    }


def _description(index: BregmanIndex) -> dict[str, Any]:
    divergence = index.space.divergence
    return {
        "format": FORMAT,
        "divergence": divergence.name,
        "options": dict(divergence.options),
        "side": index.space.side,
        "num_points": index.num_points,
        "num_columns": index.num_columns,
        "columns": index.columns and list(index.columns),
        "dtype": index.rows.records.dtype.str,
        "page_bytes": index.page_bytes,
        "leaf_size": index.leaf_size,
        "gauge": index.gauge.name,
        "part_sizes": [len(part) for part in index.parts],
        "num_leaves": [tree.num_leaves for tree in index.trees],
        "shares": index.shares and [np.asarray(field).tolist() for field in index.shares],
    }


def _divergence(meta: dict[str, Any], divergence: Divergence | None) -> Divergence:
    name = meta["divergence"]
    if divergence is not None:
        if divergence.name != name:
            raise ValueError(f"the index is of the divergence {name!r}, not {divergence.name!r}.")
        if (options := dict(divergence.options)) != meta["options"]:
            raise ValueError(
                f"the index is of {name!r} with the options {meta['options']}, not {options}."
            )
        return divergence
    if name not in DIVERGENCES:
        raise ValueError(f"the index is of the divergence {name!r}, of your own: give it as well.")
    return get(name, **meta["options"])


def _write_rows(file, rows: PagedRows, page_bytes: int) -> None:
    # Not through a memory map: if the disk filled up, a signal would kill the process.
    padding = bytes(rows.pages_per_record * page_bytes - rows.records[0].nbytes)
    step = max(1, _CHUNK // max(rows.records[0].nbytes, 1))
    for start in range(0, len(rows.records), step):
        block = np.ascontiguousarray(rows.records[start : start + step])
        if not padding:
            file.write(block.data)
            continue
        for record in block:
            file.write(record.tobytes() + padding)


def _map_rows(path: pathlib.Path, meta: dict[str, Any]) -> PagedRows:
    dtype, num_columns = np.dtype(meta["dtype"]), meta["num_columns"]
    row_bytes = num_columns * dtype.itemsize
    per_record, pages = page_layout(row_bytes, meta["page_bytes"])
    num_records = -(-meta["num_points"] // per_record)
    raw = np.memmap(path, np.uint8, "r", shape=(num_records, pages * meta["page_bytes"]))
    records = raw[:, : per_record * row_bytes].view(dtype)
    records = records.reshape(num_records, per_record, num_columns)
    return PagedRows(records, meta["num_points"], pages)


@contextlib.contextmanager
def _building(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder to be renamed to `path`, locked while its builder runs and removed if that fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path)
    folder = pathlib.Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.building."))
    try:
        with _locked(folder, fcntl.LOCK_EX):
            os.chmod(folder, 0o755)  # mkdtemp makes folders that only their owner can read
            yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


@contextlib.contextmanager
def _locked(folder: pathlib.Path, kind: int) -> Iterator[None]:
    """Holds the lock of a folder. Raises: OSError if another process holds it."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, kind)
        yield
    finally:
        os.close(lock)


def _remove_abandoned(path: pathlib.Path) -> None:
    """Removes the folders of killed builds of this index, whose locks nobody holds."""
    for folder in path.parent.glob(f".{glob.escape(path.name)}.building.*"):
        with contextlib.suppress(OSError):
            # A build that has just begun may not have its lock yet.
            if time.time() - folder.stat().st_mtime < _SECONDS_TO_LOCK:
                continue
            with _locked(folder, fcntl.LOCK_EX | fcntl.LOCK_NB):
                shutil.rmtree(folder)


@contextlib.contextmanager
def _written(path: pathlib.Path):
    """A file for writing that is flushed to the disk when the block ends."""
    with open(path, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(path: pathlib.Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _digests(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
    files = sorted(folder.iterdir())
    return {f.name: {"bytes": f.stat().st_size, "sha256": _file_digest(f)} for f in files}


def _check_files(path: pathlib.Path, files: dict[str, dict[str, Any]], verify: bool) -> None:
    for name, recorded in files.items():
        file = path / name
        if not file.is_file():
            raise ValueError(f"{file} is missing: build the index anew.")
        if (size := file.stat().st_size) != recorded["bytes"]:
            raise ValueError(
                f"{file} is damaged: it has {size} bytes, not {recorded['bytes']}. Build it anew."
            )
        if verify and _file_digest(file) != recorded["sha256"]:
            raise ValueError(f"{file} is damaged: its SHA-256 is another. Build it anew.")


def _file_digest(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(meta: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()
