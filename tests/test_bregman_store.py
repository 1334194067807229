# SPDX-License-Identifier: Apache-2.0
"""An index on disk is whole or not there, says what is damaged, and answers as one in memory."""

import errno
import json
import os
import pathlib
import pickle
import shutil
import stat
import time

import numpy as np
import pytest
from bregman_cases import CASES, assert_exact, build_on_disk, contents, make_case

from scorejax import bregman
from scorejax.bregman import divergences
from scorejax.bregman.index import brepartition, pages, store


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "index"
    build_on_disk(path)
    return path


@pytest.mark.deep
@pytest.mark.parametrize(("name", "side"), CASES)
def test_an_index_from_the_disk_answers_as_in_memory(name, side, tmp_path):
    case, on_disk = build_on_disk(tmp_path / "index", name, side)
    _, in_memory = build_on_disk(None, name, side)
    reopened = store.open_index(tmp_path / "index")
    for filter in ("sums", "paper", "scan"):
        expected = brepartition.search(in_memory, case.queries, 5, filter=filter)
        for index in (on_disk, reopened):
            found = brepartition.search(index, case.queries, 5, filter=filter)
            for ours, theirs in zip(found, expected, strict=True):
                np.testing.assert_array_equal(ours, theirs)
    assert isinstance(reopened.rows.records.base, np.ndarray)
    assert not reopened.rows.records.flags.writeable and not reopened.leaves.flags.writeable


def test_two_builds_write_the_same_bytes(saved, tmp_path):
    build_on_disk(tmp_path / "again")
    assert contents(saved) == contents(tmp_path / "again")


def test_rows_are_read_from_a_map_of_the_file(saved):
    index = store.open_index(saved)
    case = make_case("itakura_saito", "data_first")
    np.testing.assert_array_equal(index.rows.take(np.argsort(index.ids)), case.points)
    per_page = 700 // (14 * 4)
    assert (saved / store.ROWS).stat().st_size == -(-300 // per_page) * 700
    owner = index.rows.records
    while not isinstance(owner, np.memmap):
        owner = owner.base
    assert pathlib.Path(owner.filename).name == store.ROWS


@pytest.mark.parametrize("page_bytes", [1, 56, 57, 111, 112, 700, 10**6])
@pytest.mark.parametrize("num_rows", [1, 7, 12, 13])
def test_every_page_size_holds_every_row(page_bytes, num_rows):
    rows = np.arange(num_rows * 14, dtype=np.float32).reshape(num_rows, 14)
    held = pages.paged(rows, page_bytes)
    np.testing.assert_array_equal(held.take(np.arange(num_rows)), rows)
    np.testing.assert_array_equal(held.block(0, num_rows), rows)
    assert held.num_pages * page_bytes >= rows.nbytes
    assert held.num_pages == -(-num_rows // max(1, page_bytes // 56)) * max(1, -(-56 // page_bytes))


FILES = ["meta.json", "rows.bin", "ids.npy", "leaves.npy", "tuples.npy", "gauge.npy"]
FILES += ["moments.npy", "parts.npy", "sizes.npy", "tree_000.npy", "tree_002.npy"]


def test_the_files_are_those_that_are_damaged_below(saved):
    assert {f.name for f in saved.iterdir()} == {*FILES, "tree_001.npy"}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "empty", "extend"])
def test_what_is_damaged_is_named(saved, tmp_path, name, damage):
    path = tmp_path / "index"
    shutil.copytree(saved, path)
    file = path / name
    content = bytearray(file.read_bytes())
    rng = np.random.default_rng(len(name))
    for _ in range(8 if damage == "flip" else 1):
        changed = bytearray(content)
        if damage == "flip":
            changed[rng.integers(len(changed))] ^= 1 << int(rng.integers(8))
        elif damage == "extend":
            changed += b"\0"
        else:
            changed = changed[: len(changed) // 2 if damage == "truncate" else 0]
        file.write_bytes(changed)
        if damage == "remove":
            file.unlink()
        with pytest.raises(ValueError, match=name) as error:
            store.open_index(path)
        assert "\n" not in str(error.value)


def test_every_bit_of_the_description_counts(saved, tmp_path):
    path = tmp_path / "index"
    path.mkdir()
    content = (saved / "meta.json").read_bytes()
    for position in range(0, len(content), 7):
        changed = bytearray(content)
        changed[position] ^= 1 << (position % 8)
        (path / "meta.json").write_bytes(changed)
        # White space may be any; all else is held to the digest.
        if json_of(changed) == json_of(content):
            continue
        with pytest.raises(ValueError, match=r"meta\.json is damaged"):
            store.read_meta(path)


def json_of(content: bytes):
    try:
        return json.loads(content)
    except ValueError:
        return None


def test_a_folder_without_an_index_and_an_index_of_another_format(saved, tmp_path):
    with pytest.raises(ValueError, match=r"holds no index: there is no meta\.json"):
        store.open_index(tmp_path)
    meta = store.read_meta(saved) | {"format": 99}
    text = json.dumps({**meta, "sha256": store._digest(meta)})
    (tmp_path / "meta.json").write_text(text)
    with pytest.raises(ValueError, match="has format 99; this version reads 1"):
        store.open_index(tmp_path)


def test_a_path_that_is_taken_is_left_as_it_is(saved, tmp_path):
    before = contents(saved)
    with pytest.raises(ValueError, match="is there already"):
        build_on_disk(saved)
    (tmp_path / "file").write_text("precious")
    with pytest.raises(ValueError, match="is there already"):
        build_on_disk(tmp_path / "file")
    assert contents(saved) == before and (tmp_path / "file").read_text() == "precious"


def test_of_two_builds_of_one_path_one_wins_whole(tmp_path, monkeypatch):
    path = tmp_path / "index"
    real = os.rename

    def other_was_faster(source, target):
        monkeypatch.setattr(os, "rename", real)
        build_on_disk(path)
        real(source, target)

    monkeypatch.setattr(os, "rename", other_was_faster)
    with pytest.raises(ValueError, match="was made by another build meanwhile"):
        build_on_disk(path, seed=1)
    store.open_index(path)
    assert [f.name for f in tmp_path.iterdir()] == ["index"]


def test_a_build_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store, "_write_rows", full)
    with pytest.raises(OSError, match="No space left"):
        build_on_disk(tmp_path / "index")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["index", "index[1]"])
def test_what_a_killed_build_left_goes_with_the_next(tmp_path, name):
    left = tmp_path / f".{name}.building.abc"
    left.mkdir()
    (left / "rows.bin").write_bytes(b"half")
    young = tmp_path / f".{name}.building.def"
    young.mkdir()
    other = tmp_path / ".other.building.abc"
    other.mkdir()
    long_ago = time.time() - 3600
    os.utime(left, (long_ago, long_ago))
    os.utime(other, (long_ago, long_ago))
    build_on_disk(tmp_path / name)
    assert {f.name for f in tmp_path.iterdir()} == {name, young.name, other.name}


def test_an_index_of_a_divergence_of_ones_own_is_opened_with_it(tmp_path):
    import dataclasses

    own = dataclasses.replace(divergences.itakura_saito(), name="my own")
    case = make_case("itakura_saito", "data_first")
    index = brepartition.build_index(case.points, own, num_parts=2, path=tmp_path / "index")
    assert_exact(brepartition.search(index, case.queries, 3), case, 3)
    with pytest.raises(ValueError, match="'my own', of your own: give it as well"):
        store.open_index(tmp_path / "index")
    opened = store.open_index(tmp_path / "index", divergence=own)
    assert_exact(brepartition.search(opened, case.queries, 3), case, 3)
    with pytest.raises(ValueError, match="'my own', not 'exponential'"):
        store.open_index(tmp_path / "index", divergence=divergences.exponential())


def test_an_index_is_not_opened_with_other_options(tmp_path):
    points = np.random.default_rng(0).gamma(2.0, size=(50, 4))
    brepartition.build_index(points, divergences.beta(b=1.5), num_parts=2, path=tmp_path / "index")
    message = r"'beta' with the options \{'b': 1\.5\}, not \{'b': -1\.0\}"
    with pytest.raises(ValueError, match=message):
        store.open_index(tmp_path / "index", divergence=divergences.beta(b=-1.0))


def test_an_index_can_be_read_by_others(saved):
    assert stat.S_IMODE(saved.stat().st_mode) == 0o755
    assert all(f.stat().st_mode & stat.S_IROTH for f in saved.iterdir())


def test_threads_share_an_index(saved):
    from concurrent.futures import ThreadPoolExecutor

    case, index = make_case("itakura_saito", "data_first"), store.open_index(saved)
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(brepartition.search, index, case.queries, 5) for _ in range(8)]
        for job in jobs:
            assert_exact(job.result(), case, 5)


def test_pickles_of_the_release_before_the_folders_still_answer():
    # Made by release 0.1.0, whose modules were peers in scorejax.bregman; 40 points, 3 queries.
    record = pathlib.Path(__file__).parent / "records" / "bregman_before_folders.pkl"
    saved = pickle.loads(record.read_bytes())
    points, queries = saved["points"], saved["queries"]
    fresh = bregman.search(bregman.build_index(points, "itakura_saito"), queries, 3)
    for found in (bregman.search(saved["parts"], queries, 3), saved["neighbours"]):
        np.testing.assert_array_equal(found.ids, fresh.ids)
    again = bregman.search(saved["parts"], queries, 3, p=1.0, calibration=saved["calibration"])
    np.testing.assert_array_equal(again.ids, fresh.ids)
    swapped = bregman.build_index(points, "itakura_saito", side="query_first")
    expected = bregman.search(swapped, queries, 3)
    np.testing.assert_array_equal(bregman.search(saved["scan"], queries, 3).ids, expected.ids)
    estimator = bregman.BregmanNeighbors(3, "logistic").fit(points / 10)
    np.testing.assert_array_equal(
        saved["estimator"].kneighbors(queries / 10)[1], estimator.kneighbors(queries / 10)[1]
    )
    assert type(saved["parts"]) is bregman.BregmanIndex
    assert all(type(divergence) is bregman.Divergence for divergence in saved["divergences"])


def test_former_module_names_read_and_write_the_present_modules():
    import scorejax.bregman.exact
    from scorejax.bregman.scan import exact

    assert scorejax.bregman.exact.ExactIndex is exact.ExactIndex
    present = exact.ExactIndex
    try:
        scorejax.bregman.exact.ExactIndex = None
        assert exact.ExactIndex is None
    finally:
        exact.ExactIndex = present
    assert scorejax.bregman.exact.ExactIndex is present
