# SPDX-License-Identifier: Apache-2.0
"""Reads tables in LevelDB's format: sorted keys and their values, in blocks with checksums.

The file ends with the place of a block that lists the places of the others.
Source: tensorflow/core/lib/io/table_format.txt.
"""

from collections.abc import Iterator

from scorejax.interop.readers.crc32c import masked_crc32c

MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
"""The last bytes of a table."""
MAX_KEY = 4096
"""Longest key in bytes. Keys share beginnings, so without a limit they could fill the memory."""
MAX_KEYS = 64
"""Longest sum of all keys, in lengths of the file: those of real files share beginnings too."""
_FOOTER, _TRAILER = 48, 5


def read_table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yields the keys and values of a table.

    Raises: ValueError with one line, or IndexError, if it is truncated, damaged or compressed.
    """
    footer, total, unpacked = data[-_FOOTER:], 0, 0
    index_of_keys = _handle(footer, _handle(footer, 0)[2])
    for _, value in _items(_block(data, *index_of_keys[:2])):
        offset, size, _ = _handle(value, 0)
        total += size
        if total > len(data):
            raise ValueError("a damaged index: its blocks are larger than the file.")
        for key, item in _items(_block(data, offset, size)):
            unpacked += len(key)
            if unpacked > MAX_KEYS * len(data):
                raise ValueError("a damaged index: its keys are far longer than the file.")
            yield key, item


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """A whole number below 2^70 in groups of seven bits, and the place after it.

    Raises: IndexError beyond the end; ValueError if the number has no end.
    """
    value = 0
    for shift in range(0, 64, 7):
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
    raise ValueError("a damaged index: a number of more than 64 bits.")


def _handle(data: bytes, at: int) -> tuple[int, int, int]:
    """Offset and size of a block, and the place after them."""
    offset, at = read_varint(data, at)
    size, at = read_varint(data, at)
    return offset, size, at


def _block(data: bytes, offset: int, size: int) -> bytes:
    """The contents of a block. Raises: ValueError if it lies outside, is damaged or compressed."""
    end = offset + size
    if end + _TRAILER > len(data) - _FOOTER:
        raise ValueError("a damaged index: a block lies outside the file.")
    if masked_crc32c(data[offset : end + 1]) != int.from_bytes(data[end + 1 : end + 5], "little"):
        raise ValueError("a damaged index: the checksum of a block differs.")
    if data[end]:
        raise ValueError("an index with compressed blocks, which TensorFlow does not write.")
    return data[offset:end]


def _items(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a block; each key continues a beginning of the previous one."""
    num_restarts = int.from_bytes(block[-4:], "little")
    end, at, key = len(block) - 4 * (num_restarts + 1), 0, b""
    if end < 0:
        raise ValueError("a damaged index: a block is shorter than its list of restarts.")
    while at < end:
        shared, at = read_varint(block, at)
        rest, at = read_varint(block, at)
        length, at = read_varint(block, at)
        key = key[:shared] + block[at : at + rest]
        if len(key) != shared + rest or len(key) > MAX_KEY or at + rest + length > end:
            raise ValueError("a damaged index: an entry is longer than its block.")
        yield key, block[at + rest : at + rest + length]
        at += rest + length
