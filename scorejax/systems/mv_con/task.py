# SPDX-License-Identifier: Apache-2.0
"""The matching task of a config: documents, pairs to learn from and to judge by, planted noise."""

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from scorejax.data import matching_esco, matching_files, matching_generated
from scorejax.data.digest import digest, digest_bytes
from scorejax.data.matching import (
    SPLITS,
    Documents,
    Matching,
    Pairs,
    Split,
    concatenate,
    corrupt,
    require_both_labels,
    sample_negatives,
)
from scorejax.data.matching_rows import DocumentColumns, PairColumns

TABLES = ("resumes", "jobs", "pairs")
"""Keys of the paths of the user's own three files, for the dataset "tables"."""
COLUMNS = (
    "id_column", "text_columns", "category_column",
    "resume_column", "job_column", "label_columns", "time_column",
)  # fmt: skip
"""Keys of the names of their columns: those of both files of documents, and of the pairs."""
JOB_COLUMNS = ("job_id_column", "job_text_columns", "job_category_column")
"""Keys of the names in the file of jobs; one that is missing or empty is that of both files."""


class Known(NamedTuple):
    """Documents and pairs; the published split, if there is one; all true matches, if planted."""

    matching: Matching
    split: Split | None = None
    matches: Bool[np.ndarray, "r j"] | None = None
    skipped: tuple[str, ...] = ()
    """A line for each row of a file that was left out."""
    groups: Int[np.ndarray, "r"] | None = None
    """Of resumes that are not independent."""


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """Documents, and pairs of them.

    `train` has noise in its labels: `flipped` says where, as far as it is known. `interactions`
    (m, 2) are further positives that may be edges of a graph, and are learnt from in no other way.
    """

    resumes: Documents
    jobs: Documents
    train: Pairs
    flipped: Bool[np.ndarray, "n"]
    valid: Pairs
    test: Pairs
    interactions: Int[np.ndarray, "m 2"]
    observed: Pairs
    """Pairs to learn from before noise was planted: what a ranking need not find."""
    matches: Bool[np.ndarray, "r j"] | None = None
    groups: Int[np.ndarray, "r"] | None = None
    """Of resumes that are not independent, such as those made from one occupation."""
    lists: Mapping[str, Pairs] = dataclasses.field(default_factory=dict)
    """Candidates of published test queries, see `data.matching.Split`."""

    def supervised(self) -> Int[np.ndarray, "p 2"]:
        """Resume and job of every pair with a label, whichever it is."""
        parts = self.train, self.valid, self.test, *self.lists.values()
        return np.concatenate([_rows(part) for part in parts])

    def documents_text(self) -> str:
        """All documents as JSON: ids, sentences and categories of the resumes, and of the jobs."""
        return json.dumps(
            [[kind.ids, kind.sentences, kind.categories] for kind in (self.resumes, self.jobs)]
        )

    def digests(self) -> dict[str, Int[np.ndarray, "32"]]:
        """SHA-256 of the documents, and of all pairs where there are any, 32 bytes each."""
        documents = {"documents": digest_bytes(self.documents_text().encode())}
        if not len(self.train):
            return documents
        parts = self.train, self.valid, self.test, *self.lists.values()
        arrays = [*map(_rows, parts), *(part.label for part in parts), self.interactions]
        return documents | {"pairs": digest(arrays)}


def make_task(config: Mapping[str, Any]) -> Task:
    """Reads or draws the documents and pairs; all draws follow from `split_seed`.

    Noise is planted in the observed labels, before positives are set apart as edges and before
    further negatives are drawn. Where all observed pairs are positive, it is planted among as many
    drawn negatives. Rows of files that are left out are listed on stderr.

    Raises: ValueError, one line, for what the data do not allow, or FileNotFoundError without them.
    """
    rng = np.random.default_rng(config["split_seed"])
    known = DATASETS[config["dataset"]](config, rng)
    for line in known.skipped:
        print(f"left out: {line}", file=sys.stderr, flush=True)
    matching, split, matches = known.matching, known.split, known.matches
    if split is None:
        split = SPLITS[config["split"]](matching, rng, config["valid_share"], config["test_share"])
    valid, test = split.valid, split.test
    for name, part in (("validation", valid), ("test", test)):
        if not part.positive.any():
            raise ValueError(f"the {name} part has no pair with label 1, and nothing to rank")
    observed = noisy = split.train
    flipped = np.zeros(len(noisy), bool)
    if config["noise_rate"]:
        if noisy.positive.all():
            drawn = _distinct(_negatives(rng, noisy, noisy, 1))
            noisy, flipped = concatenate([noisy, drawn]), np.zeros(len(noisy) + len(drawn), bool)
        noisy, flipped = corrupt(rng, noisy, config["noise_rate"], config["noise_kind"])
    apart = _set_apart(noisy, config["graph_share"], rng)
    learnt, flipped = noisy.take(~apart), flipped[~apart]
    if config["num_negatives"]:
        drawn = _negatives(rng, learnt, noisy, config["num_negatives"])
        learnt, flipped = concatenate([learnt, drawn]), np.pad(flipped, (0, len(drawn)))
    if matches is not None:  # What nobody saw is judged as it is.
        flipped = matches[learnt.resume, learnt.job] != learnt.positive
        valid, test = (
            dataclasses.replace(part, label=matches[part.resume, part.job])
            for part in (valid, test)
        )
    require_both_labels(learnt)
    return Task(
        matching.resumes, matching.jobs, learnt, flipped, valid, test, _rows(noisy.take(apart)),
        observed, matches, known.groups, split.lists,
    )  # fmt: skip


def _rows(pairs: Pairs) -> Int[np.ndarray, "n 2"]:
    return np.stack([pairs.resume, pairs.job], axis=1)


def _set_apart(pairs: Pairs, share: float, rng: np.random.Generator) -> Bool[np.ndarray, "n"]:
    """A share of the positives, which become edges."""
    positive = rng.permutation(np.flatnonzero(pairs.positive))
    return np.isin(np.arange(len(pairs)), positive[: round(share * len(positive))])


def _negatives(rng: np.random.Generator, learnt: Pairs, train: Pairs, num: int) -> Pairs:
    """`num` negatives for each positive to learn from, of documents and no positives of `train`.

    A document that occurs in none of its pairs would be known by its negatives alone.
    """
    resumes, jobs = np.unique(train.resume), np.unique(train.job)
    within = lambda pairs: Pairs(
        np.searchsorted(resumes, pairs.resume), np.searchsorted(jobs, pairs.job), pairs.label
    )
    sizes = len(resumes), len(jobs)
    drawn = sample_negatives(rng, within(learnt), *sizes, num, avoid=within(train))
    return Pairs(resumes[drawn.resume], jobs[drawn.job], drawn.label)


def _distinct(pairs: Pairs) -> Pairs:
    return pairs.take(np.unique(_rows(pairs), axis=0, return_index=True)[1])


def _esco(config: Mapping[str, Any], rng: np.random.Generator) -> Known:
    drawn = matching_esco.load(rng)
    occupation = np.zeros(len(drawn.matching.resumes), np.int32)
    occupation[drawn.matching.pairs.resume] = drawn.matching.pairs.job
    return Known(drawn.matching, drawn.split, groups=occupation)


def _generated(config: Mapping[str, Any], rng: np.random.Generator) -> Known:
    sizes = {name: config[name] for name in ("num_resumes", "num_jobs", "num_pairs")}
    corpus = matching_generated.generate(rng, **sizes)
    return Known(corpus.matching, None, corpus.matches)


def _tables(config: Mapping[str, Any], rng: np.random.Generator) -> Known:
    missing = [key for key in TABLES if not config[key]]
    if missing:
        raise ValueError(f"set --config.{missing[0]} to a .csv, .jsonl or .parquet file")
    of_both = config["id_column"], tuple(config["text_columns"]), config["category_column"]
    of_jobs = (config.get(key) for key in JOB_COLUMNS)
    of_jobs = (own or common for own, common in zip(of_jobs, of_both, strict=True))
    pairs = PairColumns(
        config["resume_column"], config["job_column"], tuple(config["label_columns"]),
        config["time_column"],
    )  # fmt: skip
    reading = matching_files.read_tables(
        *(config[key] for key in TABLES),
        resume_columns=DocumentColumns(*of_both),
        job_columns=DocumentColumns(*of_jobs),
        pair_columns=pairs,
        damaged=config["damaged"],
    )
    return Known(reading.matching, reading.split, skipped=reading.skipped)


def _folder(config: Mapping[str, Any], rng: np.random.Generator) -> Known:
    folder = config["data_dir"] or os.environ.get("SCOREJAX_DATA_DIR", "")
    if not folder:
        raise ValueError("set --config.data_dir to the folder of the data set")
    reading = matching_files.read(folder, config["dataset"], damaged=config["damaged"])
    return Known(reading.matching, reading.split, skipped=reading.skipped)


DATASETS: dict[str, Callable[[Mapping[str, Any], np.random.Generator], Known]] = {
    "esco": _esco,
    "generated": _generated,
    "tables": _tables,
    **dict.fromkeys(matching_files.LAYOUTS, _folder),
}
"""By name: (config, rng) -> documents and pairs."""
