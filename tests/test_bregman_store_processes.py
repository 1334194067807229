# SPDX-License-Identifier: Apache-2.0
"""An index on disk while processes are killed, run side by side, or may not write."""

import json
import os
import pathlib
import resource
import signal
import subprocess
import sys
import textwrap

import pytest
from bregman_cases import build_on_disk, contents

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Each process imports JAX, which takes seconds.
pytestmark = pytest.mark.slow

PRELUDE = textwrap.dedent(
    """
    import sys, time
    sys.path.insert(0, "tests")
    import numpy as np
    from bregman_cases import make_case
    from scorejax.bregman.index import brepartition, store
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


def test_two_readers_and_one_builder_at_once(tmp_path):
    build_on_disk(tmp_path / "old")
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


def test_a_read_only_folder_is_read_and_not_written(tmp_path):
    # Root may write anywhere, so that the child is nobody where the tests run as root.
    folder = tmp_path / "shelf"
    build_on_disk(folder / "index")
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
