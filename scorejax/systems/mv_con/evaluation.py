# SPDX-License-Identifier: Apache-2.0
"""How well a model ranks held-out pairs, both ways, beside scores that need no training."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from scorejax.data.matching import Pairs
from scorejax.evaluate import ranking
from scorejax.evaluate.chunks import joined
from scorejax.evaluate.progress import Metric
from scorejax.report import Evaluation
from scorejax.systems.mv_con.corpus import Corpus
from scorejax.systems.mv_con.task import Task
from scorejax.text import lexical
from scorejax.typing import PRNGKeyArray, PyTree, Variables

if TYPE_CHECKING:
    from scorejax.systems.mv_con.model import DocumentMatcher

PAIRS_LISTED = 2**22
"""Pairs of resumes and jobs whose numbers are in memory together, about 30 bytes for each."""
MOST_VALIDATED = 1000
"""Resumes that are ranked in training."""


class Judged(NamedTuple):
    """Resumes of a held-out part, which jobs match them, and which pairs are judged at all."""

    resumes: Int[np.ndarray, "r"]
    relevant: Bool[np.ndarray, "r j"]
    candidates: Bool[np.ndarray, "r j"]

    def first(self, num: int) -> "Judged":
        """The first `num` resumes."""
        return Judged(*(array[:num] for array in self))


def judged(task: Task, pairs: Pairs, *others: Pairs) -> Judged:
    """The resumes of `pairs`, positive or not, with all jobs.

    Where all matches are known, all of them are relevant. Observed positives to learn from, and
    those of `others`, are no candidates: nobody needs to find them.
    """
    resumes = np.unique(pairs.resume)

    def positives(part: Pairs) -> tuple[np.ndarray, np.ndarray]:
        """Rows among `resumes` and jobs of the positive pairs of them."""
        found = part.take(part.positive & np.isin(part.resume, resumes))
        return np.searchsorted(resumes, found.resume), found.job

    known = np.zeros((len(resumes), len(task.jobs)), bool)
    if task.matches is None:
        relevant = np.zeros_like(known)
        relevant[positives(pairs)] = True
    else:
        relevant = task.matches[resumes]
    for part in (task.observed, *others):
        known[positives(part)] = True
    known[positives(pairs)] = False
    return Judged(resumes, relevant & ~known, ~known)


def matrices(
    model: "DocumentMatcher", variables: Variables, corpus: Corpus, resumes: Int[np.ndarray, "r"]
) -> dict[str, Float[np.ndarray, "r j"]]:
    """Probabilities of resumes with all jobs, by learner and their mean.

    Of about `PAIRS_LISTED` pairs the numbers are in memory at a time, beside the results.
    """
    jobs, score, blocks = np.arange(len(model.task.jobs)), model.scorer(variables, corpus), []
    # Blocks of nearly one size: pairs of a small last one would be compiled anew.
    for some in np.array_split(resumes, -(-len(resumes) * len(jobs) // PAIRS_LISTED)):
        pairs = model.nodes(np.repeat(some, len(jobs)), np.tile(jobs, len(some)))
        blocks.append({k: v.reshape(len(some), len(jobs)) for k, v in score(pairs).items()})
    return joined(blocks)


def validation_metric(model: "DocumentMatcher") -> Metric:
    """Mean reciprocal rank of jobs for validation resumes: "mrr" by the mean score, and by view.

    Of many resumes the first `MOST_VALIDATED` are ranked.
    """
    part = judged(model.task, model.task.valid, model.task.test).first(MOST_VALIDATED)

    def metric(rng: PRNGKeyArray, variables: Variables, *frozen: PyTree) -> Evaluation:
        found = {}
        scores = matrices(model, variables, model.given(*frozen), part.resumes)
        for name, matrix in scores.items():
            ranks = ranking.rank(matrix, part.relevant, candidates=part.candidates)
            found[name] = float(np.nanmean(ranking.reciprocal_rank(ranks)))
        mean = found.pop("mean")
        return Evaluation({"mrr": mean, **{f"mrr_{name}": v for name, v in found.items()}}, {})

    return metric


def untrained(
    model: "DocumentMatcher", corpus: Corpus, resumes: Int[np.ndarray, "r"]
) -> Iterator[tuple[str, str, Float[np.ndarray, "q d"]]]:
    """Side, name and scores by TF-IDF, BM25, and the cosine of the means of sentence vectors.

    Those of words differ by side: a query is looked up among documents, whose words are counted.
    One matrix is in memory at a time.
    """
    vectors = mean_directions(corpus)
    jobs = len(model.task.resumes) + np.arange(len(model.task.jobs))
    both = vectors[resumes], vectors[jobs]
    of_resumes = model.task.resumes.texts
    texts = [of_resumes[i] for i in resumes], model.task.jobs.texts
    for side, order in (("resume", 1), ("job", -1)):
        queries, documents = texts[::order]
        yield side, "tfidf", lexical.tfidf_scores(queries, documents)
        yield side, "bm25", lexical.bm25_scores(queries, documents)
        first, second = both[::order]
        yield side, "cosine", first @ second.T


def mean_directions(corpus: Corpus) -> Float[np.ndarray, "n d"]:
    """Means of the sentence vectors of each document, of length one."""
    total = np.sum(corpus.sentences, axis=1, where=np.asarray(corpus.mask)[..., None])
    return total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)


def ranking_metric(model: "DocumentMatcher") -> Metric:
    """Test resumes with all jobs, and all jobs with test resumes, with bootstrap intervals.

    They are over groups of resumes, where the task has them, or over jobs.
    """
    task = model.task
    part = judged(task, task.test, task.valid)
    groups = None if task.groups is None else task.groups[part.resumes]

    def metric(rng: PRNGKeyArray, variables: Variables, *frozen: PyTree) -> Evaluation:
        corpus = model.given(*frozen)
        judge = {
            "resume": functools.partial(
                ranking.evaluate,
                relevant=part.relevant,
                candidates=part.candidates,
                groups=groups,
            ),
            "job": functools.partial(
                ranking.evaluate, relevant=part.relevant.T, candidates=part.candidates.T
            ),
        }
        scalars = {}
        for side, name, matrix in untrained(model, corpus, part.resumes):
            scalars |= _scalars(f"{side}/{name}", judge[side](matrix))
        for name, matrix in matrices(model, variables, corpus, part.resumes).items():
            scalars |= _scalars(f"resume/{name}", judge["resume"](matrix))
            scalars |= _scalars(f"job/{name}", judge["job"](matrix.T))
        return Evaluation(scalars | _listed_scalars(model, variables, corpus), {})

    return metric


def _listed_scalars(
    model: "DocumentMatcher", variables: Variables, corpus: Corpus
) -> dict[str, float]:
    """Metrics of queries among the candidates that a published test lists for them."""
    lists, scalars = model.task.lists, {}
    if not lists:
        return scalars
    score = model.scorer(variables, corpus)
    resumes = np.unique(np.concatenate([pairs.resume for pairs in lists.values()]))
    for side, name, matrix in untrained(model, corpus, resumes):
        if side in lists:
            places = np.searchsorted(resumes, lists[side].resume), lists[side].job
            values = matrix[places if side == "resume" else places[::-1]]
            scalars |= _scalars(f"listed/{side}/{name}", rank_listed(side, lists[side], values))
    for side, pairs in lists.items():
        for name, values in score(model.nodes(pairs.resume, pairs.job)).items():
            scalars |= _scalars(f"listed/{side}/{name}", rank_listed(side, pairs, values))
    return scalars


def rank_listed(side: str, pairs: Pairs, scores: Float[np.ndarray, "n"]) -> ranking.Ranking:
    """Ranks the listed candidates of each query, which are those of one document of a side."""
    _, query = np.unique(getattr(pairs, side), return_inverse=True)
    order = np.argsort(query, kind="stable")
    starts = np.searchsorted(query[order], query[order])
    column = np.empty(len(query), int)
    column[order] = np.arange(len(query)) - starts
    arrays = np.zeros((3, query.max() + 1, column.max() + 1))
    arrays[:, query, column] = scores, pairs.positive, np.ones(len(query))
    return ranking.evaluate(arrays[0], arrays[1] > 0, candidates=arrays[2] > 0)


def _scalars(prefix: str, found: ranking.Ranking) -> dict[str, float]:
    scalars = {f"{prefix}/queries": float(found.num_queries)}
    for name, interval in found.metrics.items():
        scalars[f"{prefix}/{name}"] = interval.estimate
        scalars[f"{prefix}/{name}_low"] = interval.low
        scalars[f"{prefix}/{name}_high"] = interval.high
    return scalars


def noise_metric(model: "DocumentMatcher") -> Metric:
    """Training pairs by the loss of the trained views, the most doubtful first: the table "noise".

    With known noise it says whether a label is wrong, and the scalars are the share of wrong labels
    among as many pairs of largest loss as there are.
    """
    task = model.task

    def metric(rng: PRNGKeyArray, variables: Variables, *frozen: PyTree) -> Evaluation:
        train = task.train
        scores = model.probabilities(
            variables, model.given(*frozen), model.nodes(train.resume, train.job)
        )
        losses = {name: _cross_entropy(p, train.label) for name, p in scores.items()}
        order = np.argsort(-losses["mean"], kind="stable")
        scalars, num = {}, int(task.flipped.sum())
        if num:
            found = {name: task.flipped[np.argsort(-v)[:num]].mean() for name, v in losses.items()}
            scalars = {f"noise/{name}/precision": float(v) for name, v in found.items()}
            scalars["noise/flipped"] = num / len(train)
        rows = [
            {
                "resume": task.resumes.ids[train.resume[i]],
                "job": task.jobs.ids[train.job[i]],
                "label": int(train.label[i]),
                **({"wrong": int(task.flipped[i])} if num else {}),
                **{f"loss_{name}": round(float(v[i]), 4) for name, v in losses.items()},
            }
            for i in order
        ]
        return Evaluation(scalars, {}, {"noise": rows})

    return metric


def selection_curves(
    records: Sequence[Mapping[str, float | None]], views: Sequence[str]
) -> dict[str, tuple[np.ndarray, dict[str, np.ndarray]]]:
    """By view, steps (n,), and at each the share of true labels among the rows it learnt from.

    "weighed by the peer" counts rows by their weight, "all rows" does not. Records are those of a
    run's metrics file; one without a finite share, or of an evaluation, is left out.
    """
    curves = {}
    for view in views:
        names = {"weighed by the peer": f"train/clean_{view}", "all rows": f"train/true_{view}"}
        kept = [r for r in records if None not in map(r.get, names.values())]
        steps = np.array([record["step"] for record in kept], int)
        shares = {label: np.array([r[name] for r in kept]) for label, name in names.items()}
        curves[view] = steps, shares
    return curves


def selection_pictures(
    model: "DocumentMatcher", records: Sequence[Mapping[str, float | None]]
) -> dict[str, np.ndarray]:
    """The `selection_curves` of two views that teach each other, "selection_<view>" of each.

    A level line is the share of true labels among all pairs. There are no pictures without two
    views, known noise and records.
    """
    views, wrong = tuple(model.learners.learners), float(model.task.flipped.mean())
    if len(views) < 2 or not wrong:
        return {}
    from scorejax.evaluate.pictures import curve_picture  # Imported here: it takes a second.

    drawn = {}
    for view, (steps, shares) in selection_curves(records, views).items():
        if len(steps):
            title = f"{view} view: {wrong:.1%} of all labels to learn from are wrong"
            shares["all pairs"] = np.full(len(steps), 1 - wrong)
            options = {"ylabel": "share of true labels", "title": title}
            drawn[f"selection_{view}"] = curve_picture(steps, shares, **options)
    return drawn


def _cross_entropy(
    probability: Float[np.ndarray, "n"], label: Float[np.ndarray, "n"]
) -> Float[np.ndarray, "n"]:
    p = np.clip(probability.astype(np.float64), 1e-7, 1 - 1e-7)
    return -np.where(label > 0.5, np.log(p), np.log1p(-p))
