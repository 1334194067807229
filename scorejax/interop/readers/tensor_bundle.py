# SPDX-License-Identifier: Apache-2.0
"""Reads files of `tf.train.Checkpoint` as NumPy arrays, without TensorFlow.

A checkpoint is an index, `<prefix>.index`, and shards with the numbers, such as
`<prefix>.data-00000-of-00001`. The index is a table whose keys are the names of tensors; a value is
a protocol buffer with type, shape, place and checksum. All checksums are compared.
Source: tensorflow/core/protobuf/tensor_bundle.proto.
"""

import math
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from scorejax.interop.readers.crc32c import masked_crc32c
from scorejax.interop.readers.leveldb_table import read_table, read_varint
from scorejax.interop.readers.torch_save import numbers

MAX_INDEX_SIZE = 64 * 2**20
"""Largest size of an index in bytes; it holds names and shapes only."""
_DTYPES = {
    1: "<f4", 2: "<f8", 3: "<i4", 4: "u1", 5: "<i2", 6: "i1", 9: "<i8", 10: "?", 14: "bf16",
    17: "<u2", 19: "<f2", 22: "<u4", 23: "<u8",
}  # fmt: skip
_VARIABLE = re.compile(r"(model|model_ema)/net/(.+)/\.ATTRIBUTES/VARIABLE_VALUE")
_SHARD = re.compile(r"\.data-\d{5}-of-\d{5}$")
_STEP = "i_iter_var/.ATTRIBUTES/VARIABLE_VALUE"


def index_of(path: pathlib.Path) -> pathlib.Path:
    """The index of the checkpoint, if `path` is its prefix or a shard; otherwise `path`."""
    index = path.parent / f"{_SHARD.sub('', path.name)}.index"
    named = not path.is_file() or _SHARD.search(path.name)
    return index if named and index.is_file() else path


def read_tensorflow(path: pathlib.Path) -> dict[str, Any]:
    """Weights `raw` and `averaged` by name, and the `step`, of a training state.

    The state is that of diffusion recovery likelihood: `model` and `model_ema`, each with its
    `net`. Tensors of the optimiser are not read, nor the second kernels `layer/W`, which nothing
    uses. Raises: as `read_bundle`.
    """
    weights: dict[str, dict[str, np.ndarray]] = {"model": {}, "model_ema": {}}
    unused = ("/.OPTIMIZER_SLOT/", "/layer/W/")
    match = lambda name: None if any(u in name for u in unused) else _VARIABLE.fullmatch(name)
    arrays = read_bundle(path, lambda name: name == _STEP or match(name) is not None)
    step = arrays.pop(_STEP, 0)
    for name, array in arrays.items():
        kind, short = match(name).groups()
        weights[kind][short] = array
    if not arrays:
        raise ValueError("a TensorFlow checkpoint without variables model/net/... or model_ema/net")
    return {"raw": weights["model"] or None, "averaged": weights["model_ema"] or None, "step": step}


class Entry(NamedTuple):
    """Type, shape and place of a tensor, and the checksum of its bytes."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    checksum: int


def read_bundle(path: pathlib.Path, wanted: Callable[[str], bool]) -> dict[str, np.ndarray]:
    """The wanted tensors of the checkpoint whose index is at `path`, by name; bfloat16 as float32.

    Raises: FileNotFoundError if a shard is not beside the index; ValueError with one line if a file
    is truncated or damaged, or a tensor's type is not one of numbers.
    """
    entries, num_shards = _read_index(path)
    entries = {name: entry for name, entry in entries.items() if wanted(name)}
    prefix, arrays = path.name.removesuffix(".index"), {}
    for shard in sorted({entry.shard for entry in entries.values()}):
        file_path = path.with_name(f"{prefix}.data-{shard:05d}-of-{num_shards:05d}")
        if shard >= num_shards or not file_path.is_file():
            raise FileNotFoundError(f"no file {file_path}, which {path.name} needs beside it.")
        within = {name: entry for name, entry in entries.items() if entry.shard == shard}
        size = file_path.stat().st_size
        # Tensors may not overlap, so together they fit the file.
        if sum(entry.size for entry in within.values()) > size:
            raise ValueError(
                f"its tensors are larger than {file_path.name}, which has {size} bytes."
            )
        with file_path.open("rb") as file:
            for name, entry in within.items():
                if entry.offset + entry.size > size:
                    raise ValueError(
                        f"tensor {name[:80]} lies outside {file_path.name}, which may be truncated."
                    )
                file.seek(entry.offset)
                arrays[name] = _tensor(name, entry, file.read(entry.size))
    return arrays


def _tensor(name: str, entry: Entry, data: bytes) -> np.ndarray:
    if entry.dtype not in _DTYPES:
        raise ValueError(
            f"tensor {name[:80]} is of type {entry.dtype}, which is not one of numbers."
        )
    try:
        array = numbers(data, _DTYPES[entry.dtype], math.prod(entry.shape)).reshape(entry.shape)
    except ValueError as error:
        raise ValueError(f"tensor {name[:80]}: {error}.") from None
    if masked_crc32c(data) != entry.checksum:
        raise ValueError(f"tensor {name[:80]} is damaged: its checksum differs.")
    return array


def _read_index(path: pathlib.Path) -> tuple[dict[str, Entry], int]:
    """All entries by name, and the number of shards."""
    size = path.stat().st_size
    if size > MAX_INDEX_SIZE:
        raise ValueError(f"an index of {size} bytes; they have at most {MAX_INDEX_SIZE}.")
    data = path.read_bytes()
    try:
        return _parse_index(data)
    except (IndexError, TypeError, UnicodeDecodeError):
        raise ValueError("a damaged index of a TensorFlow checkpoint.") from None


def _parse_index(data: bytes) -> tuple[dict[str, Entry], int]:
    entries, num_shards = {}, 0
    for key, value in read_table(data):
        if key:
            entries[key.decode()] = _entry(value)
            continue
        header = dict(_fields(value))
        num_shards = header.get(1, 0)
        if header.get(2, 0):
            raise ValueError("a checkpoint of a big-endian machine.")
    if not 0 < num_shards < 100_000:
        raise ValueError(f"a damaged index: {num_shards} shards.")
    return entries, num_shards


def _entry(value: bytes) -> Entry:
    fields, shape = {}, ()
    for number, content in _fields(value):
        if number == 7:
            raise ValueError("a tensor in slices, as partitioned variables are stored.")
        if number == 2:
            sizes = (dict(_fields(dim)).get(1, 0) for n, dim in _fields(content) if n == 2)
            shape = tuple(sizes)
        else:
            fields[number] = content
    whole = [fields.get(number, 0) for number in (1, 3, 4, 5, 6)]
    if len(shape) > 8 or any(type(n) is not int or n >= 2**63 for n in (*shape, *whole)):
        raise ValueError(f"a tensor of impossible shape {str(shape)[:80]} or place.")
    return Entry(whole[0], shape, *whole[1:])


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """(number, whole number or bytes) of each field of a protocol buffer."""
    at = 0
    while at < len(message):
        tag, at = read_varint(message, at)
        kind = tag & 7
        if kind == 0:
            value, at = read_varint(message, at)
            yield tag >> 3, value
            continue
        length, at = read_varint(message, at) if kind == 2 else ({1: 8, 5: 4}.get(kind, -1), at)
        if length < 0 or at + length > len(message):
            raise ValueError("a damaged index: a field is longer than its message.")
        content = message[at : at + length]
        yield tag >> 3, content if kind == 2 else int.from_bytes(content, "little")
        at += length
