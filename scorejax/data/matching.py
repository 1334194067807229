# SPDX-License-Identifier: Apache-2.0
"""Resumes, jobs and labelled pairs of them: checks, splits, sampled negatives, planted noise.

A pair is positive (label 1) if the two match, by an interview or a hire, and negative (label 0) if
they do not, or if all that is known is that they did not meet. Rows number documents from 0.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from scorejax.choices import choose, require, require_known

SIDES = ("job", "resume", "both")


@dataclasses.dataclass(frozen=True)
class Documents:
    """Documents of one kind, each a tuple of sentences; a category "" stands for none.

    Raises: ValueError, one line, for an id that occurs twice, a document without text, or lengths
    that differ.
    """

    ids: tuple[str, ...]
    sentences: tuple[tuple[str, ...], ...]
    categories: tuple[str, ...] = ()
    """One of each document; left out, no document has one."""

    def __post_init__(self) -> None:
        if not self.categories:
            object.__setattr__(self, "categories", ("",) * len(self.ids))
        lengths = len(self.ids), len(self.sentences), len(self.categories)
        if len(set(lengths)) > 1:
            raise ValueError(
                "documents need an id, sentences and a category each; got {} ids, {} lists of "
                "sentences and {} categories".format(*lengths)
            )
        first: dict[str, int] = {}
        for row, (name, sentences) in enumerate(zip(self.ids, self.sentences, strict=True)):
            if first.setdefault(name, row) != row:
                raise ValueError(
                    f"documents need unique ids; {name!r} is the id of rows {first[name]} and {row}"
                )
            if not any(sentence.strip() for sentence in sentences):
                raise ValueError(f"documents need text; {name!r}, row {row}, is empty")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def texts(self) -> tuple[str, ...]:
        """The sentences of each document, joined by blanks."""
        return tuple(" ".join(sentences) for sentences in self.sentences)

    @property
    def rows(self) -> dict[str, int]:
        """The row of each id."""
        return {name: row for row, name in enumerate(self.ids)}


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
    """n pairs: row of the resume, row of the job, label 0 or 1, and a time in any unit if known.

    Raises: ValueError, one line, if lengths differ or a value is out of range.
    """

    resume: Int[np.ndarray, "n"]
    job: Int[np.ndarray, "n"]
    label: Float[np.ndarray, "n"]
    time: Float[np.ndarray, "n"] | None = None

    def __post_init__(self) -> None:
        types = {"resume": np.int32, "job": np.int32, "label": np.float32, "time": np.float64}
        for field, dtype in types.items():
            values = getattr(self, field)
            if values is None and field == "time":
                continue
            values = np.asarray(values)
            if values.ndim != 1 or len(values) != len(self.resume):
                raise ValueError(f"pairs need arrays (n,); {field} has shape {values.shape}")
            object.__setattr__(self, field, values.astype(dtype))
        self._require("label", np.isin(self.label, (0, 1)), "to be 0 or 1")
        self._require("resume", self.resume >= 0, "to be a row of a resume")
        self._require("job", self.job >= 0, "to be a row of a job")
        if self.time is not None:
            self._require("time", np.isfinite(self.time), "to be finite")

    def _require(self, field: str, holds: Bool[np.ndarray, "n"], needs: str) -> None:
        if not holds.all():
            row = int(np.argmin(holds))
            raise ValueError(
                f"{field} of pair {row} needs {needs}; got {getattr(self, field)[row]}"
            )

    def __len__(self) -> int:
        return len(self.resume)

    @property
    def positive(self) -> Bool[np.ndarray, "n"]:
        return self.label == 1

    def take(self, which: Int[np.ndarray, "m"] | Bool[np.ndarray, "n"]) -> "Pairs":
        """The pairs at some positions, or where a mask is true."""
        time = None if self.time is None else self.time[which]
        return Pairs(self.resume[which], self.job[which], self.label[which], time)


def concatenate(parts: Sequence[Pairs]) -> Pairs:
    """All pairs of several parts, in order; times are dropped unless each part has them."""
    timed = all(part.time is not None for part in parts)
    fields = ("resume", "job", "label") + ("time",) * timed
    return Pairs(*(np.concatenate([getattr(p, field) for p in parts]) for field in fields))


@dataclasses.dataclass(frozen=True, eq=False)
class Matching:
    """Resumes, jobs, and pairs of rows of the two.

    Raises: ValueError, one line, if a side is empty, a pair is of a document that is not there, no
    pair is positive, a pair is labelled 0 and 1, or a resume has a category without jobs while jobs
    have categories.
    """

    resumes: Documents
    jobs: Documents
    pairs: Pairs

    def __post_init__(self) -> None:
        for side, documents in (("resume", self.resumes), ("job", self.jobs)):
            if not len(documents):
                raise ValueError(f"matching needs resumes and jobs; there is no {side}")
            rows = getattr(self.pairs, side)
            if len(rows) and rows.max() >= len(documents):
                raise ValueError(
                    f"pairs need rows of {len(documents)} {side}s; pair {rows.argmax()} has "
                    f"{side} {rows.max()}"
                )
        if not self.pairs.positive.any():
            raise ValueError(f"pairs need positives; none of {len(self.pairs)} has label 1")
        self._require_one_label()
        known = set(self.jobs.categories) - {""}
        for name, category in zip(self.resumes.ids, self.resumes.categories, strict=True):
            if category and known and category not in known:
                raise ValueError(f"category {category!r} of resume {name!r} is one without jobs")

    def _require_one_label(self) -> None:
        keys = _keys(self.pairs.resume, self.pairs.job, len(self.jobs))
        both = np.intersect1d(keys[self.pairs.positive], keys[~self.pairs.positive])
        if len(both):
            resume, job = divmod(int(both[0]), len(self.jobs))
            raise ValueError(
                f"pairs need one label each; resume {self.resumes.ids[resume]!r} and job "
                f"{self.jobs.ids[job]!r} have 0 and 1, one of {len(both)} such pairs"
            )


def require_both_labels(pairs: Pairs) -> None:
    """Raises ValueError unless there are positive and negative pairs."""
    num = int(pairs.positive.sum())
    if not num or num == len(pairs):
        remedy = "; sample_negatives draws others" if num else ""
        raise ValueError(f"pairs need both labels; {num} of {len(pairs)} are positive{remedy}")


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Pairs to learn from, to choose by, and to report on.

    `lists` are, by the side of their queries, "resume" or "job", candidates among which each query
    of a published test is ranked, with their labels.
    """

    train: Pairs
    valid: Pairs
    test: Pairs
    lists: Mapping[str, Pairs] = dataclasses.field(default_factory=dict)


def split_by_time(matching: Matching, rng: np.random.Generator, valid: float, test: float) -> Split:
    """Learns from the past: the latest fraction `test` of the pairs is tested, `valid` before it.

    Pairs of one time stay together, in the later part. `rng` draws nothing here.
    Raises: ValueError unless pairs have times, fractions are possible and no part remains empty.
    """
    del rng
    pairs = matching.pairs
    if pairs.time is None:
        raise ValueError("a split by time needs the time of each pair; there is none")
    num = len(pairs)
    num_valid, num_test = _sizes(num, valid, test, "pairs")
    ordered = np.sort(pairs.time)
    first_valid, first_test = ordered[num - num_test - num_valid], ordered[num - num_test]
    return _parts(pairs, pairs.time >= first_valid, pairs.time >= first_test, valid)


def split_by_resume(
    matching: Matching, rng: np.random.Generator, valid: float, test: float
) -> Split:
    """Tests new resumes: fractions of the resumes that have pairs, each with all its pairs.

    Raises: ValueError unless fractions are possible and no part remains empty.
    """
    return _split_groups(matching.pairs, matching.pairs.resume, rng, valid, test, "resumes")


def split_by_job(matching: Matching, rng: np.random.Generator, valid: float, test: float) -> Split:
    """Tests new jobs: fractions of the jobs that have pairs, each with all its pairs.

    Raises: ValueError unless fractions are possible and no part remains empty.
    """
    return _split_groups(matching.pairs, matching.pairs.job, rng, valid, test, "jobs")


def split_random(matching: Matching, rng: np.random.Generator, valid: float, test: float) -> Split:
    """Fractions of the pairs, wherever their documents are. Raises: as `split_by_job`."""
    groups = np.arange(len(matching.pairs))
    return _split_groups(matching.pairs, groups, rng, valid, test, "pairs")


SPLITS: dict[str, Callable[[Matching, np.random.Generator, float, float], Split]] = {
    "time": split_by_time,
    "resume": split_by_resume,
    "job": split_by_job,
    "random": split_random,
}


def _split_groups(
    pairs: Pairs, groups: np.ndarray, rng: np.random.Generator, valid: float, test: float, kind: str
) -> Split:
    present = rng.permutation(np.unique(groups))
    num_valid, num_test = _sizes(len(present), valid, test, kind)
    tested = np.isin(groups, present[:num_test])
    return _parts(pairs, np.isin(groups, present[: num_test + num_valid]), tested, valid)


def _sizes(num: int, valid: float, test: float, kind: str) -> tuple[int, int]:
    if not (valid >= 0 and test > 0 and valid + test < 1):
        raise ValueError(
            f"a split needs valid >= 0, test > 0 and valid + test < 1; got {valid} and {test}"
        )
    sizes = (max(1, round(valid * num)) if valid else 0), max(1, round(test * num))
    if sum(sizes) >= num:
        raise ValueError(f"a split into three needs more than {num} {kind}")
    return sizes


def _parts(
    pairs: Pairs, held: Bool[np.ndarray, "n"], tested: Bool[np.ndarray, "n"], valid: float
) -> Split:
    split = Split(pairs.take(~held), pairs.take(held & ~tested), pairs.take(tested))
    if not len(split.train) or (valid and not len(split.valid)):
        empty = "valid" if len(split.train) else "train"
        raise ValueError(f"the {empty} part is empty; too many of {len(pairs)} pairs have one time")
    return split


def sample_negatives(
    rng: np.random.Generator,
    pairs: Pairs,
    num_resumes: int,
    num_jobs: int,
    per_positive: int,
    side: str = "job",
    *,
    avoid: Pairs | None = None,
) -> Pairs:
    """Draws `per_positive` pairs with label 0 for each positive one, which lends them its time.

    The job (or resume) is replaced by one drawn uniformly from all that make no positive pair; with
    "both", a coin decides which. Draws are independent and may repeat, and are no positives of
    `avoid` either. Pass pairs to learn from alone: whoever excludes the positives of a test tells
    them.
    Raises: ValueError if a document has no other that it does not match.
    """
    require_known("side", side, SIDES)
    require({"per_positive": per_positive}, ("per_positive",), lambda n: n >= 1, "to be at least 1")
    positives = pairs.take(pairs.positive)
    others = positives.take(slice(0)) if avoid is None else avoid.take(avoid.positive)
    taken = np.unique(
        np.concatenate([_keys(p.resume, p.job, num_jobs) for p in (positives, others)])
    )
    _require_others(taken // num_jobs, num_jobs, "resume", "job", side)
    _require_others(taken % num_jobs, num_resumes, "job", "resume", side)
    drawn = positives.take(np.repeat(np.arange(len(positives)), per_positive))
    resume, job = drawn.resume.copy(), drawn.job.copy()
    swaps_job = rng.random(len(drawn)) < {"job": 1, "resume": 0, "both": 0.5}[side]
    left = np.arange(len(drawn))
    while len(left):  # Each round leaves the draws that hit a positive pair.
        of_job, of_resume = left[swaps_job[left]], left[~swaps_job[left]]
        job[of_job] = rng.integers(num_jobs, size=len(of_job))
        resume[of_resume] = rng.integers(num_resumes, size=len(of_resume))
        left = left[np.isin(_keys(resume[left], job[left], num_jobs), taken)]
    return Pairs(resume, job, np.zeros(len(drawn)), drawn.time)


def _require_others(rows: np.ndarray, num_others: int, kind: str, other: str, side: str) -> None:
    if side not in (other, "both") or not len(rows):
        return
    counts = np.bincount(rows)
    if counts.max() >= num_others:
        raise ValueError(
            f"negatives need a {other} that does not match; {kind} {counts.argmax()} matches all "
            f"{num_others}"
        )


def _keys(resume: np.ndarray, job: np.ndarray, num_jobs: int) -> Int[np.ndarray, "n"]:
    """One number for each pair of rows."""
    return resume.astype(np.int64) * num_jobs + job


def corrupt(
    rng: np.random.Generator, pairs: Pairs, rate: float, kind: str = "symmetric"
) -> tuple[Pairs, Bool[np.ndarray, "n"]]:
    """Flips labels, and says which; the numbers of flips are exact up to rounding.

    "symmetric" flips a fraction `rate` of all labels. "asymmetric" hides positives among the
    negatives, as unseen matches hide among sampled ones: a fraction `rate` of the pairs that have
    label 0 afterwards are matches, as in arXiv:2009.13299, and label 1 is never wrong.
    Raises: ValueError unless 0 <= rate < 1, there are both labels, and enough positives to hide.
    """
    count = choose("kind of noise", kind, {"symmetric": _all_rows, "asymmetric": _hidden})
    require({"rate": rate}, ("rate",), lambda value: 0 <= value < 1, "to lie in [0, 1)")
    require_both_labels(pairs)
    candidates, num = count(pairs, rate)
    flipped = np.zeros(len(pairs), bool)
    flipped[rng.choice(candidates, num, replace=False)] = True
    label = np.where(flipped, 1 - pairs.label, pairs.label)
    return dataclasses.replace(pairs, label=label), flipped


def _all_rows(pairs: Pairs, rate: float) -> tuple[np.ndarray, int]:
    return np.arange(len(pairs)), round(rate * len(pairs))


def _hidden(pairs: Pairs, rate: float) -> tuple[np.ndarray, int]:
    positives = np.flatnonzero(pairs.positive)
    num_negatives = len(pairs) - len(positives)
    num = round(rate / (1 - rate) * num_negatives)
    if num >= len(positives):
        raise ValueError(
            f"asymmetric noise of rate {rate} among {num_negatives} negatives takes {num} "
            f"positives; {len(positives)} allow a rate below {len(positives) / len(pairs):.3f}"
        )
    return positives, num
