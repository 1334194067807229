# SPDX-License-Identifier: Apache-2.0
"""The graph of resumes and jobs against dense overlaps, its leakage rule, and new documents."""

import dataclasses
from typing import NamedTuple

import jax
import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from scorejax.data.matching_graph import RELATIONS, GraphRules, build_graph, extend
from scorejax.models.relational_gcn import RelationalGCN

RULES = GraphRules(neighbours=3, category_neighbours=4, num_keywords=6)
NUM_RESUMES, NUM_JOBS = 23, 17


class Texts(NamedTuple):
    sentences: list[tuple[str, ...]]
    categories: list[str]


NOTHING = Texts([], [])


def drawn(rng, num):
    """Documents of sentences of words from a Zipf law; a fifth have no category."""
    weights = 1 / np.arange(1, 81)
    word = lambda: f"word{rng.choice(80, p=weights / weights.sum())}"
    sentences = [tuple(" ".join(word() for _ in range(6)) for _ in range(3)) for _ in range(num)]
    return Texts(sentences, [["", "a", "b", "c", "c"][i] for i in rng.integers(5, size=num)])


@pytest.fixture(scope="module")
def documents():
    rng = np.random.default_rng(0)
    return drawn(rng, NUM_RESUMES), drawn(rng, NUM_JOBS)


@pytest.fixture(scope="module")
def graph(documents):
    return build_graph(*documents, RULES)


def received(graph, name):
    """Sources by target along a relation."""
    rows = graph.relation == RELATIONS.index(name)
    found = {}
    for target, source in zip(graph.target[rows], graph.source[rows], strict=True):
        found.setdefault(int(target), []).append(int(source))
    return found


def dense_overlaps(documents, num_keywords):
    """Overlaps of the keywords of all documents, (n, n), by dense matrices."""
    texts = ["\n".join(s) for side in documents for s in side.sentences]
    weights = TfidfVectorizer().fit_transform(texts).toarray()
    weights = weights[:, (weights > 0).sum(0) >= 2]
    for row in weights:
        row[np.argsort(-row, kind="stable")[num_keywords:]] = 0
    return weights @ weights.T


def test_keyword_edges_are_the_largest_overlaps(documents, graph):
    overlap, job = dense_overlaps(documents, RULES.num_keywords), np.arange(40) >= NUM_RESUMES
    np.fill_diagonal(overlap, 0)
    for name, of_sources, of_targets in [
        ("keyword_resume_resume", ~job, ~job),
        ("keyword_job_job", job, job),
        ("keyword_resume_job", ~job, job),
        ("keyword_job_resume", job, ~job),
    ]:
        found = received(graph, name)
        for target in np.flatnonzero(of_targets):
            row = np.where(of_sources, overlap[target], 0)
            sources = found.get(int(target), [])
            assert len(sources) == min(RULES.neighbours, (row > 0).sum())
            assert len(set(sources)) == len(sources)
            # Sums of six products in single precision: ties may fall either way.
            best = np.sort(row)[::-1][: len(sources)]
            np.testing.assert_allclose(np.sort(row[sources])[::-1], best, rtol=1e-5)


def test_category_edges_join_documents_of_a_kind_and_category(documents, graph):
    categories = np.array(documents[0].categories + documents[1].categories)
    for name, nodes in (
        ("category_resume_resume", range(NUM_RESUMES)),
        ("category_job_job", range(NUM_RESUMES, 40)),
    ):
        found = received(graph, name)
        for target in nodes:
            same = [v for v in nodes if v != target and categories[v] == categories[target] != ""]
            sources = found.get(target, [])
            assert set(sources) <= set(same)
            assert len(set(sources)) == len(sources) == min(4, len(same))
    assert not received(graph, "category_job_resume")
    both = build_graph(*documents, dataclasses.replace(RULES, across_kinds=True))
    for target, sources in received(both, "category_job_resume").items():
        assert {categories[v] for v in sources} == {categories[target]} and target < NUM_RESUMES
        assert min(sources) >= NUM_RESUMES


def test_edges_are_sorted_and_padded_by_the_dummy_node(graph):
    num = len(graph.target)
    edges = graph.edges(num + 5)
    assert (edges.source.dtype, edges.target.dtype, edges.relation.dtype) == (
        np.dtype("int32"),
    ) * 3
    assert (np.diff(edges.target * len(RELATIONS) + edges.relation) >= 0).all()
    assert (edges.source[num:] == 40).all() and (edges.target[num:] == 40).all()
    assert edges.target[:num].max() < 40 and edges.num_relations == len(RELATIONS)
    with pytest.raises(ValueError, match=f"at least {num}, the number of edges; got 3"):
        graph.edges(3)


def test_labels_do_not_enter(documents):
    # The labelled pairs are given, so that interactions can be refused; which label they have, and
    # which of them there are, changes nothing.
    rng = np.random.default_rng(1)
    pairs = np.stack([rng.integers(NUM_RESUMES, size=60), rng.integers(NUM_JOBS, size=60)], 1)
    pairs = rng.permutation(np.unique(pairs, axis=0))
    for_graph, supervised = pairs[:10], pairs[10:]
    expected = build_graph(*documents, RULES, interactions=for_graph, supervised=supervised)
    for others in (rng.permutation(supervised), supervised[:7]):
        found = build_graph(*documents, RULES, interactions=for_graph, supervised=others)
        for name in ("source", "target", "relation"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    edges = received(expected, "interaction_job_resume")
    assert {(t, s - NUM_RESUMES) for t, sources in edges.items() for s in sources} == set(
        map(tuple, for_graph.tolist())
    )
    back = received(expected, "interaction_resume_job")
    assert sorted((t, s) for t, v in edges.items() for s in v) == sorted(
        (s, t) for t, v in back.items() for s in v
    )


def test_an_interaction_that_is_supervised_is_refused(documents):
    build = lambda pairs, **more: build_graph(*documents, interactions=np.array(pairs), **more)
    with pytest.raises(ValueError, match="1 of 2 interactions are also supervised, first resume 3"):
        build([(3, 5), (4, 4)], supervised=np.array([(3, 5), (9, 9)]))
    with pytest.raises(ValueError, match="need supervised"):
        build([(3, 5)])
    with pytest.raises(ValueError, match=r"jobs below 17; got \(3, 17\)"):
        build([(3, 17)], supervised=np.zeros((0, 2), int))
    with pytest.raises(ValueError, match="neighbours needs to be at least 0; got -1"):
        GraphRules(neighbours=-1)


def test_new_documents_have_node_vectors_and_change_no_other(documents, graph):
    new = drawn(np.random.default_rng(2), 4)
    strange = Texts([*new.sentences[:2], ("nothing known",)], [*new.categories[:2], "new"])
    larger = extend(graph, strange, Texts(new.sentences[2:], new.categories[2:]))
    assert larger.num_nodes == 45 and (np.diff(larger.target) >= 0).all()
    known = larger.target < 40
    for name in ("source", "target", "relation"):
        np.testing.assert_array_equal(getattr(larger, name)[known], getattr(graph, name))
    assert larger.source[~known].max() < 40  # new ones send nothing
    assert 42 not in larger.target and {40, 41, 43, 44} <= set(larger.target.tolist())

    net, rng = RelationalGCN(4), np.random.default_rng(3)
    table = rng.normal(size=(45, 3)).astype(np.float32)
    size = len(larger.target)
    params = jax.jit(net.init)(jax.random.key(0), table[:40], graph.edges(size))
    apply = jax.jit(net.apply)
    vectors = apply(params, table, larger.edges(size))
    # Equal but for the order in which matrix products of another size may sum: single precision.
    np.testing.assert_allclose(
        vectors[:40], apply(params, table[:40], graph.edges(size)), atol=1e-6
    )
    p = jax.tree.map(np.asarray, params["params"])
    h = table[42] @ p["input"]["kernel"]
    for i in range(2):
        h = np.maximum(h @ p[f"layer_{i}"]["self_loop"]["kernel"], 0)
    np.testing.assert_allclose(vectors[42], h, atol=1e-6)  # the documented fall-back


def test_a_new_document_is_joined_as_if_it_were_alone_and_as_a_known_one(documents, graph):
    new = drawn(np.random.default_rng(4), 5)
    together = extend(graph, new, NOTHING)
    for i in range(5):
        alone = extend(graph, Texts(new.sentences[i : i + 1], new.categories[i : i + 1]), NOTHING)
        of = lambda g, node: [(s, r) for s, t, r in zip(g.source, g.target, g.relation, strict=True)
                              if t == node]  # fmt: skip
        assert of(alone, 40) == of(together, 40 + i)
    # A copy of a known document receives from its original and from where this receives.
    copy = extend(graph, Texts(documents[0].sentences[:1], documents[0].categories[:1]), NOTHING)
    sources = received(copy, "keyword_resume_resume")[40]
    assert 0 in sources and set(sources) - {0} <= set(received(graph, "keyword_resume_resume")[0])
    assert received(copy, "keyword_job_resume")[40] == received(graph, "keyword_job_resume")[0]
    twice = extend(copy, NOTHING, NOTHING)
    assert twice.num_nodes == 41 and len(twice.target) == len(copy.target)
