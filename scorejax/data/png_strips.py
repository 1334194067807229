# SPDX-License-Identifier: Apache-2.0
"""Reads and writes PNG files in strips of rows, so that no whole picture is in memory.

Pillow decodes a picture as a whole. A strip of a PNG becomes a small PNG of its own, which Pillow
decodes, if the row above it is put first: no filter of the format looks further up.
"""

import io
import os
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import DTypeLike
from PIL import Image

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _RGB, _UP = 0, 2, 2
_CHANNELS = {_GREY: 1, _RGB: 3, 3: 1, 4: 2, 6: 4}
"""Bytes of a pixel with 8 bits a channel, by the colour type."""
_PIECE = 2**20


class _Header(NamedTuple):
    """The fields of IHDR."""

    width: int
    height: int
    bits: int
    colour: int
    compression: int
    filtering: int
    interlace: int


def read_strips(path: str | os.PathLike, num_rows: int) -> Iterator[Image.Image] | None:
    """Yields strips of `num_rows` rows, the last one of fewer, from top to bottom.

    None if the file cannot be read so: its rows are interlaced, or a channel has not 8 bits.
    Raises: OSError, as the strips are read, for a damaged file.
    """
    with open(path, "rb") as file:
        header = _read_header(file)
    if header is None or header.bits != 8 or header.interlace:
        return None
    return _decoded_strips(path, header, num_rows)


def write_strips(
    file: BinaryIO, pixels: np.ndarray, num_rows: int, dtype: DTypeLike = np.uint8
) -> None:
    """Writes colours (h, w, 3) or grey levels (h, w) as uint8 or uint16, `num_rows` at a time."""
    height, width, stored = *pixels.shape[:2], np.dtype(dtype).newbyteorder(">")
    colour = _RGB if pixels.ndim == 3 else _GREY
    header = _Header(width, height, 8 * stored.itemsize, colour, 0, 0, 0)
    file.write(_SIGNATURE + _chunk(b"IHDR", struct.pack(">IIBBBBB", *header)))
    deflate, above = zlib.compressobj(), 0
    for top in range(0, height, num_rows):
        strip = pixels[top : top + num_rows].astype(stored, order="C")
        rows = strip.view(np.uint8).reshape(len(strip), -1)
        filtered = np.empty((len(rows), 1 + rows.shape[1]), np.uint8)
        filtered[:, 0] = _UP
        filtered[0, 1:], filtered[1:, 1:] = rows[0] - above, rows[1:] - rows[:-1]
        above = rows[-1]
        file.write(_chunk(b"IDAT", deflate.compress(filtered.tobytes())))
    file.write(_chunk(b"IDAT", deflate.flush()) + _chunk(b"IEND", b""))


def _decoded_strips(
    path: str | os.PathLike, header: _Header, num_rows: int
) -> Iterator[Image.Image]:
    width, above, palette = header.width, b"", b""
    length = 1 + width * _CHANNELS[header.colour]
    with open(path, "rb") as file:
        _read_header(file)
        inflated, left = bytearray(), header.height
        for kind, data in _pieces(file, num_rows * length):
            if kind != b"IDAT":
                palette += _chunk(kind, data)
                continue
            inflated += data
            while left and len(inflated) >= (size := min(num_rows, left) * length):
                raw, rows = bytes(inflated[:size]), min(num_rows, left)
                del inflated[:size]
                strip = _decode(header, palette, above + raw, rows + bool(above))
                above = b"\0" + strip.crop((0, strip.height - 1, width, strip.height)).tobytes()
                left -= rows
                yield strip.crop((0, strip.height - rows, width, strip.height))
    if left:
        raise OSError(f"image file is truncated: {left} of {header.height} rows are missing")


def _decode(header: _Header, palette: bytes, raw: bytes, num_rows: int) -> Image.Image:
    """Decodes filtered rows, by a PNG in memory that stores them without compression."""
    ihdr = struct.pack(">IIBBBBB", *header._replace(height=num_rows))
    parts = _chunk(b"IHDR", ihdr), palette, _chunk(b"IDAT", zlib.compress(raw, 0))
    with Image.open(io.BytesIO(_SIGNATURE + b"".join(parts) + _chunk(b"IEND", b""))) as strip:
        strip.load()
        return strip


def _pieces(file: BinaryIO, most: int) -> Iterator[tuple[bytes, bytes]]:
    """Yields the palette's chunks, and the inflated data in pieces of at most `most` bytes."""
    inflate = zlib.decompressobj()
    while True:
        start = file.read(8)
        if len(start) < 8 or start[4:] == b"IEND":
            return
        length, kind = struct.unpack(">I4s", start)
        checksum, kept = zlib.crc32(kind), b""
        while length:
            data = _exactly(file, min(length, _PIECE))
            checksum, length = zlib.crc32(data, checksum), length - len(data)
            if kind in (b"PLTE", b"tRNS"):
                kept += data
            while kind == b"IDAT" and data:
                yield kind, inflate.decompress(data, most)
                data = inflate.unconsumed_tail
        if checksum != struct.unpack(">I", _exactly(file, 4))[0]:
            raise OSError(f"broken PNG file (chunk {kind.decode('ascii', 'replace')!r})")
        if kept:
            yield kind, kept


def _read_header(file: BinaryIO) -> _Header | None:
    if file.read(16) != _SIGNATURE + struct.pack(">I4s", 13, b"IHDR"):
        return None
    header = _Header(*struct.unpack(">IIBBBBB", _exactly(file, 13)))
    _exactly(file, 4)
    return header


def _exactly(file: BinaryIO, num: int) -> bytes:
    data = file.read(num)
    if len(data) < num:
        raise OSError("image file is truncated")
    return data


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I4s", len(data), kind) + data + struct.pack(">I", zlib.crc32(kind + data))
