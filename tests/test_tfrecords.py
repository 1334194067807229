# SPDX-License-Identifier: Apache-2.0
"""TFRecord files of images are read as they were written, and damaged ones named."""

import struct

import numpy as np
import pytest

from scorejax.data import images, tfrecords
from scorejax.data.view import ImageView


def field(number, content):
    """A protocol-buffer field that holds bytes, of fewer than 2^14."""
    length = len(content)
    size = bytes([length]) if length < 128 else bytes([length & 127 | 128, length >> 7])
    return bytes([number << 3 | 2]) + size + content


def example(**features):
    """A tf.Example byte by byte: a map from names to lists of bytes or of integers."""
    entries = b""
    for name, value in features.items():
        kind = (
            field(1, field(1, value)) if isinstance(value, bytes) else field(3, field(1, value[0]))
        )
        entries += field(1, field(1, name.encode()) + field(2, kind))
    return field(1, entries)


def tfrecord(*examples):
    framed = [struct.pack("<Q", len(e)) + b"crc." + e + b"crc." for e in examples]
    return b"".join(framed)


def picture(seed, size=4):
    return np.random.default_rng(seed).integers(0, 256, (3, size, size)).astype(np.uint8)


def test_tfrecords_are_read_as_they_were_written(tmp_path):
    (tmp_path / "ffhq").mkdir()
    pictures = [picture(seed) for seed in range(5)]
    content = tfrecord(*(example(shape=(bytes([3, 4, 4]),), data=p.tobytes()) for p in pictures))
    (tmp_path / "ffhq" / "ffhq-r02.tfrecords").write_bytes(content)
    rows = images.records("ffhq", "train", image_size=4, data_dir=str(tmp_path))
    assert len(rows) == 5
    for index in (3, 0, 4):
        expected = pictures[index].transpose(1, 2, 0)
        np.testing.assert_array_equal(rows[index]["image"], expected)
    # A set that is not kept in memory is read by rows, as an array would be.
    streamed = ImageView("ffhq", 4, data_dir=str(tmp_path)).streamed("train")
    wanted = np.stack([pictures[index].transpose(1, 2, 0) for index in (4, 1)])
    np.testing.assert_array_equal(streamed[np.array([4, 1])], wanted)
    assert len(streamed) == 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (tfrecord(example(data=b"abc"))[:-1], "damaged or not a TFRecord file: record 0"),
        (b"\xff" * 40, "damaged or not a TFRecord file"),
        (b"short", "damaged or not a TFRecord file"),
        (
            tfrecord(b"\xff\xff\xff"),
            "record 0 of .* is not an image: its bytes are not a tf.Example",
        ),
        (tfrecord(example(data=b"abc")), r"one byte per entry of its shape; got 3 and \(\)"),
        (tfrecord(example(shape=(bytes([3, 4, 4]),), data=b"abc")), r"got 3 and \(3, 4, 4\)"),
    ],
)
def test_a_tfrecord_file_that_is_none_is_named_in_one_line(content, message, tmp_path):
    path = tmp_path / "broken.tfrecords"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as raised:
        tfrecords.TFRecordImages(path)[0]
    assert "\n" not in str(raised.value)


def test_tfrecords_come_in_powers_of_two(tmp_path):
    with pytest.raises(ValueError, match="got image_size=20, try 16"):
        images.records("celebahq", "train", image_size=20, data_dir=str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"celebahq-r08.tfrecords; make it with"):
        images.records("celebahq", "train", data_dir=str(tmp_path))
