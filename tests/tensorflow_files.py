# SPDX-License-Identifier: Apache-2.0
"""Writes checkpoints as TensorFlow does, byte by byte, and so hostile ones too.

Written from the description of the formats, with nothing of the reader's.
"""

import pathlib
import struct

import numpy as np

MAGIC = 0xDB4775248B80FB57
DTYPES = {"float32": 1, "float64": 2, "int32": 3, "int64": 9, "float16": 19}


def crc32c(data: bytes) -> int:
    """Bit by bit."""
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = (register >> 1) ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


def masked(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def varint(value: int) -> bytes:
    groups = []
    while value >= 0x80:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    return varint(number << 3) + varint(value)


def entry(array: np.ndarray, offset: int, shard: int = 0, **changes) -> bytes:
    """The description of a tensor; `changes` replace its true dtype, shape, size or checksum."""
    data = array.tobytes()
    dims = b"".join(field(2, field(1, n)) for n in changes.get("shape", array.shape))
    message = field(1, changes.get("dtype", DTYPES[array.dtype.name])) + field(2, dims)
    message += field(3, shard) if shard else b""
    message += field(4, offset) if offset else b""
    checksum = changes.get("checksum", masked(data))
    return message + field(5, changes.get("size", len(data))) + varint(6 << 3 | 5) + checksum


def block(items: list[tuple[bytes, bytes]], *, interval: int = 16, kind: int = 0) -> bytes:
    """A block of a table with its trailer; every `interval`-th key is written in full."""
    out, restarts, previous = b"", [], b""
    for i, (key, value) in enumerate(items):
        shared = 0
        if i % interval:
            while shared < min(len(key), len(previous)) and key[shared] == previous[shared]:
                shared += 1
        else:
            restarts.append(len(out))
        out += varint(shared) + varint(len(key) - shared) + varint(len(value))
        out, previous = out + key[shared:] + value, key
    out += b"".join(struct.pack("<I", at) for at in restarts) + struct.pack("<I", len(restarts))
    out += bytes([kind])
    return out + masked(out)


def table(blocks: list[bytes], last_keys: list[bytes]) -> bytes:
    """A table of finished blocks, each under a key not below its own last one."""
    out, handles = b"", []
    for content in [*blocks, block([])]:
        handles.append(varint(len(out)) + varint(len(content) - 5))
        out += content
    index = block(list(zip(last_keys, handles, strict=False)), interval=1)
    footer = handles[-1] + varint(len(out)) + varint(len(index) - 5)
    return out + index + footer.ljust(40, b"\0") + struct.pack("<Q", MAGIC)


def header(num_shards: int, endianness: int = 0) -> bytes:
    message = field(1, num_shards) + (field(2, endianness) if endianness else b"")
    return message + field(3, field(1, 1))


def write_bundle(
    prefix: pathlib.Path, tensors: dict[str, np.ndarray], *, shards: int = 1, per_block: int = 40
) -> pathlib.Path:
    """Writes index and shards, the tensors dealt out over the shards. Returns the index."""
    items, data = [(b"", header(shards))], [b""] * shards
    for i, name in enumerate(sorted(tensors, key=str.encode)):
        shard = i % shards
        items.append((name.encode(), entry(tensors[name], len(data[shard]), shard)))
        data[shard] += tensors[name].tobytes()
    for shard, content in enumerate(data):
        path = prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{shards:05d}")
        path.write_bytes(content)
    parts = [items[i : i + per_block] for i in range(0, len(items), per_block)]
    index = prefix.with_name(f"{prefix.name}.index")
    index.write_bytes(table([block(part) for part in parts], [part[-1][0] for part in parts]))
    return index
