# SPDX-License-Identifier: Apache-2.0
"""launch.index from files to files, and one line for every mistake."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from bregman_cases import assert_exact, make_case

from scorejax.bregman.index import brepartition, store
from scorejax.bregman.scan.ranking import Neighbours

ROOT = pathlib.Path(__file__).resolve().parent.parent


def launch(*arguments, **environment) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "launch.index", *map(str, arguments)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", **environment}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200, check=False
    )


@pytest.fixture
def files(tmp_path):
    case = make_case("itakura_saito", "query_first")
    np.save(tmp_path / "points.npy", case.points)
    np.save(tmp_path / "queries.npy", case.queries)
    return case, tmp_path


def build_flags(folder) -> list[str]:
    return [
        f"--index={folder}/index",
        f"--points={folder}/points.npy",
        "--divergence=itakura_saito",
        "--side=query_first",
        "--num_parts=2",
        "--leaf_size=16",
    ]


@pytest.mark.deep
def test_an_index_is_built_described_and_searched(files):
    case, folder = files
    built = launch("build", *build_flags(folder))
    assert built.returncode == 0, built.stderr
    described = json.loads(built.stdout)
    assert described["num_points"] == 300 and described["part_sizes"] == [7, 7]
    flags = [f"--index={folder}/index", f"--queries={folder}/queries.npy", "--k=5"]
    found = launch("search", *flags, f"--out={folder}/some/found")
    assert found.returncode == 0, found.stderr
    assert "4 queries" in found.stdout and f"{folder}/some/found.npz" in found.stdout
    with np.load(folder / "some" / "found.npz") as arrays:
        assert_exact(Neighbours(**arrays), case, 5)


@pytest.mark.slow
def test_parquet_tables_in_and_out(files):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    case, folder = files
    for name in ("points", "queries"):
        columns = {f"c{j}": column for j, column in enumerate(np.load(folder / f"{name}.npy").T)}
        parquet.write_table(pyarrow.table(columns), folder / f"{name}.parquet")
    build = [flag.replace("points.npy", "points.parquet") for flag in build_flags(folder)]
    assert launch("build", *build).returncode == 0
    flags = [f"--index={folder}/index", f"--queries={folder}/queries.parquet", "--k=5"]
    assert launch("search", *flags, f"--out={folder}/found.parquet").returncode == 0
    table = parquet.read_table(folder / "found.parquet").to_pydict()
    assert table["rank"] == [*range(5)] * 4 and table["query"] == [i // 5 for i in range(20)]
    shaped = {name: np.array(table[name]).reshape(4, 5) for name in ("ids", "distances")}
    assert_exact(Neighbours(**shaped, candidates=None, pages=None), case, 5)
    described = launch("info", f"--index={folder}/index")
    assert json.loads(described.stdout)["side"] == "query_first"


@pytest.mark.slow
def test_a_probability_with_queries_to_learn_from(files):
    case, folder = files
    brepartition.build_index(
        case.points, case.divergence, side=case.side, num_parts=2, path=folder / "index"
    )
    np.save(folder / "calibration.npy", make_case("itakura_saito", "query_first", seed=1).points)
    flags = [f"--index={folder}/index", f"--queries={folder}/queries.npy", "--k=5", "--p=0.9"]
    flags += [f"--calibration={folder}/calibration.npy", f"--out={folder}/found"]
    assert launch("search", *flags).returncode == 0
    with np.load(folder / "found.npz") as arrays:
        exact = brepartition.search(store.open_index(folder / "index"), case.queries, 5)
        assert np.all(arrays["distances"] >= exact.distances * (1 - 1e-12))


MISTAKES = [
    (["build"], "--index is missing"),
    (["bild", "--index=x"], "unknown verb 'bild': did you mean 'build'?"),
    (["--index=x"], "unknown verb ''"),
    (["build", "--index=x"], "--points is missing"),
    (["build", "--index={tmp}/new", "--points={tmp}/no.npy"], "no.npy"),
    (["build", "--index={tmp}", "--points={tmp}/points.npy"], "is there already"),
    (["build", "--index={tmp}/new", "--points={tmp}/text.npy"], "is no array in .npy or .parquet"),
    (["build", "--index={tmp}/new", "--points={tmp}/text.parquet"], "is no parquet file"),
    (
        ["build", "--index={tmp}/new", "--points={tmp}/points.npy", "--divergence=itakura"],
        "did you mean 'itakura_saito'?",
    ),
    (
        ["build", "--index={tmp}/new", "--points={tmp}/points.npy", "--options=b=1"],
        '--options needs to be as {"b": 1.5}; got b=1',
    ),
    (
        ["build", "--index={tmp}/new", "--points={tmp}/points.npy", "--num_parts=99"],
        "num_parts needs to be in [1, 14]; got 99",
    ),
    (
        ["build", "--index={tmp}/new", "--points={tmp}/negative.npy", "--divergence=itakura_saito"],
        "itakura_saito needs points > 0; got -1.0",
    ),
    (
        ["build", "--index={tmp}/new", "--points={tmp}/points.npy", "--seed=-1"],
        "--seed needs to be at least 0; got -1",
    ),
    (["info", "--index={tmp}"], "holds no index"),
    (
        ["search", "--index={tmp}/index", "--queries={tmp}/points.npy", "--out={tmp}/text.npy/x"],
        "text.npy is not a directory",
    ),
    (
        [
            "search",
            "--index={tmp}/index",
            "--queries={tmp}/points.npy",
            "--out={tmp}/x",
            "--p=0.5",
            "--calibration={tmp}/points.npy",
            "--filter=scan",
        ],
        "unknown filter with --calibration 'scan'",
    ),
    (
        ["search", "--index={tmp}/index", "--queries={tmp}/points.npy", "--out=x", "--k=301"],
        "k needs to be a whole number in [1, 300]; got 301",
    ),
    (
        ["search", "--index={tmp}/index", "--queries={tmp}/points.npy", "--out=x", "--p=0.5"],
        "--p and --calibration go together",
    ),
    (
        ["search", "--index={tmp}/broken", "--queries={tmp}/points.npy", "--out=x"],
        "rows.bin is damaged",
    ),
]


@pytest.mark.slow
def test_every_mistake_is_one_line(files):
    case, folder = files
    for name in ("index", "broken"):
        brepartition.build_index(case.points, case.divergence, num_parts=2, path=folder / name)
    rows = bytearray((folder / "broken" / "rows.bin").read_bytes())
    rows[77] ^= 1
    (folder / "broken" / "rows.bin").write_bytes(rows)
    (folder / "text.npy").write_text("hello")
    (folder / "text.parquet").write_text("hello")
    np.save(folder / "negative.npy", -np.ones((3, 2)))
    for arguments, message in MISTAKES:
        done = launch(*(argument.format(tmp=folder) for argument in arguments))
        assert done.returncode == 2, (arguments, done.stderr)
        lines = done.stderr.splitlines()
        assert len(lines) == 1 and message in lines[0], (arguments, lines)
    assert not (folder / "new").exists()
    # Without pyarrow, tables are refused, and nothing else.
    (folder / "pyarrow.py").write_text("raise ImportError")
    done = launch("build", f"--index={folder}/new", f"--points={folder}/text.parquet",
                  PYTHONPATH=str(folder))  # fmt: skip
    assert done.returncode == 2 and "need pyarrow, which is not installed" in done.stderr
