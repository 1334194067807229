# SPDX-License-Identifier: Apache-2.0
"""A graph of resumes and jobs: edges from categories, keywords, and interactions set apart for it.

Nodes are the resumes, then the jobs, then documents that `extend` adds. Every edge carries a vector
from its source to its target; each relation names the kinds of both. The number of edges that a
target receives along a relation is bounded for categories and keywords.

Leakage: no label enters. Interactions that are edges must not be pairs that training learns from or
evaluation judges, or a network reads the answer from the graph: `build_graph` refuses them. It
cannot see where a category comes from: one that was derived from a label, such as that of the job
for which a resume was chosen, leaks all the same.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer

from scorejax.models.relational_gcn import Edges
from scorejax.text import lexical

RELATIONS = (
    "category_job_job", "category_resume_resume", "category_resume_job", "category_job_resume",
    "keyword_job_job", "keyword_resume_resume", "keyword_resume_job", "keyword_job_resume",
    "interaction_resume_job", "interaction_job_resume",
)  # fmt: skip
"""Relations by number: what joins two nodes, the kind of the source, the kind of the target."""

KINDS = ("resume", "job")
CHUNK = 256  # targets whose overlaps are in memory at a time


class Described(Protocol):
    """Documents, for the graph: sentences and a category ("" for none) of each."""

    sentences: Sequence[Sequence[str]]
    categories: Sequence[str]


@dataclasses.dataclass(frozen=True)
class GraphRules:
    """Which edges a graph has. Raises: ValueError for a number below 0, or num_keywords below 1."""

    neighbours: int = 10
    """Edges that a node receives along a keyword relation, from the largest overlaps."""
    category_neighbours: int = 10
    """Edges that a node receives along a category relation, spread evenly over the category."""
    num_keywords: int = 20
    """Terms of a document, those of largest TF-IDF."""
    max_documents: int = 1000
    """A keyword occurs in at most so many documents, and in two at least. Time and memory grow with
    this number."""
    across_kinds: bool = False
    """Whether resumes and jobs of the same category are joined."""

    def __post_init__(self) -> None:
        for name in ("neighbours", "category_neighbours", "num_keywords", "max_documents"):
            least = 1 if name == "num_keywords" else 0
            if getattr(self, name) < least:
                raise ValueError(f"{name} needs to be at least {least}; got {getattr(self, name)}.")


class Keywords(NamedTuple):
    """Weights of the keywords of documents, with the vocabulary that extracts them from others."""

    vectorizer: TfidfVectorizer
    columns: np.ndarray
    """Those of the vectorizer's terms that are keywords."""
    weights: sparse.csr_array
    """(documents, keywords), with at most `num_keywords` entries in a row."""


@dataclasses.dataclass(frozen=True)
class MatchingGraph:
    """Edges, sorted by target and relation, of `num_nodes` nodes; and what `extend` reads."""

    source: np.ndarray
    target: np.ndarray
    relation: np.ndarray
    num_nodes: int
    rules: GraphRules
    keywords: Keywords
    categories: np.ndarray
    """Of the documents that the graph was built of, (num_resumes + num_jobs,)."""
    num_resumes: int

    def job_nodes(self, jobs: np.ndarray) -> np.ndarray:
        """The nodes of jobs by their numbers; those of resumes are the resumes' numbers."""
        return np.asarray(jobs) + self.num_resumes

    def edges(self, size: int | None = None) -> Edges:
        """The edges, padded to `size` by edges of the dummy node `num_nodes`.

        Raises: ValueError if there are more than `size`.
        """
        num = len(self.target)
        size = num if size is None else size
        if size < num:
            raise ValueError(f"size needs to be at least {num}, the number of edges; got {size}.")
        pad = lambda a, value: np.pad(a, (0, size - num), constant_values=value).astype(np.int32)
        source, target = pad(self.source, self.num_nodes), pad(self.target, self.num_nodes)
        return Edges(source, target, pad(self.relation, 0), len(RELATIONS))


def build_graph(
    resumes: Described,
    jobs: Described,
    rules: GraphRules | None = None,
    *,
    interactions: np.ndarray | None = None,
    supervised: np.ndarray | None = None,
) -> MatchingGraph:
    """The graph of documents.

    `interactions` (n, 2) are pairs (resume, job) that accepted each other, to be edges in both
    directions. `supervised` (m, 2) are all pairs with a label that training or evaluation uses,
    whichever it is; interactions need it.

    Raises: ValueError if an interaction is also supervised, or if documents are missing.
    """
    rules = rules or GraphRules()
    num_resumes, num_jobs = len(resumes.sentences), len(jobs.sentences)
    categories = np.array([*resumes.categories, *jobs.categories], dtype=object)
    keywords = _fit_keywords(_texts(resumes) + _texts(jobs), rules)
    nodes = {"resume": np.arange(num_resumes), "job": num_resumes + np.arange(num_jobs)}
    parts = [
        *_category_edges(categories, nodes, categories, nodes, rules),
        *_keyword_edges(keywords.weights, nodes, keywords.weights, nodes, rules),
    ]
    if interactions is not None:
        pairs = _graph_pairs(interactions, supervised, num_resumes, num_jobs)
        resume, job = pairs[:, 0], num_resumes + pairs[:, 1]
        parts += [_edges(resume, job, "interaction_resume_job")]
        parts += [_edges(job, resume, "interaction_job_resume")]
    return MatchingGraph(
        *_sorted(parts), num_resumes + num_jobs, rules, keywords, categories, num_resumes
    )


def extend(graph: MatchingGraph, resumes: Described, jobs: Described) -> MatchingGraph:
    """The graph with further documents, which receive from those it was built of.

    The new nodes are numbered from `graph.num_nodes` on, resumes first. They send nothing, so that
    node vectors of known documents stay as they are, and depend on no other new document. A new
    document that shares neither category nor keyword with a known one has no edge: its node vector
    comes from its own text by the self-loop.
    """
    first, num_resumes = graph.num_nodes, len(resumes.sentences)
    num_new = num_resumes + len(jobs.sentences)
    num_known = len(graph.categories)
    known = {
        "resume": np.arange(graph.num_resumes), "job": np.arange(graph.num_resumes, num_known)
    }  # fmt: skip
    local = {"resume": np.arange(num_resumes), "job": np.arange(num_resumes, num_new)}
    categories = np.array([*resumes.categories, *jobs.categories], dtype=object)
    texts = _texts(resumes) + _texts(jobs)
    vectorizer, columns, known_weights = graph.keywords
    weights = _weights(vectorizer, columns, texts, graph.rules) if texts else known_weights[:0]
    parts = [
        *_category_edges(categories, local, graph.categories, known, graph.rules),
        *_keyword_edges(weights, local, known_weights, known, graph.rules),
    ]
    source, target, relation = _sorted(parts)
    return dataclasses.replace(
        graph,
        source=np.concatenate([graph.source, source]),
        target=np.concatenate([graph.target, first + target]),
        relation=np.concatenate([graph.relation, relation]),
        num_nodes=first + num_new,
    )


def _texts(documents: Described) -> list[str]:
    return ["\n".join(sentences) for sentences in documents.sentences]


def _edges(source: np.ndarray, target: np.ndarray, name: str) -> np.ndarray:
    """Rows (source, target, relation)."""
    number = np.full(len(target), RELATIONS.index(name))
    return np.stack([source, target, number], axis=1)


def _sorted(parts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    source, target, relation = np.concatenate([np.zeros((0, 3), int), *parts]).T
    order = np.lexsort((source, relation, target))
    return source[order], target[order], relation[order]


def _graph_pairs(
    interactions: np.ndarray, supervised: np.ndarray | None, num_resumes: int, num_jobs: int
) -> np.ndarray:
    """The distinct interactions. Raises: ValueError if one is supervised, or names no document."""
    if supervised is None:
        raise ValueError(
            "interactions need supervised: the pairs whose labels training or evaluation uses"
        )
    pairs = np.unique(np.asarray(interactions).reshape(-1, 2), axis=0)
    outside = (pairs < 0).any(axis=1) | (pairs[:, 0] >= num_resumes) | (pairs[:, 1] >= num_jobs)
    if outside.any():
        raise ValueError(
            f"interactions need resumes below {num_resumes} and jobs below {num_jobs}; got "
            f"{tuple(pairs[outside][0].tolist())}"
        )
    used = set(map(tuple, np.asarray(supervised).reshape(-1, 2).tolist()))
    leaks = [pair for pair in map(tuple, pairs.tolist()) if pair in used]
    if leaks:
        raise ValueError(
            f"{len(leaks)} of {len(pairs)} interactions are also supervised, first resume "
            f"{leaks[0][0]} with job {leaks[0][1]}: the graph would hold their labels. Leave them "
            "out of one."
        )
    return pairs


def _category_edges(
    target_categories: np.ndarray,
    targets: dict[str, np.ndarray],
    categories: np.ndarray,
    sources: dict[str, np.ndarray],
    rules: GraphRules,
) -> Iterator[np.ndarray]:
    """Edges from sources of a target's category; the arrays of categories are by node."""
    within = targets is sources
    for source_kind, target_kind in ((s, t) for s in KINDS for t in KINDS):
        if source_kind != target_kind and not rules.across_kinds:
            continue
        name = f"category_{source_kind}_{target_kind}"
        same = within and source_kind == target_kind
        members = _by_category(categories, sources[source_kind])
        for category, group in _by_category(target_categories, targets[target_kind]).items():
            known = members.get(category, np.zeros(0, int))
            spread = _spread(len(known) - same, rules.category_neighbours)
            # Targets turn round the group, so that each of its members sends about as often. New
            # documents do not: their edges would depend on which others come with them.
            turn = np.arange(len(group)) if within else np.zeros(len(group), int)
            place = turn[:, None] + same + spread[None]
            source = known[place % max(len(known), 1)] if len(spread) else place
            yield _edges(source.ravel(), np.repeat(group, len(spread)), name)


def _by_category(categories: np.ndarray, nodes: np.ndarray) -> dict[str, np.ndarray]:
    """The nodes of each category, in their order."""
    groups: dict[str, list[int]] = {}
    for node in nodes:
        if categories[node]:
            groups.setdefault(categories[node], []).append(node)
    return {category: np.array(group) for category, group in groups.items()}


def _spread(num: int, most: int) -> np.ndarray:
    """At most `most` of the numbers 0 .. num - 1, evenly spaced."""
    return np.arange(num) if num <= most else np.arange(most) * num // most


def _fit_keywords(texts: list[str], rules: GraphRules) -> Keywords:
    vectorizer = TfidfVectorizer(analyzer=lexical.words, dtype=np.float32)
    counts = np.bincount(
        vectorizer.fit_transform(texts).indices, minlength=len(vectorizer.vocabulary_)
    )
    # Terms of one document alone have the largest weights of all, and join nothing.
    columns = np.flatnonzero((counts >= 2) & (counts <= rules.max_documents))
    return Keywords(vectorizer, columns, _weights(vectorizer, columns, texts, rules))


def _weights(
    vectorizer: TfidfVectorizer, columns: np.ndarray, texts: list[str], rules: GraphRules
) -> sparse.csr_array:
    """The largest TF-IDF weights of each text, of at most `num_keywords` terms."""
    weights = sparse.csr_array(vectorizer.transform(texts))[:, columns].tocoo()
    row, column = weights.coords
    kept = _largest(row, column, weights.data, rules.num_keywords)
    entries = (weights.data[kept], (row[kept], column[kept]))
    return sparse.csr_array(entries, shape=weights.shape)


def _largest(group: np.ndarray, number: np.ndarray, value: np.ndarray, most: int) -> np.ndarray:
    """Places of the `most` largest values of each group; of equal ones, the lower numbers."""
    order = np.lexsort((number, -value, group))
    ordered = group[order]
    rank = np.arange(len(order)) - np.searchsorted(ordered, ordered)
    return order[rank < most]


def _above(matrix: sparse.csr_array, most: int) -> np.ndarray:
    """Places in `matrix.data` of the `most` largest entries of each row, and of all equal ones.

    A row may have tens of thousands of entries: it is partitioned, and only these are sorted.
    """
    places = []
    for start, end in itertools.pairwise(matrix.indptr):
        row = matrix.data[start:end]
        least = np.partition(row, -most)[-most] if len(row) > most else 0
        places.append(start + np.flatnonzero(row >= least))
    return np.concatenate(places)


def _keyword_edges(
    target_weights: sparse.csr_array,
    targets: dict[str, np.ndarray],
    weights: sparse.csr_array,
    sources: dict[str, np.ndarray],
    rules: GraphRules,
) -> Iterator[np.ndarray]:
    """Edges from the sources of largest overlap, sum of products of weights of shared keywords."""
    for source_kind, target_kind in ((s, t) for s in KINDS for t in KINDS):
        name = f"keyword_{source_kind}_{target_kind}"
        nodes, senders = targets[target_kind], sources[source_kind]
        by_keyword = weights[senders].T.tocsr()
        for start in range(0, len(nodes), CHUNK):
            part = nodes[start : start + CHUNK]
            overlap = (target_weights[part] @ by_keyword).tocsr()
            place = _above(overlap, rules.neighbours + 1)  # one may be the target itself
            row = np.searchsorted(overlap.indptr, place, side="right") - 1
            target, source = part[row], senders[overlap.indices[place]]
            other = (target != source) | (targets is not sources)
            target, source, value = target[other], source[other], overlap.data[place][other]
            kept = _largest(target, source, value, rules.neighbours)
            yield _edges(source[kept], target[kept], name)
