# SPDX-License-Identifier: Apache-2.0
"""The matching task of a config: documents, pairs to learn from and to judge by, planted noise."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from scorejax.data import matching_esco, matching_files, matching_generated
from scorejax.data.matching import (
    SPLITS,
    Documents,
    Matching,
    Pairs,
    Split,
    concatenate,
    corrupt,
    sample_negatives,
)

TABLES = ("resumes", "jobs", "pairs")
"""Keys of the paths of the user's own three files, for the dataset "tables"."""


class Known(NamedTuple):
    """Documents and pairs; the published split, if there is one; all true matches, if planted."""

    matching: Matching
    split: Split | None = None
    matches: Bool[np.ndarray, "r j"] | None = None
    skipped: tuple[str, ...] = ()
    """A line for each row of a file that was left out."""


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """Documents, and pairs of them.

    `train` has label noise, by `flipped`; `interactions` (m, 2) are further positives that may be
    edges of a graph, and are learnt from in no other way.
    """

    resumes: Documents
    jobs: Documents
    train: Pairs
    flipped: Bool[np.ndarray, "n"]
    valid: Pairs
    test: Pairs
    interactions: Int[np.ndarray, "m 2"]
    skipped: tuple[str, ...] = ()

    def supervised(self) -> Int[np.ndarray, "p 2"]:
        """Resume and job of every pair with a label, whichever it is."""
        pairs = concatenate([dataclasses.replace(p, time=None) for p in self._parts()])
        return np.stack([pairs.resume, pairs.job], axis=1)

    def _parts(self) -> tuple[Pairs, Pairs, Pairs]:
        return self.train, self.valid, self.test


def make_task(config: Mapping[str, Any]) -> Task:
    """Reads or draws the documents and pairs; all draws follow from `split_seed`.

    Raises: ValueError, one line, for what the data do not allow, or FileNotFoundError without them.
    """
    rng = np.random.default_rng(config["split_seed"])
    known = DATASETS[config["dataset"]](config, rng)
    matching, split = known.matching, known.split
    if split is None:
        split = SPLITS[config["split"]](matching, rng, config["valid_share"], config["test_share"])
    if known.matches is not None:  # What nobody saw is judged as it is.
        judged = (_relabelled(part, known.matches) for part in (split.valid, split.test))
        split = Split(split.train, *judged)
    learnt, interactions = _set_apart(split.train, config["graph_share"], rng)
    flipped = np.zeros(len(learnt), bool)
    if known.matches is not None:
        flipped = _relabelled(learnt, known.matches).label != learnt.label
    if config["num_negatives"]:
        sizes = len(matching.resumes), len(matching.jobs)
        drawn = sample_negatives(rng, split.train, *sizes, config["num_negatives"])
        learnt, flipped = (
            concatenate([learnt, drawn]),
            np.append(flipped, np.zeros(len(drawn), bool)),
        )
    if config["noise_rate"]:
        learnt, changed = corrupt(rng, learnt, config["noise_rate"], config["noise_kind"])
        flipped = flipped ^ changed
    return Task(
        matching.resumes, matching.jobs, learnt, flipped, split.valid, split.test, interactions,
        known.skipped,
    )  # fmt: skip


def _relabelled(pairs: Pairs, matches: Bool[np.ndarray, "r j"]) -> Pairs:
    return dataclasses.replace(pairs, label=matches[pairs.resume, pairs.job])


def _set_apart(
    train: Pairs, share: float, rng: np.random.Generator
) -> tuple[Pairs, Int[np.ndarray, "m 2"]]:
    """The pairs to learn from, and a share of the positives as edges."""
    positive = rng.permutation(np.flatnonzero(train.positive))
    edges = np.isin(np.arange(len(train)), positive[: round(share * len(positive))])
    apart = train.take(edges)
    return train.take(~edges), np.stack([apart.resume, apart.job], axis=1)


def _esco(config: Mapping[str, Any], rng: np.random.Generator) -> Known:
    drawn = matching_esco.load(rng)
    return Known(drawn.matching, drawn.split)


def _generated(config: Mapping[str, Any], rng: np.random.Generator) -> Known:
    sizes = {name: config[name] for name in ("num_resumes", "num_jobs", "num_pairs")}
    corpus = matching_generated.generate(rng, **sizes)
    return Known(corpus.matching, None, corpus.matches)


def _tables(config: Mapping[str, Any], rng: np.random.Generator) -> Known:
    missing = [key for key in TABLES if not config[key]]
    if missing:
        raise ValueError(f"set --config.{missing[0]} to a .csv, .jsonl or .parquet file")
    paths = (config[key] for key in TABLES)
    reading = matching_files.read_tables(*paths, damaged=config["damaged"])
    return Known(reading.matching, reading.split, None, reading.skipped)


def _folder(config: Mapping[str, Any], rng: np.random.Generator) -> Known:
    folder = config["data_dir"] or os.environ.get("SCOREJAX_DATA_DIR", "")
    if not folder:
        raise ValueError("set --config.data_dir to the folder of the data set")
    reading = matching_files.read(folder, config["dataset"], damaged=config["damaged"])
    return Known(reading.matching, reading.split, None, reading.skipped)


DATASETS: dict[str, Callable[[Mapping[str, Any], np.random.Generator], Known]] = {
    "esco": _esco,
    "generated": _generated,
    "tables": _tables,
    **dict.fromkeys(matching_files.LAYOUTS, _folder),
}
"""By name: (config, rng) -> documents and pairs."""
