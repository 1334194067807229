# SPDX-License-Identifier: Apache-2.0
"""Nearest neighbours under Bregman divergences, by an index in a folder.

python -m launch.index build --points=spectra.npy --divergence=itakura_saito --index=runs/spectra
python -m launch.index search --index=runs/spectra --queries=queries.npy --k=10 --out=runs/found
python -m launch.index info --index=runs/spectra

Points and queries are arrays (n, d) in .npy, which are mapped and not loaded, or in .parquet, whose
columns are taken in order. search writes ids and distances (q, k), candidates and pages (q,) to
<out>.npz, or ids and distances to <out>.parquet, with a row for each neighbour. Answers are exact,
unless --p is given together with --calibration: queries like those to come, of which the radius for
p is learnt, for --filter=sums (the one of "auto") or paper.
"""

import json
import sys

from absl import flags

from launch import command

INDEX = flags.DEFINE_string("index", None, "The folder of the index.", required=True)
POINTS = flags.DEFINE_string("points", None, "build: the points, .npy or .parquet.")
DIVERGENCE = flags.DEFINE_string("divergence", "squared_euclidean", "build: its name.")
OPTIONS = flags.DEFINE_string("options", "{}", 'build: those of the divergence, as {"b": 1.5}.')
SIDE = flags.DEFINE_string("side", "data_first", "build: data_first or query_first.")
NUM_PARTS = flags.DEFINE_integer("num_parts", 0, "build: parts of the columns; 0: as measured.")
LEAF_SIZE = flags.DEFINE_integer("leaf_size", 64, "build: points of a leaf, at most.")
PAGE_BYTES = flags.DEFINE_integer("page_bytes", 32768, "build: bytes of a page.")
SEED = flags.DEFINE_integer("seed", 0, "build: of samples and of the first clusters.")
QUERIES = flags.DEFINE_string("queries", None, "search: the queries, .npy or .parquet.")
K = flags.DEFINE_integer("k", 10, "search: neighbours of each query.")
FILTER = flags.DEFINE_string("filter", "auto", "search: auto, sums, seed, paper or scan.")
P = flags.DEFINE_float("p", None, "search: probability of all k; exact by default.")
CALIBRATION = flags.DEFINE_string("calibration", None, "search: queries to learn p's radius of.")
OUT = flags.DEFINE_string("out", None, "search: path; .parquet if it ends so, else .npz.")

NO_PARQUET = "parquet files need pyarrow, which is not installed: pip install pyarrow, or use .npy"


def prepare(verb: str) -> command.Job:
    from scorejax.choices import choose

    verbs = {"build": prepare_build, "search": prepare_search, "info": prepare_info}
    return choose("verb", verb, verbs)()


def prepare_build() -> command.Job:
    require("points")
    command.require_positive(leaf_size=LEAF_SIZE.value)
    if SEED.value < 0:
        raise ValueError(f"--seed needs to be at least 0; got {SEED.value}")
    from scorejax.bregman import divergences
    from scorejax.bregman.divergences import sided
    from scorejax.bregman.index import brepartition, store

    divergence = divergences.get(DIVERGENCE.value, **read_options())
    store.require_free(INDEX.value)
    points = read_rows("points", POINTS.value)
    options = {"leaf_size": LEAF_SIZE.value, "page_bytes": PAGE_BYTES.value, "seed": SEED.value}
    options |= {"side": SIDE.value, "num_parts": NUM_PARTS.value or None}
    space = sided.Sided(divergence, SIDE.value)
    checked = {name: options[name] for name in ("num_parts", "leaf_size", "page_bytes")}
    brepartition.checked_rows(points, space, **checked)

    def job() -> None:
        brepartition.build_index(points, divergence, path=INDEX.value, **options)
        print(json.dumps(describe(), indent=2))

    return job


def prepare_search() -> command.Job:
    require("queries", "out")
    from scorejax.bregman.index import brepartition, store
    from scorejax.choices import require_known

    if (P.value is None) != (CALIBRATION.value is None):
        raise ValueError("--p and --calibration go together; without both, answers are exact")
    if OUT.value.endswith(".parquet"):
        import_parquet()
    index = store.open_index(INDEX.value)
    queries = read_rows("queries", QUERIES.value)
    options = {"p": P.value, "filter": FILTER.value}
    brepartition.check_search(index, K.value, **options)
    index.coordinates(queries)
    out = command.output(OUT.value, "", "")
    learnt = CALIBRATION.value and read_rows("calibration", CALIBRATION.value)
    if learnt is not None:
        index.coordinates(learnt)
        learner = "sums" if FILTER.value == "auto" else FILTER.value
        require_known("filter with --calibration", learner, brepartition.CALIBRATED)

    def job() -> None:
        if learnt is not None:
            options["calibration"] = brepartition.calibrate(index, learnt, K.value, filter=learner)
        found = brepartition.search(index, queries, K.value, **options)
        path = write(found._asdict(), out)
        print(f"{len(found.ids)} queries: {path}")
        if len(found.ids):
            share, pages = found.candidates.mean() / index.num_points, found.pages.mean()
            print(f"each: {share:.1%} of the points, {pages:.1f} of {index.rows.num_pages} pages")

    return job


def prepare_info() -> command.Job:
    report = describe()
    return lambda: print(json.dumps(report, indent=2))


def describe() -> dict:
    """What an index is, and how large."""
    from scorejax.bregman.index import store

    meta = store.read_meta(INDEX.value)
    sizes = {name: file["bytes"] for name, file in meta.pop("files").items()}
    shares = meta.pop("shares") or [[]] * 3
    names = ("k", "candidates", "pages")
    expected = [dict(zip(names, row, strict=True)) for row in zip(*shares, strict=True)]
    return meta | {"expected_shares": expected, "bytes": sizes, "total_bytes": sum(sizes.values())}


def require(*names: str) -> None:
    """Raises ValueError for the first of these flags that is not given."""
    for name in names:
        if not flags.FLAGS[name].value:
            raise ValueError(f"--{name} is missing")


def read_options() -> dict:
    """--options. Raises: ValueError unless it is a JSON object."""
    try:
        options = json.loads(OPTIONS.value)
    except ValueError:
        options = None
    if not isinstance(options, dict):
        raise ValueError(f'--options needs to be as {{"b": 1.5}}; got {OPTIONS.value}')
    return options


def read_rows(flag: str, path: str):
    """An array of numbers (n, d), mapped. Raises: ValueError, FileNotFoundError."""
    import numpy as np

    if path.endswith(".parquet"):
        return read_parquet(flag, path)
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError):
        raise ValueError(f"--{flag}={path} is no array in .npy or .parquet") from None
    if not isinstance(rows, np.ndarray):
        raise ValueError(f"--{flag}={path} is no array in .npy or .parquet")
    return rows


def read_parquet(flag: str, path: str):
    """The columns of a table as an array (n, d). Raises: as `read_rows`."""
    import numpy as np

    pyarrow = import_parquet()
    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowException:
        raise ValueError(f"--{flag}={path} is no parquet file") from None
    return np.stack([np.asarray(column) for column in table.columns], axis=1)


def import_parquet():
    """The pyarrow package. Raises: ValueError if there is none."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ValueError(NO_PARQUET) from None
    return pyarrow


def write(arrays: dict, out: str) -> str:
    """Writes what was found, whole or not at all, and says where."""
    import numpy as np

    from scorejax.files import save_npz, written_whole

    if not out.endswith(".parquet"):
        path = f"{out.removesuffix('.npz')}.npz"
        save_npz(path, **arrays)
        return path
    pyarrow = import_parquet()
    num_queries, k = arrays["ids"].shape
    columns = {"query": np.repeat(np.arange(num_queries), k)}
    columns["rank"] = np.tile(np.arange(k), num_queries)
    columns |= {name: arrays[name].ravel() for name in ("ids", "distances")}
    with written_whole(out) as file:
        pyarrow.parquet.write_table(pyarrow.table(columns), file)
    return out


def main() -> None:
    """Takes the verb, which flags do not know of, from the command line."""
    verb = sys.argv.pop(1) if len(sys.argv) > 1 and not sys.argv[1].startswith("-") else ""
    command.run(lambda: prepare(verb))


if __name__ == "__main__":
    main()
