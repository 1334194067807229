# SPDX-License-Identifier: Apache-2.0
"""Images that are read ahead by threads come in order, a bounded number of them, errors and all."""

import threading

import numpy as np
import PIL.Image
import pytest

from scorejax.data.images import Streamed, load, records
from scorejax.data.prefetch import read_ahead


def test_results_come_in_order_from_threads_that_work_at_once():
    together = threading.Barrier(4)

    def read(item):
        together.wait(timeout=30)  # Breaks, and so does the test, unless four are read at once.
        return -item

    assert list(read_ahead(read, range(12), ahead=4, num_threads=4)) == [-i for i in range(12)]


@pytest.mark.parametrize("ahead", [1, 3])
def test_no_more_results_wait_than_asked(ahead):
    begun = []
    results = read_ahead(begun.append, range(20), ahead=ahead, num_threads=5)
    for taken in range(1, 8):
        next(results)
        # Those that the caller has taken, and those that wait or are being read.
        assert len(begun) <= taken + ahead
    results.close()  # Waits for its threads, and begins no other item.
    assert len(begun) <= 7 + ahead


def test_an_error_comes_where_its_item_is():
    def read(item):
        if item == 2:
            raise ValueError("item 2 is damaged")
        return item

    results = read_ahead(read, range(5), ahead=4)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match=r"^item 2 is damaged$"):
        next(results)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve pictures; the ninth is damaged."""
    folder = tmp_path_factory.mktemp("pictures") / "train"
    folder.mkdir()
    for number in range(12):
        pixels = np.full((9, 9, 3), number, np.uint8)
        PIL.Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    (folder / "08.png").write_bytes(b"no picture")
    return folder.parent


def test_chunks_of_a_folder_are_what_one_reads_picture_by_picture(folder):
    rows = records("folder", "train", image_size=4, data_dir=str(folder))
    indices = [[5, 0, 3], [7], np.array([1, 1])]
    chunks = list(Streamed(rows).chunks(indices))
    for chunk, index in zip(chunks, indices, strict=True):
        np.testing.assert_array_equal(chunk, np.stack([rows[int(i)]["image"] for i in index]))
    np.testing.assert_array_equal(Streamed(rows)[range(8)][:, 0, 0, 0], np.arange(8))


def test_a_damaged_picture_is_one_line_that_names_it(folder):
    rows = records("folder", "train", image_size=4, data_dir=str(folder))
    reads = {
        "stream": lambda: list(Streamed(rows).chunks([range(6), range(6, 12)])),
        "load": lambda: load("folder", "train", image_size=4, data_dir=str(folder)),
    }
    for read in reads.values():
        with pytest.raises(ValueError, match=r"08\.png is not a readable picture") as error:
            read()
        assert "\n" not in str(error.value)
    # Images before it are read: an error is raised in its place.
    assert len(load("folder", "train", image_size=4, data_dir=str(folder), limit=8).image) == 8
