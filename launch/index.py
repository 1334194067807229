# SPDX-License-Identifier: Apache-2.0
"""Finds nearest neighbours under Bregman divergences by an index in a folder.

python -m launch.index build --points=spectra.npy --divergence=itakura_saito --index=runs/spectra
python -m launch.index search --index=runs/spectra --queries=queries.npy --k=10 --out=runs/found
python -m launch.index info --index=runs/spectra

Points and queries are arrays (n, d) in .npy or .parquet. Answers are exact, unless --p is given
with --calibration: queries like those to come, from which the radius for p is learnt.
"""

from absl import flags

from launch import command

INDEX = flags.DEFINE_string("index", None, "Folder of the index.", required=True)
BUILD = [
    flags.DEFINE_string("points", None, "build: points, .npy or .parquet."),
    flags.DEFINE_string("divergence", "squared_euclidean", "build: name of the divergence."),
    flags.DEFINE_string("options", "{}", 'build: options of the divergence, as {"b": 1.5}.'),
    flags.DEFINE_string("side", "data_first", "build: data_first or query_first."),
    flags.DEFINE_integer("num_parts", 0, "build: number of parts of the columns; 0: measured."),
    flags.DEFINE_integer("leaf_size", 64, "build: largest number of points in a leaf."),
    flags.DEFINE_integer("page_bytes", 32768, "build: bytes of a page."),
    flags.DEFINE_integer("seed", 0, "build: seed of samples and of first clusters."),
]
OUT = flags.DEFINE_string("out", None, "search: path; a table if it ends in .parquet, else .npz.")
SEARCH = [
    OUT,
    flags.DEFINE_string("queries", None, "search: queries, .npy or .parquet."),
    flags.DEFINE_integer("k", 10, "search: neighbours of each query."),
    flags.DEFINE_string("filter", "auto", "search: auto, sums, seed, paper or scan."),
    flags.DEFINE_float("p", None, "search: probability of finding all k; exact by default."),
    flags.DEFINE_string("calibration", None, "search: queries to learn the radius for p from."),
    flags.DEFINE_boolean("verify", True, "search: check the digest of every file of the index."),
]


def prepare(verb: str) -> command.Job:
    """Checks the flags of a verb and returns its job. Raises: ValueError for an unknown verb."""
    from scorejax.bregman import index_files as files
    from scorejax.choices import choose

    verbs = {"build": (files.prepare_build, BUILD), "search": (files.prepare_search, SEARCH)}
    prepare_verb, taken = choose("verb", verb, verbs | {"info": (files.prepare_info, [])})
    values = {flag.name: flag.value for flag in taken}
    if OUT.value:
        values |= {"out": command.output(OUT.value, "", "found")} if OUT in taken else {}
    return prepare_verb(INDEX.value, **values)


if __name__ == "__main__":
    VERB = command.leading_word()
    command.run(lambda: prepare(VERB))
