# SPDX-License-Identifier: Apache-2.0
"""A planted corpus of resumes and jobs, whose true matches are known, with hidden positives.

A document has some of K latent skills and a level of seniority. Each of its sentences draws words
from the vocabulary of one of its skills and noise words, and one sentence tells the level. A resume
matches a job if it has a large enough fraction of the job's skills and at least its level. The
category of a document is its main skill. Some pairs with label 0 are matches that nobody saw.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Int, Shaped

from scorejax.choices import require
from scorejax.data.matching import Documents, Matching, Pairs

ONSETS, VOWELS, CODAS = "bdfgklmnprstvz", "aeiou", "lmnrst"
LEVELS = ("junior", "regular", "senior")
WORDS_PER_SENTENCE = 8


@dataclasses.dataclass(frozen=True, eq=False)
class PlantedCorpus:
    """Documents and observed pairs, and what is behind them."""

    matching: Matching
    matches: Bool[np.ndarray, "resumes jobs"]
    """All true matches."""
    hidden: Bool[np.ndarray, "n"]
    """Which pairs have label 0 though they match."""
    vocabularies: Shaped[np.ndarray, "k+1 w"]
    """Words of each skill, and in the last row those of the noise."""


def generate(
    rng: np.random.Generator,
    *,
    num_resumes: int = 200,
    num_jobs: int = 200,
    num_pairs: int = 2000,
    num_skills: int = 12,
    skills_per_document: int = 3,
    overlap: float = 0.6,
    hidden: float = 0.3,
    num_sentences: int = 8,
    words_per_skill: int = 20,
    noise: float = 0.4,
) -> PlantedCorpus:
    """Draws documents, and pairs of which half are positive.

    `overlap` is the least fraction of a job's skills in a matching resume, `hidden` the fraction of
    matches among the pairs with label 0, `noise` that of noise words. Resumes whose main skill is
    that of no job have no category.
    Raises: ValueError if an option is out of range, or there are too few matches for the pairs.
    """
    sizes = {"num_resumes": num_resumes, "num_jobs": num_jobs, "num_sentences": num_sentences}
    sizes |= {"words_per_skill": words_per_skill, "skills_per_document": skills_per_document}
    require(sizes, sizes, lambda n: n >= 1, "to be at least 1")
    require({"num_pairs": num_pairs}, ("num_pairs",), lambda n: n >= 2, "to be at least 2")
    enough = lambda n: n >= skills_per_document
    needs = f"to be at least {skills_per_document}, those of a document"
    require({"num_skills": num_skills}, ("num_skills",), enough, needs)
    shares = {"hidden": hidden, "noise": noise}
    require(shares, shares, lambda v: 0 <= v < 1, "to lie in [0, 1)")
    require({"overlap": overlap}, ("overlap",), lambda v: 0 < v <= 1, "to lie in (0, 1]")
    words = _words(rng, (num_skills + 1) * words_per_skill)
    vocabularies = words.reshape(num_skills + 1, words_per_skill)
    resumes, jobs = (
        _draw_profiles(rng, num, num_skills, skills_per_document) for num in (num_resumes, num_jobs)
    )
    matches = _matches(resumes, jobs, num_skills, overlap)
    pairs, unseen = _draw_pairs(rng, matches, num_pairs, hidden)
    known = {f"skill{skills[0]}" for skills in jobs.skills}
    text = {"num_sentences": num_sentences, "noise": noise}
    documents = [
        _write(rng, kind, profiles, vocabularies, known, **text)
        for kind, profiles in (("resume", resumes), ("job", jobs))
    ]
    return PlantedCorpus(Matching(*documents, pairs), matches, unseen, vocabularies)


@dataclasses.dataclass(frozen=True, eq=False)
class _Profiles:
    """Skills of each document, the main one first, and its level."""

    skills: Int[np.ndarray, "n k"]
    level: Int[np.ndarray, "n"]


def _words(rng: np.random.Generator, num: int) -> np.ndarray:
    """Distinct made-up words of two syllables and a last letter."""
    syllables = [onset + vowel for onset in ONSETS for vowel in VOWELS]
    codes = rng.permutation(len(syllables) ** 2 * len(CODAS))[:num]
    if len(codes) < num:
        raise ValueError(f"vocabularies need at most {len(codes)} words in all; got {num}")
    pairs, last = np.divmod(codes, len(CODAS))
    first, second = np.divmod(pairs, len(syllables))
    parts = zip(first, second, last, strict=True)
    return np.array([syllables[i] + syllables[j] + CODAS[k] for i, j, k in parts])


def _draw_profiles(
    rng: np.random.Generator, num: int, num_skills: int, skills_per_document: int
) -> _Profiles:
    skills = rng.permuted(np.tile(np.arange(num_skills), (num, 1)), axis=1)
    return _Profiles(skills[:, :skills_per_document], rng.integers(len(LEVELS), size=num))


def _matches(
    resumes: _Profiles, jobs: _Profiles, num_skills: int, overlap: float
) -> Bool[np.ndarray, "resumes jobs"]:
    has = [np.eye(num_skills)[profiles.skills].sum(axis=1) for profiles in (resumes, jobs)]
    shared = has[0] @ has[1].T / has[1].sum(axis=1)[None]
    return (shared >= overlap - 1e-9) & (resumes.level[:, None] >= jobs.level[None])


def _draw_pairs(
    rng: np.random.Generator, matches: np.ndarray, num_pairs: int, hidden: float
) -> tuple[Pairs, Bool[np.ndarray, "n"]]:
    true, false = (rng.permutation(np.flatnonzero(m)) for m in (matches, ~matches))
    num_positives = num_pairs // 2
    num_hidden = round(hidden * (num_pairs - num_positives))
    num_false = num_pairs - num_positives - num_hidden
    if len(true) < num_positives + num_hidden or len(false) < num_false:
        raise ValueError(
            f"{num_pairs} pairs need {num_positives + num_hidden} matches and {num_false} others; "
            f"the documents have {len(true)} and {len(false)}"
        )
    cells = np.concatenate([true[: num_positives + num_hidden], false[:num_false]])
    order = rng.permutation(num_pairs)
    resume, job = np.unravel_index(cells[order], matches.shape)
    pairs = Pairs(resume, job, order < num_positives)
    return pairs, (order >= num_positives) & (order < num_positives + num_hidden)


def _write(
    rng: np.random.Generator,
    kind: str,
    profiles: _Profiles,
    vocabularies: np.ndarray,
    known: set[str],
    *,
    num_sentences: int,
    noise: float,
) -> Documents:
    """Documents with a sentence for the level, and others about their skills in turn."""
    documents, categories = [], []
    for skills, level in zip(profiles.skills, profiles.level, strict=True):
        about = skills[np.arange(num_sentences) % len(skills)]
        noisy = rng.random((num_sentences, WORDS_PER_SENTENCE)) < noise
        rows = np.where(noisy, len(vocabularies) - 1, about[:, None])
        words = vocabularies[rows, rng.integers(vocabularies.shape[1], size=rows.shape)]
        documents.append((f"{LEVELS[level]} level", *(" ".join(row) for row in words)))
        category = f"skill{skills[0]}"
        categories.append(category if category in known else "")
    ids = tuple(f"{kind}{i}" for i in range(len(documents)))
    return Documents(ids, tuple(documents), tuple(categories))
