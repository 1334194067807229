# SPDX-License-Identifier: Apache-2.0
"""An index on disk is whole or not there, says what is damaged, and answers as one in memory."""

import errno
import hashlib
import json
import os
import pathlib
import resource
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from bregman_cases import CASES, assert_exact, make_case

from scorejax.bregman import brepartition, divergences, pages, store

ROOT = pathlib.Path(__file__).resolve().parent.parent


def build(path, name="itakura_saito", side="data_first", **options):
    case = make_case(name, side)
    options = {"num_parts": 3, "leaf_size": 16, "side": side, "page_bytes": 700, **options}
    return case, brepartition.build_index(case.points, case.divergence, path=path, **options)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "index"
    build(path)
    return path


@pytest.mark.parametrize(("name", "side"), CASES)
def test_an_index_from_the_disk_answers_as_in_memory(name, side, tmp_path):
    case, on_disk = build(tmp_path / "index", name, side)
    _, in_memory = build(None, name, side)
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
    build(tmp_path / "again")
    assert contents(saved) == contents(tmp_path / "again")


def contents(folder: pathlib.Path) -> dict[str, str]:
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in folder.iterdir()}


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
        build(saved)
    (tmp_path / "file").write_text("precious")
    with pytest.raises(ValueError, match="is there already"):
        build(tmp_path / "file")
    assert contents(saved) == before and (tmp_path / "file").read_text() == "precious"


def test_of_two_builds_of_one_path_one_wins_whole(tmp_path, monkeypatch):
    path = tmp_path / "index"
    real = os.rename

    def other_was_faster(source, target):
        monkeypatch.setattr(os, "rename", real)
        build(path)
        real(source, target)

    monkeypatch.setattr(os, "rename", other_was_faster)
    with pytest.raises(ValueError, match="was made by another build meanwhile"):
        build(path, seed=1)
    store.open_index(path)
    assert [f.name for f in tmp_path.iterdir()] == ["index"]


def test_a_build_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store, "_write_rows", full)
    with pytest.raises(OSError, match="No space left"):
        build(tmp_path / "index")
    assert not list(tmp_path.iterdir())


def test_what_a_killed_build_left_goes_with_the_next(tmp_path):
    left = tmp_path / ".index.building.abc"
    left.mkdir()
    (left / "rows.bin").write_bytes(b"half")
    young = tmp_path / ".index.building.def"
    young.mkdir()
    other = tmp_path / ".other.building.abc"
    other.mkdir()
    long_ago = time.time() - 3600
    os.utime(left, (long_ago, long_ago))
    os.utime(other, (long_ago, long_ago))
    build(tmp_path / "index")
    assert {f.name for f in tmp_path.iterdir()} == {"index", young.name, other.name}


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


def test_an_index_can_be_read_by_others(saved):
    assert stat.S_IMODE(saved.stat().st_mode) == 0o755
    assert all(f.stat().st_mode & stat.S_IROTH for f in saved.iterdir())


# Other processes: they import JAX, which takes seconds.

PRELUDE = textwrap.dedent(
    """
    import sys, time
    sys.path.insert(0, "tests")
    import numpy as np
    from bregman_cases import make_case
    from scorejax.bregman import brepartition, store
    def build(path, n=300, **options):
        case = make_case("itakura_saito", "data_first", num_points=n)
        return brepartition.build_index(
            case.points, case.divergence, num_parts=3, leaf_size=16, path=path, **options
        )
    """
)


def start(code: str, *args, **options) -> subprocess.Popen:
    command = [sys.executable, "-c", PRELUDE + textwrap.dedent(code), *map(str, args)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


@pytest.mark.slow
def test_a_build_killed_at_any_moment_leaves_no_index_or_a_whole_one(tmp_path):
    # The child forks builds, each of which is killed a little later than the one before; from the
    # first write to the rename and beyond.
    code = """
    import os, signal, pathlib, json
    root = pathlib.Path(sys.argv[1])
    build(root / "warm", n=3000)
    begin = time.perf_counter(); build(root / "timed", n=3000)
    whole = time.perf_counter() - begin
    outcomes = []
    for i in range(60):
        path = root / "killed" / f"{i}"
        path.parent.mkdir(exist_ok=True)
        child = os.fork()
        if not child:
            build(path, n=3000)
            os._exit(0)
        # Writing takes a small part at the end.
        time.sleep(whole * (0.5 + 0.6 * i / 60))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        left = sorted(f.name for f in path.parent.glob(f".{i}.building.*"))
        if path.exists():
            index = store.open_index(path)
            assert index.num_points == 3000
        outcomes.append((path.exists(), bool(left)))
    print(json.dumps(outcomes))
    """
    returncode, out, err = finish(start(code, tmp_path))
    assert returncode == 0, err
    outcomes = json.loads(out)
    assert any(there for there, _ in outcomes) and not all(there for there, _ in outcomes)
    # Some were killed as they wrote.
    assert any(left for _, left in outcomes)


@pytest.mark.slow
def test_a_build_killed_after_each_file_leaves_no_index(tmp_path):
    # The moments that matter, all of them: after each file is closed, and around the rename.
    code = """
    import os, signal, pathlib
    root = pathlib.Path(sys.argv[1])
    real_fsync, real_rename = os.fsync, os.rename
    def dies_at(number):
        calls = [0]
        def counted(real):
            def call(*args):
                calls[0] += 1
                if calls[0] == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args)
            return call
        os.fsync, os.rename = counted(real_fsync), counted(real_rename)
    there = []
    for number in range(1, 30):
        path = root / f"{number}"
        child = os.fork()
        if not child:
            dies_at(number)
            build(path)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        there.append(path.exists())
        if path.exists():
            store.open_index(path)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            break
    print(there)
    """
    returncode, out, err = finish(start(code, tmp_path))
    assert returncode == 0, err
    there = json.loads(out.lower())
    # 11 files, meta.json, the folder, the rename: then the index is there, and stays.
    assert there == sorted(there) and there.count(False) >= 13 and there[-1]


@pytest.mark.slow
def test_two_readers_and_one_builder_at_once(tmp_path):
    build(tmp_path / "old")
    read = """
    case = make_case("itakura_saito", "data_first")
    expected = None
    until = time.time() + 6
    rounds = 0
    while time.time() < until:
        index = store.open_index(sys.argv[1])
        found = brepartition.search(index, case.queries, 5, filter="sums")
        expected = found if expected is None else expected
        assert np.array_equal(found.ids, expected.ids)
        assert np.array_equal(found.pages, expected.pages)
        rounds += 1
    print(rounds)
    """
    write = """
    import shutil
    until = time.time() + 6
    while time.time() < until:
        build(sys.argv[1] + "/new")
        store.open_index(sys.argv[1] + "/new")
        shutil.rmtree(sys.argv[1] + "/new")
    """
    readers = [start(read, tmp_path / "old") for _ in range(2)]
    writer = start(write, tmp_path)
    for process in (*readers, writer):
        returncode, out, err = finish(process)
        assert returncode == 0, err
        assert not out or int(out) > 3
    assert [f.name for f in tmp_path.iterdir()] == ["old"]


@pytest.mark.slow
def test_a_disk_that_fills_up_is_one_error_and_leaves_nothing(tmp_path):
    # A limit on the size of a file is what a full disk looks like from inside: writes fall short.
    code = """
    try:
        build(sys.argv[1])
    except OSError as error:
        print(type(error).__name__, error)
        sys.exit(7)
    """

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    returncode, out, err = finish(start(code, tmp_path / "index", preexec_fn=limit))
    assert returncode == 7, err
    assert "Error" in out
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_read_only_folder_is_read_and_not_written(tmp_path):
    # Root may write anywhere, so that the child is nobody where the tests run as root.
    folder = tmp_path / "shelf"
    build(folder / "index")
    before = contents(folder / "index")
    for path in (folder, folder / "index"):
        path.chmod(0o555)
    for parent in [tmp_path, *tmp_path.parents][:3]:
        parent.chmod(parent.stat().st_mode | 0o055)
    code = """
    import os
    # Whoever nobody is, they may not be allowed to read the modules that are imported late.
    brepartition.search(store.open_index(sys.argv[1] + "/index"), np.ones((1, 14)), 3)
    if os.geteuid() == 0:
        os.setgid(65534); os.setuid(65534)
    index = store.open_index(sys.argv[1] + "/index")
    case = make_case("itakura_saito", "data_first")
    print(brepartition.search(index, case.queries, 3).ids.shape)
    try:
        build(sys.argv[1] + "/new")
    except PermissionError as error:
        sys.exit(7)
    """
    returncode, out, err = finish(start(code, folder))
    assert (returncode, out.strip()) == (7, "(4, 3)"), err
    assert contents(folder / "index") == before
    folder.chmod(0o755)


def test_threads_share_an_index(saved):
    from concurrent.futures import ThreadPoolExecutor

    case, index = make_case("itakura_saito", "data_first"), store.open_index(saved)
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(brepartition.search, index, case.queries, 5) for _ in range(8)]
        for job in jobs:
            assert_exact(job.result(), case, 5)
