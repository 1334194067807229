# SPDX-License-Identifier: Apache-2.0
"""Metrics of rankings against scikit-learn and against all orders of tied documents."""

import itertools
import math
import tracemalloc

import numpy as np
import pytest
from sklearn.metrics import (
    label_ranking_average_precision_score,
    label_ranking_loss,
    ndcg_score,
    roc_auc_score,
    top_k_accuracy_score,
)

from scorejax.evaluate import ranking
from scorejax.evaluate.ranking import (
    auc,
    average_precision,
    evaluate,
    ndcg,
    rank,
    recall,
    reciprocal_rank,
    two_sided,
)

METRICS = {
    "ndcg": ndcg,
    "ndcg@2": lambda ranks: ndcg(ranks, 2),
    "recall@2": lambda ranks: recall(ranks, 2),
    "recall@9": lambda ranks: recall(ranks, 9),
    "mrr": reciprocal_rank,
    "auc": auc,
    "map": average_precision,
}


def matrix(seed, *, ties, num_queries=40, num_documents=25):
    """Scores, and relevance with one relevant and one other document in each row at least."""
    rng = np.random.default_rng(seed)
    relevant = rng.random((num_queries, num_documents)) < 0.2
    relevant[:, 0], relevant[:, 1] = True, False
    relevant = rng.permuted(relevant, axis=1)
    scores = rng.normal(size=relevant.shape) + relevant
    return (np.round(scores, 0) if ties else scores), relevant


@pytest.mark.parametrize("ties", [False, True])
def test_metrics_equal_those_of_scikit_learn(ties):
    scores, relevant = matrix(0, ties=ties)
    ranks = rank(scores, relevant)
    # Sums of 40 x 25 doubles.
    near = lambda value: pytest.approx(value, abs=1e-12)
    for k in (1, 3, 10, None):
        assert ndcg(ranks, k).mean() == near(ndcg_score(relevant, scores, k=k))
    areas = [roc_auc_score(r, s) for r, s in zip(relevant, scores, strict=True)]
    np.testing.assert_allclose(auc(ranks), areas, rtol=0, atol=1e-12)
    if not ties:  # scikit-learn counts a tie as a mistake here
        assert 1 - auc(ranks).mean() == near(label_ranking_loss(relevant, scores))


def test_with_one_relevant_document_they_are_those_of_classes():
    rng = np.random.default_rng(1)
    scores, truth = rng.normal(size=(60, 12)), rng.integers(12, size=60)
    ranks = rank(scores, np.eye(12, dtype=bool)[truth])
    average_precision = label_ranking_average_precision_score(np.eye(12)[truth], scores)
    assert reciprocal_rank(ranks).mean() == pytest.approx(average_precision, abs=1e-12)
    for k in (1, 5):
        accuracy = top_k_accuracy_score(truth, scores, k=k, labels=np.arange(12))
        assert recall(ranks, k).mean() == pytest.approx(accuracy, abs=1e-12)


def by_hand(name, order, relevant):
    """A metric of documents in one order, from its definition."""
    hits = [bool(relevant[d]) for d in order]
    num, others = sum(hits), len(hits) - sum(hits)
    if name.startswith("ndcg"):
        k = int(name[5:] or len(hits))
        gain = lambda flags: sum(f / math.log2(2 + i) for i, f in enumerate(flags[:k]))
        return gain(hits) / gain(sorted(hits, reverse=True))
    if name.startswith("recall"):
        return sum(hits[: int(name[7:])]) / num
    if name == "map":
        return sum(sum(hits[: i + 1]) / (i + 1) for i, hit in enumerate(hits) if hit) / num
    if name == "mrr":
        return 1 / (1 + hits.index(True))
    ahead = sum(a and not b for a, b in itertools.combinations(hits, 2))
    return ahead / (num * others)


@pytest.mark.parametrize("name", METRICS)
def test_tied_documents_count_as_the_mean_over_all_orders(name):
    rng = np.random.default_rng(2)
    for _ in range(25):
        scores, relevant = rng.integers(3, size=6).astype(float), rng.permutation(6) < 2
        relevant[rng.integers(6)] = True
        orders = [
            order
            for order in itertools.permutations(range(6))
            if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order))
        ]
        expected = np.mean([by_hand(name, order, relevant) for order in orders])
        found = METRICS[name](rank(scores[None], relevant[None]))[0]
        assert found == pytest.approx(expected, abs=1e-12)


def test_a_constant_score_is_worth_as_much_as_chance():
    relevant = np.arange(10)[None] < 1
    ranks = rank(np.zeros((1, 10)), relevant)
    assert reciprocal_rank(ranks)[0] == pytest.approx(np.mean(1 / np.arange(1, 11)), abs=1e-15)
    assert recall(ranks, 3)[0] == pytest.approx(0.3, abs=1e-15)
    assert auc(ranks)[0] == 0.5


@pytest.mark.parametrize("name", METRICS)
def test_documents_that_are_no_candidates_might_as_well_not_be_there(name):
    scores, relevant = matrix(3, ties=True)
    among = np.ones(25, bool)
    among[[2, 7, 11]] = False
    relevant[:, ~among] = False
    scores[:, 7] = np.nan
    mask = np.broadcast_to(among, scores.shape)
    found = METRICS[name](rank(scores, relevant, candidates=mask))
    expected = METRICS[name](rank(scores[:, among], relevant[:, among]))
    # Sums of at most 25 terms up to 1, added in another order.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14)
    assert np.isfinite(found).any()


def test_queries_without_relevant_documents_are_left_out_and_counted():
    scores, relevant = matrix(4, ties=False)
    whole = evaluate(scores[:30], relevant[:30], num_resamples=9)
    relevant[30:] = False
    found = evaluate(scores, relevant, num_resamples=9)
    assert (found.num_queries, found.num_left_out) == (30, 10)
    assert found.metrics == whole.metrics
    with pytest.raises(ValueError, match="a query with a relevant document; there is none"):
        evaluate(scores, np.zeros_like(relevant))
    # All documents of a query relevant: nothing to tell apart, but a first one.
    every = rank(np.arange(6.0).reshape(2, 3), np.array([[1, 1, 1], [0, 0, 1]], bool))
    np.testing.assert_array_equal(auc(every), [np.nan, 1])
    np.testing.assert_array_equal(reciprocal_rank(every), [1, 1])


def test_both_sides_are_evaluations_of_the_matrix_and_its_transpose():
    scores, relevant = matrix(5, ties=True)
    candidates = relevant | (np.random.default_rng(5).random(scores.shape) < 0.8)
    found = two_sided(scores, relevant, candidates=candidates, ks=(3,), num_resamples=9)
    assert set(found) == {"resume", "job"}
    assert set(found["job"].metrics) == {"mrr", "map", "auc", "ndcg@3", "recall@3"}
    turned = rank(scores.T, relevant.T, candidates=candidates.T)
    assert found["job"].metrics["ndcg@3"].estimate == pytest.approx(np.nanmean(ndcg(turned, 3)))
    straight = rank(scores, relevant, candidates=candidates)
    assert found["resume"].metrics["mrr"].estimate == pytest.approx(
        np.nanmean(reciprocal_rank(straight))
    )


def test_intervals_have_the_width_of_the_mean_and_keep_groups_together():
    rng = np.random.default_rng(6)
    relevant = np.tile(np.arange(20) < 1, (200, 1))
    scores = rng.normal(size=relevant.shape) + 1.5 * relevant
    options = {"ks": (), "num_resamples": 999}
    values = reciprocal_rank(rank(scores, relevant))
    found = evaluate(scores, relevant, **options).metrics["mrr"]
    assert found.estimate == pytest.approx(values.mean(), abs=1e-12)
    # 999 resamples leave 3 % of the width, the skew of 200 values some more.
    width = 2 * 1.96 * values.std() / math.sqrt(200)
    assert found.high - found.low == pytest.approx(width, rel=0.15)
    # Ten copies of each of 200 queries are no more than 200 queries.
    again = evaluate(
        np.repeat(scores, 10, axis=0),
        np.repeat(relevant, 10, axis=0),
        groups=np.repeat(np.arange(200), 10),
        **options,
    ).metrics["mrr"]
    assert again == pytest.approx(found, abs=1e-12)
    single = evaluate(scores, relevant, groups=np.zeros(200, int), ks=()).metrics["mrr"]
    assert single.estimate == pytest.approx(values.mean()) and np.isnan([*single[1:]]).all()


GOOD = {"scores": np.zeros((2, 3)), "relevant": np.eye(2, 3) == 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": np.zeros((3, 2))}, r"one shape \(queries, documents\); got \(3, 2\)"),
        ({"scores": np.zeros((0, 3)), "relevant": np.zeros((0, 3), bool)}, "got "),
        ({"relevant": np.eye(2, 3)}, "need booleans; got float64"),
        ({"scores": np.array([[0, 1, 2], [0, np.nan, 0]])}, "that of document 1 of query 1 is not"),
        ({"candidates": np.eye(2, 3) != 1}, "candidates; document 0 of query 0 is not"),
        ({"groups": np.zeros(3, int)}, r"one for each query; got \(3,\)"),
        ({"ks": (0,)}, "k needs to be at least 1; got 0"),
        ({"level": 95.0}, "level needs to lie inside"),
    ],
)
def test_bad_input_is_refused_in_one_line(changes, message):
    with pytest.raises(ValueError, match=message):
        evaluate(**{**GOOD, **changes})


def test_blocks_of_queries_change_no_metric_and_bound_the_memory(monkeypatch):
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 500, (40, 5000)).astype(np.float32)
    relevant = rng.random(scores.shape) < 0.01
    options = {"candidates": rng.random(scores.shape) < 0.9, "num_resamples": 9}
    relevant &= options["candidates"]
    whole = evaluate(scores, relevant, **options)
    monkeypatch.setattr(ranking, "SCORES_AT_ONCE", 10_000)  # two queries
    tracemalloc.start()
    blocks = evaluate(scores, relevant, **options)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert blocks == whole
    # Three Boolean arrays of the checks, and 100 bytes for each score of a block, with room.
    assert peak < 4 * scores.size + 100 * 10_000
