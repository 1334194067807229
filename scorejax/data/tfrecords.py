# SPDX-License-Identifier: Apache-2.0
"""Reads the TFRecord image files of ProgressiveGAN and StyleGAN without TensorFlow.

A file is a sequence of records: length (8 bytes, little endian), checksum of the length (4 bytes),
a serialised tf.Example, checksum of the example (4 bytes). Checksums are not verified. The example
has `shape`, (channels, height, width), and `data`, the bytes of the pixels.
Source: Karras et al. 2018, arXiv:1710.10196 (its data sets).
"""

import os
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

HEADER, FOOTER = 12, 4


class TFRecordImages(Sequence):
    """Random access to {"image": uint8 (h, w, c)}; opening the file reads record lengths only.

    Raises: ValueError, one line, if the file ends within a record, or an indexed record is not an
    image.
    """

    def __init__(self, path: str | os.PathLike):
        self._path = pathlib.Path(path)
        self._spans = _spans(self._path)

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index: int) -> dict[str, UInt8[np.ndarray, "h w c"]]:
        start, length = self._spans[index]
        with self._path.open("rb") as file:
            file.seek(start)
            content = file.read(length)
        try:
            return {"image": _decode(content)}
        except ValueError as error:
            raise ValueError(f"record {index} of {self._path} is not an image: {error}") from None


def _spans(path: pathlib.Path) -> list[tuple[int, int]]:
    """Start and length in bytes of each example."""
    size, position, spans = path.stat().st_size, 0, []
    with path.open("rb") as file:
        while position < size:
            file.seek(position)
            header = file.read(HEADER)
            length = int.from_bytes(header[:8], "little")
            end = position + HEADER + length + FOOTER
            if len(header) < HEADER or end > size:
                raise ValueError(
                    f"{path} is damaged or not a TFRecord file: record {len(spans)} would end at "
                    f"byte {end} of {size}"
                )
            spans.append((position + HEADER, length))
            position = end
    return spans


def _decode(content: bytes) -> UInt8[np.ndarray, "h w c"]:
    # The protocol buffers of tensorflow-datasets need no TensorFlow.
    from google.protobuf.message import DecodeError
    from tensorflow_datasets.proto import tf_example_generated_pb2

    example = tf_example_generated_pb2.Example()
    try:
        example.ParseFromString(content)
    except DecodeError:
        raise ValueError("its bytes are not a tf.Example") from None
    features = example.features.feature
    shape = tuple(features["shape"].int64_list.value)
    data = b"".join(features["data"].bytes_list.value)
    if len(shape) != 3 or int(np.prod(shape)) != len(data):
        raise ValueError(f"it needs one byte per entry of its shape; got {len(data)} and {shape}")
    return np.frombuffer(data, np.uint8).reshape(shape).transpose(1, 2, 0)
