# SPDX-License-Identifier: Apache-2.0
"""Ranks documents that training has not seen, both ways, and says what speaks for a match.

Candidates are the nearest documents by the means of their sentence vectors, found exactly; the
trained views rank those. A new document receives from known ones along the graph's keywords and
categories; one that shares none has the node vector of its own text, see `matching_graph.extend`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

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
    from scorejax.systems.mv_con.model import CoTeaching

NUM_TERMS = 5
SIDES = ("resume", "job")


def match(
    model: "CoTeaching",
    variables: Variables,
    resumes: Documents,
    jobs: Documents,
    *,
    top: int,
    num_candidates: int,
) -> dict[str, Table]:
    """By side: for each resume the `top` best of its `num_candidates` jobs, and the other way.

    Rows have the probability of a match by each view and its mean, how far the views disagree, the
    terms that both documents share and those of the job that the resume lacks.
    """
    corpus = corpus_of_new(model, resumes, jobs)
    nodes = corpus.resumes[-len(resumes) :], corpus.jobs[-len(jobs) :]
    vectors = mean_directions(corpus)
    terms = Terms(model.documents, resumes, jobs)
    tables = {}
    for side in SIDES:
        own, others = (nodes if side == "resume" else nodes[::-1])
        near = nearest(vectors[own], vectors[others], num_candidates)
        queries = np.repeat(np.arange(len(own)), near.shape[1])
        found = {"resume": queries, "job": near.ravel()}
        if side == "job":
            found = {"resume": near.ravel(), "job": queries}
        pairs = {"resume": nodes[0][found["resume"]], "job": nodes[1][found["job"]]}
        scores = model.probabilities(variables, corpus, pairs)
        order = np.argsort(-scores["mean"].reshape(near.shape), axis=1, kind="stable")[:, :top]
        places = order + near.shape[1] * np.arange(len(own))[:, None]
        ids = {"resume": resumes.ids, "job": jobs.ids}
        tables[side] = [
            _row(side, place + 1, found, i, ids, scores, terms)
            for row in places
            for place, i in enumerate(row)
        ]
    return tables


def _row(
    side: str,
    rank: int,
    found: dict[str, np.ndarray],
    i: int,
    ids: dict[str, Sequence[str]],
    scores: dict[str, np.ndarray],
    terms: "Terms",
) -> dict[str, Any]:
    """A line of the table: a pair and its scores; the document that is ranked for comes first."""
    other = SIDES[1 - SIDES.index(side)]
    views = {name: float(values[i]) for name, values in scores.items() if name != "mean"}
    shared, missing = terms.of(found["resume"][i], found["job"][i])
    return {
        side: ids[side][found[side][i]],
        "rank": rank,
        other: ids[other][found[other][i]],
        "score": round(float(scores["mean"][i]), 6),
        **{f"score_{name}": round(value, 6) for name, value in views.items()},
        "disagreement": round(max(views.values()) - min(views.values()), 6),
        "shared_terms": " ".join(shared),
        "missing_terms": " ".join(missing),
    }


def corpus_of_new(model: "CoTeaching", resumes: Documents, jobs: Documents) -> Corpus:
    """Arrays of new documents; behind those that the graph was built of, if there is a graph."""
    if model.rules is None:
        return model.corpus_of((resumes, jobs), None)
    graph = extend(model.graph, resumes, jobs)
    return model.corpus_of((*model.documents, resumes, jobs), graph)


def nearest(
    queries: Float[np.ndarray, "q d"], points: Float[np.ndarray, "n d"], num: int
) -> Int[np.ndarray, "q k"]:
    """Rows of the nearest points; of unit vectors, those of the largest cosines."""
    index = bregman.build_index(points, "squared_euclidean")
    return np.asarray(bregman.search(index, queries, min(num, len(points))).ids)


class Terms:
    """The words of new documents, weighed by how few known documents have them."""

    def __init__(
        self, known: Sequence[Documents], resumes: Documents, jobs: Documents
    ) -> None:
        from sklearn.feature_extraction.text import CountVectorizer

        counter = CountVectorizer(analyzer=lexical.words, binary=True)
        counts = counter.fit_transform([text for kind in known for text in kind.texts])
        self._names = counter.get_feature_names_out()
        self._weights = np.log((1 + counts.shape[0]) / (1 + np.asarray(counts.sum(axis=0)).ravel()))
        self._of = {
            side: scipy.sparse.csr_array(counter.transform(kind.texts))
            for side, kind in (("resume", resumes), ("job", jobs))
        }

    def of(self, resume: int, job: int) -> tuple[list[str], list[str]]:
        """Terms of both documents, and those of the job alone, the rarest first."""
        has, asked = (self._columns(side, row) for side, row in zip(SIDES, (resume, job), strict=True))
        return self._rarest(np.intersect1d(asked, has)), self._rarest(np.setdiff1d(asked, has))

    def _columns(self, side: str, row: int) -> np.ndarray:
        matrix = self._of[side]
        return matrix.indices[matrix.indptr[row] : matrix.indptr[row + 1]]

    def _rarest(self, columns: np.ndarray) -> list[str]:
        order = np.argsort(-self._weights[columns], kind="stable")[:NUM_TERMS]
        return [str(name) for name in self._names[columns[order]]]
