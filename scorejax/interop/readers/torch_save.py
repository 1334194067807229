# SPDX-License-Identifier: Apache-2.0
"""Reads files of `torch.save` as NumPy arrays, without PyTorch and without executing anything.

The zip format holds a pickle, data.pkl, which names storages, and each storage as a member of its
own. The format before PyTorch 1.6 is a sequence of pickles followed by the storages; a tensor that
is pickled by itself carries its storage in that form. Tensors are read on demand, so that the
optimiser in a checkpoint costs nothing.
"""

import io
import math
import mmap
import struct
import zipfile
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO

import numpy as np

from scorejax.interop.readers.inert_pickle import Global, Record, read_pickle, require_plain

MAX_PICKLE_SIZE = 64 * 2**20
"""Largest size of data.pkl in bytes; it holds names and shapes only."""
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_DTYPES = {
    "DoubleStorage": "<f8", "FloatStorage": "<f4", "HalfStorage": "<f2", "BFloat16Storage": "bf16",
    "LongStorage": "<i8", "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "i1",
    "ByteStorage": "u1", "BoolStorage": "?",
}  # fmt: skip
_NUMPY = (
    "numpy.dtype",
    "numpy.core.multiarray._reconstruct", "numpy.core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct", "numpy._core.multiarray.scalar",
)  # fmt: skip
_ZIP_ERRORS = (
    zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, OverflowError, EOFError,
    OSError, struct.error,
)  # fmt: skip


class Storage:
    """A flat array of `num` numbers of one type, read from its file on demand."""

    def __init__(self, dtype: str, num: int, read: Callable[[], bytes]) -> None:
        self.dtype, self.num, self._read = dtype, num, read

    def array(self) -> np.ndarray:
        """The numbers (num,). Raises: ValueError if the file holds fewer or more."""
        return numbers(self._read(), self.dtype, self.num)


class Tensor:
    """A view of a storage; offset and strides are in numbers, not bytes."""

    def __init__(self, storage: Storage, offset: int, shape: tuple, strides: tuple, *_: Any):
        whole = [offset, *shape, *strides]
        if not isinstance(storage, Storage) or len(shape) != len(strides):
            raise ValueError("a tensor without a storage, or with other strides than axes")
        if len(shape) > 8 or any(type(value) is not int or value < 0 for value in whole):
            raise ValueError(f"a tensor of impossible shape {str(shape)[:80]}")
        last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        # The numbers of a parameter do not overlap. Otherwise a stride of 0 could turn a few bytes
        # into an array of any size.
        if math.prod(shape) > storage.num or (math.prod(shape) and last >= storage.num):
            raise ValueError(f"a tensor of shape {shape} in a storage of {storage.num} numbers")
        self._storage, self._offset, self.shape, self._strides = storage, offset, shape, strides

    def array(self) -> np.ndarray:
        """The tensor (*shape), bfloat16 as float32. Raises: ValueError for a damaged storage."""
        data = self._storage.array()[self._offset :]
        strides = [stride * data.itemsize for stride in self._strides]
        view = np.lib.stride_tricks.as_strided(data, self.shape, strides, writeable=False)
        return np.ascontiguousarray(view).reshape(self.shape)


def numbers(data: bytes, dtype: str, num: int) -> np.ndarray:
    """The numbers (num,) in `data`; "bf16" becomes float32. Raises: ValueError for a wrong size."""
    stored = _stored(dtype)
    if len(data) != num * stored.itemsize:
        raise ValueError(f"{len(data)} bytes where {num} numbers of {stored} should be")
    values = np.frombuffer(data, stored)
    return (values.astype(np.uint32) << 16).view(np.float32) if dtype == "bf16" else values


def read_torch_zip(file: BinaryIO, size: int) -> Any:
    """Reads the object that `torch.save` wrote to a zip file of `size` bytes, with `Tensor` leaves.

    Raises: ValueError with one line if the file is truncated, damaged or not of this kind.
    """
    try:
        archive = zipfile.ZipFile(file)
        _require_honest(archive.infolist(), size)
    except _ZIP_ERRORS as error:
        raise ValueError(f"a truncated or damaged zip file ({error}).") from None
    names = [name for name in archive.namelist() if name.endswith("data.pkl")]
    if len(names) != 1:
        raise ValueError(f"a zip file with {len(names)} members data.pkl; a checkpoint has one.")
    folder = names[0].removesuffix("data.pkl")
    if archive.getinfo(names[0]).file_size > MAX_PICKLE_SIZE:
        raise ValueError(f"its data.pkl has more than {MAX_PICKLE_SIZE} bytes.")
    order = f"{folder}byteorder"
    if order in archive.namelist() and _member(archive, order) != b"little":
        raise ValueError("it was written on a big-endian machine.")

    def storage(identifier: Any) -> Storage:
        dtype, key, num = _parse_identifier(identifier)
        return Storage(dtype, num, lambda: _member(archive, f"{folder}data/{key}"))

    return read_pickle(io.BytesIO(_member(archive, names[0])), TORCH, persistent=storage)


def read_torch_legacy(data: bytes | mmap.mmap) -> Any:
    """Reads the object that `torch.save` wrote before it wrote zip files, with `Tensor` leaves.

    Raises: ValueError with one line if it is truncated, damaged or not of this kind.
    """
    stream = io.BytesIO(data) if isinstance(data, bytes) else data
    magic, protocol, system = (read_pickle(stream, {}) for _ in range(3))
    if magic != LEGACY_MAGIC or protocol != _LEGACY_PROTOCOL or not isinstance(system, dict):
        raise ValueError("not a file of torch.save.")
    if not system.get("little_endian", True):
        raise ValueError("it was written on a big-endian machine.")
    storages: dict[str, Storage] = {}
    places: dict[str, slice] = {}

    def storage(identifier: Any) -> Storage:
        dtype, key, num = _parse_identifier(identifier)
        return storages.setdefault(key, Storage(dtype, num, lambda: data[places[key]]))

    value = read_pickle(stream, TORCH, persistent=storage)
    keys = read_pickle(stream, {})
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(storages):
        raise ValueError("its list of storages is not that of its tensors.")
    for key in keys:
        num, start = int.from_bytes(stream.read(8), "little"), stream.tell()
        places[key] = slice(start, start + num * _stored(storages[key].dtype).itemsize)
        if num != storages[key].num or places[key].stop > len(data):
            raise ValueError(f"a truncated file: storage {key} is not whole.")
        stream.seek(places[key].stop)
    return value


def numpy_value(record: Record) -> np.ndarray:
    """A pickled NumPy array or scalar of numbers. Raises: ValueError for any other record."""
    try:
        if record.name.endswith("scalar"):
            dtype, data = record.args
            shape, fortran = (), False
        else:
            _, shape, dtype, fortran, data = record.state
        if not isinstance(data, bytes):
            data = data.encode("latin-1")  # as Python 2 stored them
        order = dtype.state[1] if dtype.state else "="
        code = f"{order if order in '<>' else '='}{dtype.args[0]}"
        if np.dtype(code).kind not in "fiub":
            raise TypeError(code)
        values = numbers(data, code, math.prod(shape))
        return values.reshape(shape, order="F" if fortran else "C")
    except (AttributeError, IndexError, TypeError) as error:
        raise ValueError(f"a damaged NumPy array ({error}).") from None


def _require_honest(members: Iterable[zipfile.ZipInfo], size: int) -> None:
    """Raises BadZipFile if members are compressed, or state impossible sizes."""
    members = list(members)
    for member in members:
        # torch.save does not compress; a compressed member could grow without bound.
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise zipfile.BadZipFile(f"{member.filename[:80]} is compressed or encrypted")
        if member.file_size != member.compress_size:
            raise zipfile.BadZipFile(f"{member.filename[:80]} has two sizes")
    if sum(member.file_size for member in members) > size:
        raise zipfile.BadZipFile("its members are larger than the file")


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    try:
        return archive.read(name)  # checks the checksum
    except KeyError:
        raise ValueError(f"the zip file lacks {name[:80]}.") from None
    except _ZIP_ERRORS as error:
        raise ValueError(f"a truncated or damaged zip file ({error}).") from None


def _parse_identifier(identifier: Any) -> tuple[str, str, int]:
    """Type, key and number of entries of a storage."""
    if not isinstance(identifier, tuple) or len(identifier) < 5 or identifier[0] != "storage":
        raise ValueError("a reference that is not one to a storage")
    kind, key, _, num = identifier[1:5]
    if len(identifier) > 5 and identifier[5] is not None:
        raise ValueError("a storage that is a view of another")
    name = kind.name.removeprefix("torch.storage.") if isinstance(kind, Global) else ""
    name = name.removeprefix("torch.").replace("UntypedStorage", "ByteStorage")
    if name not in _DTYPES:
        raise ValueError(f"a storage of type {str(kind)[:80]}")
    if not isinstance(key, str) or type(num) is not int or num < 0:
        raise ValueError("a storage without key or size")
    return _DTYPES[name], key, num


def _stored(dtype: str) -> np.dtype:
    return np.dtype("<u2" if dtype == "bf16" else dtype)


def _ordered_dict(pairs: Iterable = ()) -> dict:
    return {require_plain(key): value for key, value in pairs}


def _set(values: Iterable = ()) -> set:
    return set(map(require_plain, values))


def _numpy_record(name: str) -> Callable[..., Record]:
    return lambda *args: Record(name, args)


TORCH: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered_dict,
    "builtins.set": _set,
    "__builtin__.set": _set,
    "torch.Size": tuple,
    "torch.device": lambda *_: None,
    "torch._utils._rebuild_tensor_v2": Tensor,
    "torch._utils._rebuild_tensor": Tensor,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    **{name: _numpy_record(name) for name in _NUMPY},
}
"""Name that a PyTorch checkpoint may hold -> function that makes its value."""


def pickled_constructors() -> dict[str, Callable[..., Any]]:
    """`TORCH` for a plain pickle, whose tensors carry their storages as bytes."""
    read: dict[int, tuple[bytes, Storage]] = {}

    def storage(data: bytes) -> Storage:
        # Each only once; otherwise a few bytes could ask for the same work endlessly.
        if id(data) not in read:
            if not isinstance(data, bytes):
                raise TypeError("no bytes in a storage")
            read[id(data)] = data, read_torch_legacy(data)
        return read[id(data)][1]

    return TORCH | {"torch.storage._load_from_bytes": storage}
