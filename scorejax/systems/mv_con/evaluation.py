# SPDX-License-Identifier: Apache-2.0
"""How well a model ranks held-out pairs, both ways, beside scores that need no training."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int

from scorejax.data.matching import Pairs
from scorejax.evaluate import ranking
from scorejax.evaluate.progress import Metric
from scorejax.report import Evaluation
from scorejax.systems.mv_con.corpus import Corpus
from scorejax.text import lexical
from scorejax.typing import PRNGKeyArray, PyTree, Variables

if TYPE_CHECKING:
    from scorejax.systems.mv_con.model import DocumentMatcher


def judged(
    model: "DocumentMatcher", pairs: Pairs
) -> tuple[Int[np.ndarray, "r"], Bool[np.ndarray, "r j"], Bool[np.ndarray, "r j"]]:
    """Resumes of positive pairs, the jobs that match each, and the jobs that it is judged on.

    Pairs that training has for positives, edges among them, are no candidates: they are known.
    """
    positive = pairs.take(pairs.positive)
    resumes = np.unique(positive.resume)
    shape = len(model.task.resumes), len(model.task.jobs)
    relevant, known = np.zeros(shape, bool), np.zeros(shape, bool)
    relevant[positive.resume, positive.job] = True
    train = model.task.train.take(model.task.train.positive)
    known[train.resume, train.job] = True
    known[tuple(model.task.interactions.T)] = True
    return resumes, relevant[resumes], ~(known & ~relevant)[resumes]


def matrices(
    model: "DocumentMatcher", variables: Variables, corpus: Corpus, resumes: Int[np.ndarray, "r"]
) -> dict[str, Float[np.ndarray, "r j"]]:
    """Probabilities of resumes with all jobs, by learner and their mean."""
    num_jobs = len(model.task.jobs)
    pairs = model.nodes(np.repeat(resumes, num_jobs), np.tile(np.arange(num_jobs), len(resumes)))
    scores = model.probabilities(variables, corpus, pairs)
    return {name: values.reshape(-1, num_jobs) for name, values in scores.items()}


def validation_metric(model: "DocumentMatcher") -> Metric:
    """Mean reciprocal rank of jobs for validation resumes: "mrr" by the mean score, and by view."""
    resumes, relevant, candidates = judged(model, model.task.valid)

    def metric(rng: PRNGKeyArray, variables: Variables, *frozen: PyTree) -> Evaluation:
        (corpus,) = frozen or (model.corpus,)
        found = {}
        for name, scores in matrices(model, variables, corpus, resumes).items():
            ranks = ranking.rank(scores, relevant, candidates=candidates)
            found[name] = float(np.nanmean(ranking.reciprocal_rank(ranks)))
        mean = found.pop("mean")
        return Evaluation({"mrr": mean, **{f"mrr_{name}": v for name, v in found.items()}}, {})

    return metric


def untrained(
    model: "DocumentMatcher", corpus: Corpus, resumes: Int[np.ndarray, "r"]
) -> dict[str, Float[np.ndarray, "r j"]]:
    """Scores by TF-IDF, BM25, and the cosine of the means of sentence vectors."""
    queries = [model.task.resumes.texts[i] for i in resumes]
    vectors = mean_directions(corpus)
    jobs = len(model.task.resumes) + np.arange(len(model.task.jobs))
    return {
        "tfidf": lexical.tfidf_scores(queries, model.task.jobs.texts),
        "bm25": lexical.bm25_scores(queries, model.task.jobs.texts),
        "cosine": vectors[resumes] @ vectors[jobs].T,
    }


def mean_directions(corpus: Corpus) -> Float[np.ndarray, "n d"]:
    """Means of the sentence vectors of each document, of length one."""
    total = np.sum(corpus.sentences, axis=1, where=np.asarray(corpus.mask)[..., None])
    return total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)


def ranking_metric(model: "DocumentMatcher") -> Metric:
    """Test pairs ranked both ways, with bootstrap intervals over resumes, or over jobs."""
    resumes, relevant, candidates = judged(model, model.task.test)

    def metric(rng: PRNGKeyArray, variables: Variables, *frozen: PyTree) -> Evaluation:
        (corpus,) = frozen or (model.corpus,)
        scores = matrices(model, variables, corpus, resumes)
        scores |= untrained(model, corpus, resumes)
        scalars = {}
        for name, matrix in scores.items():
            sides = ranking.two_sided(matrix, relevant, candidates=candidates)
            for side, found in sides.items():
                scalars[f"{side}/queries"] = float(found.num_queries)
                for key, interval in found.metrics.items():
                    scalars[f"{side}/{name}/{key}"] = interval.estimate
                    scalars[f"{side}/{name}/{key}_low"] = interval.low
                    scalars[f"{side}/{name}/{key}_high"] = interval.high
        return Evaluation(scalars, {})

    return metric


def noise_metric(model: "DocumentMatcher") -> Metric:
    """The training pairs that each learner's loss makes most doubtful, the table "noise".

    With planted noise, the share of wrong labels among as many pairs of largest loss.
    """
    task = model.task

    def metric(rng: PRNGKeyArray, variables: Variables, *frozen: PyTree) -> Evaluation:
        (corpus,) = frozen or (model.corpus,)
        train = task.train
        scores = model.probabilities(variables, corpus, model.nodes(train.resume, train.job))
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
                **{f"loss_{name}": round(float(v[i]), 4) for name, v in losses.items()},
            }
            for i in order
        ]
        return Evaluation(scalars, {}, {"noise": rows})

    return metric


def _cross_entropy(
    probability: Float[np.ndarray, "n"], label: Float[np.ndarray, "n"]
) -> Float[np.ndarray, "n"]:
    p = np.clip(probability.astype(np.float64), 1e-7, 1 - 1e-7)
    return -np.where(label > 0.5, np.log(p), np.log1p(-p))
