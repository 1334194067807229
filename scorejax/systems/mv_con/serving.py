# SPDX-License-Identifier: Apache-2.0
"""Ranks documents that training has not seen, both ways, and says what speaks for a match.

Candidates are the nearest documents by the means of their sentence vectors, found exactly; the
trained views rank those. A new document receives from known ones along the graph's keywords and
categories; one that shares none has the node vector of its own text, see `matching_graph.extend`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int

from scorejax import bregman
from scorejax.data.matching import Documents
from scorejax.data.matching_graph import extend
from scorejax.report import Table
from scorejax.systems.mv_con.corpus import Corpus
from scorejax.systems.mv_con.evaluation import mean_directions
from scorejax.text import lexical
from scorejax.typing import Variables

if TYPE_CHECKING:
    from scorejax.systems.mv_con.model import DocumentMatcher

NUM_TERMS = 5
SIDES = ("resume", "job")


def rank(
    model: "DocumentMatcher",
    variables: Variables,
    resumes: Documents,
    jobs: Documents,
    *,
    top: int,
    num_candidates: int,
) -> dict[str, Table]:
    """By side: for each resume the `top` best of its `num_candidates` jobs, and the other way.

    Rows have the probability of a match by each view and its mean, how far the views disagree, the
    terms that both documents share and those of the job that the resume lacks. All documents count
    as new, those of training too.
    Raises: ValueError unless there are resumes and jobs.
    """
    if not (len(resumes) and len(jobs)):
        raise ValueError(
            f"ranking needs resumes and jobs; got {len(resumes)} resumes and {len(jobs)} jobs"
        )
    corpus = corpus_of_new(model, resumes, jobs)
    documents = {"resume": resumes, "job": jobs}
    nodes = {"resume": corpus.resumes[-len(resumes) :], "job": corpus.jobs[-len(jobs) :]}
    vectors, terms = mean_directions(corpus), Terms(model.documents, resumes, jobs)
    probabilities, tables = model.scorer(variables, corpus), {}
    for side, other in (SIDES, SIDES[::-1]):
        near = nearest(vectors[nodes[side]], vectors[nodes[other]], num_candidates)
        pairs = {side: np.repeat(np.arange(len(near)), near.shape[1]), other: near.ravel()}
        scores = probabilities({s: nodes[s][pairs[s]] for s in SIDES})
        best = np.argsort(-scores["mean"].reshape(near.shape), axis=1, kind="stable")[:, :top]
        first = near.shape[1] * np.arange(len(near))
        tables[side] = [
            {side: documents[side].ids[pairs[side][i]], "rank": place}
            | {other: documents[other].ids[pairs[other][i]]}
            | {name: round(value, 6) for name, value in scored(scores, i).items()}
            | terms.of(pairs["resume"][i], pairs["job"][i])
            for row in first[:, None] + best
            for place, i in enumerate(row, start=1)
        ]
    return tables


def scored(scores: dict[str, np.ndarray], i: int) -> dict[str, float]:
    """The scores of a pair: the mean, that of each view, and how far the views are apart."""
    views = {f"score_{name}": float(v[i]) for name, v in scores.items() if name != "mean"}
    apart = max(views.values()) - min(views.values())
    return {"score": float(scores["mean"][i]), **views, "disagreement": apart}


def corpus_of_new(model: "DocumentMatcher", resumes: Documents, jobs: Documents) -> Corpus:
    """Arrays of new documents; behind those that the graph was built of, if there is a graph."""
    if model.rules is None:
        return model.corpus_of((resumes, jobs), None)
    graph = extend(model.graph, resumes, jobs)
    return model.corpus_of((*model.documents, resumes, jobs), graph)


def nearest(
    queries: Float[np.ndarray, "q d"], points: Float[np.ndarray, "n d"], num: int
) -> Int[np.ndarray, "q k"]:
    """Rows of the points of the largest cosines with each query; all have length 1, or 0.

    A vector of length 0, of a text without a known word, has the cosine 0 with all others.
    """
    index = bregman.build_index(_completed(points, 0), "squared_euclidean")
    return np.asarray(bregman.search(index, _completed(queries, 1), min(num, len(points))).ids)


def _completed(vectors: Float[np.ndarray, "n d"], column: int) -> Float[np.ndarray, "n d+2"]:
    """Vectors of length 1: zeros along a direction that no other has."""
    further = np.zeros((len(vectors), 2), vectors.dtype)
    further[~vectors.any(axis=1), column] = 1
    return np.concatenate([vectors, further], axis=1)


class Terms:
    """The words of new documents, weighed by how few known documents have them."""

    def __init__(self, known: Sequence[Documents], resumes: Documents, jobs: Documents) -> None:
        from sklearn.feature_extraction.text import CountVectorizer

        counter = CountVectorizer(analyzer=lexical.words, binary=True)
        texts = [text for kind in known for text in kind.texts]
        counter.fit([*texts, *resumes.texts, *jobs.texts])
        counts = counter.transform(texts)
        self._names = counter.get_feature_names_out()
        self._weights = np.log((1 + counts.shape[0]) / (1 + np.asarray(counts.sum(axis=0)).ravel()))
        self._of = {
            side: scipy.sparse.csr_array(counter.transform(kind.texts))
            for side, kind in (("resume", resumes), ("job", jobs))
        }

    def of(self, resume: int, job: int) -> dict[str, str]:
        """Terms of both documents, and those of the job alone, the rarest first."""
        has, asked = self._columns("resume", resume), self._columns("job", job)
        both, lacking = np.intersect1d(asked, has), np.setdiff1d(asked, has)
        return {"shared_terms": self._rarest(both), "missing_terms": self._rarest(lacking)}

    def _columns(self, side: str, row: int) -> np.ndarray:
        matrix = self._of[side]
        return matrix.indices[matrix.indptr[row] : matrix.indptr[row + 1]]

    def _rarest(self, columns: np.ndarray) -> str:
        order = np.argsort(-self._weights[columns], kind="stable")[:NUM_TERMS]
        return " ".join(self._names[columns[order]])
