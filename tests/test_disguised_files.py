# SPDX-License-Identifier: Apache-2.0
"""A pointer of Git LFS, or a page of HTML, in place of a file is named as such by every reader."""

import pytest

from scorejax.bregman.table_rows import read_rows
from scorejax.data import picture_files
from scorejax.evaluate import frechet
from scorejax.files import disguise
from scorejax.interop import read_checkpoint
from scorejax.interop.networks.inception import load_inception

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 132735\n"
PAGE = b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>\n"
READERS = {
    "weights.pth": read_checkpoint,
    "weights.safetensors": load_inception,
    "statistics.npz": frechet.load_statistics,
    "picture.png": picture_files.load_image,
    "mask.png": picture_files.load_known,
    "points.npy": lambda path: read_rows(str(path), flag="points"),
    "points.parquet": lambda path: read_rows(str(path), flag="points"),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    ("content", "words"), [(POINTER, "a pointer of Git LFS"), (PAGE, "a page of HTML")]
)
def test_a_reader_says_what_the_file_is(content, words, name, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{words}, not the file itself") as raised:
        READERS[name](tmp_path / name)
    assert str(tmp_path / name) in str(raised.value) and "\n" not in str(raised.value)


def test_other_files_are_no_disguise(tmp_path):
    (tmp_path / "letter").write_bytes(b"version 3 of <html>")
    assert not disguise(tmp_path / "letter") and not disguise(tmp_path / "none")
