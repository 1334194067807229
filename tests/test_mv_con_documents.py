# SPDX-License-Identifier: Apache-2.0
"""Multi-view co-teaching beside its training: documents kept, lists, memory, pictures."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from scorejax.data.matching import Pairs
from scorejax.systems.mv_con import evaluation
from scorejax.systems.mv_con import model as model_module
from scorejax.systems.mv_con.evaluation import mean_directions, selection_curves
from tests.matching_case import case, new_documents


def test_what_each_view_learnt_from_is_drawn_where_labels_are_known_to_be_wrong():
    clean = {"train/clean_text": 0.8, "train/true_text": 0.7}
    records = [
        {"step": 10, **clean, "train/clean_relation": None, "train/true_relation": 0.6},
        {"step": 10, "eval/mrr": 0.5},
        {"step": 20, **clean, "train/clean_relation": 0.9, "train/true_relation": 0.5},
    ]
    curves = selection_curves(records, ("text", "relation"))
    steps, shares = curves["relation"]
    assert steps.tolist() == [20] and curves["text"][0].tolist() == [10, 20]
    assert {name: values.tolist() for name, values in shares.items()} == {
        "weighed by the peer": [0.9], "all rows": [0.5],
    }  # fmt: skip
    noisy = case(noise_rate=0.3).model
    drawn = noisy.training_pictures(records)
    assert set(drawn) == {"selection_text", "selection_relation"}
    assert all(picture.dtype == np.uint8 for picture in drawn.values())
    assert noisy.training_pictures([]) == {}
    sure = dataclasses.replace(noisy.task, flipped=np.zeros(len(noisy.task.train), bool))
    assert dataclasses.replace(noisy, make_task=lambda: sure).training_pictures(records) == {}


def test_what_a_run_keeps_ranks_new_documents_as_its_files_do():
    # Bit for bit: the same documents in the same order make the same encoder, graph and arrays.
    one = case()
    kept = {name: np.array(array) for name, array in one.model.kept().items()}
    refuse = lambda: pytest.fail("the data of training are read")
    again = dataclasses.replace(one.model, make_task=refuse).of_kept(kept)
    variables = one.state.params, one.state.model_state
    options = {"top": 2, "num_candidates": 10}
    new = new_documents(one.model)
    expected = one.model.ranker(**options)(variables, *new)
    assert again.ranker(**options)(variables, *new) == expected
    digests = one.model.inputs()
    assert again.inputs().keys() == {"documents"}
    np.testing.assert_array_equal(again.inputs()["documents"], digests["documents"])


def test_documents_kept_of_another_encoder_are_refused_in_one_line():
    one = case()
    kept = one.model.kept()
    with pytest.raises(ValueError, match="trained on vectors of the encoder 0123, this one is"):
        _ = one.model.of_kept(kept | {"encoder": np.array("0123")}).encoder
    with pytest.raises(ValueError, match="kept documents lack encoder, interactions"):
        one.model.of_kept({"documents": kept["documents"]})


def test_blocks_of_resumes_change_no_score(monkeypatch):
    # Rows of a matrix product may be summed in another order where its height differs: a few units
    # in the last place of single precision, of probabilities.
    one = case()
    variables, resumes = (one.state.params, one.state.model_state), np.arange(7)
    whole = evaluation.matrices(one.model, variables, one.corpus, resumes)
    monkeypatch.setattr(evaluation, "PAIRS_LISTED", 130)  # of 60 jobs: two resumes, and one
    blocks = evaluation.matrices(one.model, variables, one.corpus, resumes)
    assert whole.keys() == blocks.keys() and whole["mean"].shape == (7, 60)
    for name, matrix in whole.items():
        np.testing.assert_allclose(blocks[name], matrix, atol=1e-6)


def largest(function, *arguments):
    """Elements of the largest array that a function computes, of abstract arguments."""
    sizes = []

    def visit(jaxpr):
        for equation in jaxpr.eqns:
            sizes.extend(variable.aval.size for variable in equation.outvars)
            for inner in jaxprs_in_params(equation.params):
                visit(inner)

    visit(jax.make_jaxpr(function)(*arguments).jaxpr)
    return max(sizes)


def test_scoring_many_candidates_holds_no_features_of_all_pairs():
    # Shapes alone, of a corpus of 10^3 documents and of 10^5.
    one = case()
    model, pairs = one.model, model_module.PAIRS_AT_ONCE
    shape = jax.ShapeDtypeStruct
    rows = dict.fromkeys(("resume", "job"), shape((pairs,), np.int32))
    table_width, relations, graph_width = 16 + one.corpus.sentences.shape[2], 10, 16
    for num in (1000, 100_000):
        grown = lambda a, num=num: shape((num, *a.shape[1:]), a.dtype)
        edges = one.corpus.edges
        edge = shape((10 * num,), np.int32)
        corpus = one.corpus.replace(
            resumes=shape((num // 2,), np.int32),
            jobs=shape((num // 2,), np.int32),
            sentences=grown(one.corpus.sentences),
            mask=grown(one.corpus.mask),
            edges=edges.replace(source=edge, target=edge, relation=edge),
        )
        shared = jax.eval_shape(model._prepare, one.state.params, corpus)
        assert shared.table.shape == (num, table_width)
        # A pair has [job; resume; job - resume] of text and node vectors: 96 numbers. Node vectors
        # of all documents appear where their gradient is stopped, which copies nothing.
        scored = largest(
            model._measure, (one.state.params, {"text": {}, "relation": {}}, shared, corpus), rows
        )
        assert scored == max(pairs * 3 * (16 + graph_width), num * graph_width)
        # Of all documents the means by relation, and no sentence; 256 at a time are encoded.
        prepared = largest(model._prepare, one.state.params, corpus)
        assert prepared <= max(num * relations * graph_width, 256 * 20 * 20 * 64)


def test_queries_of_a_published_test_are_ranked_among_their_candidates():
    # Reciprocal ranks by hand; lists may differ in length, and their rows stand in any order.
    side, scores = "job", np.array([0.1, 0.9, 0.5, 0.4, 0.7])
    pairs = Pairs([4, 1, 2, 3, 5], [8, 6, 8, 6, 8], [1, 0, 0, 1, 0])  # job 8: 1 of 3; job 6: 1 of 2
    found = evaluation.rank_listed(side, pairs, scores)
    assert found.num_queries == 2
    assert found.metrics["mrr"].estimate == pytest.approx((1 / 3 + 1 / 2) / 2)


def test_the_report_has_published_lists():
    one = case()
    lists = {"resume": one.model.task.test, "job": one.model.task.test}
    task = dataclasses.replace(one.model.task, lists=lists)
    model = dataclasses.replace(one.model, make_task=lambda: task)
    variables = one.state.params, one.state.model_state
    scalars = evaluation._listed_scalars(model, variables, one.corpus)
    test = task.test
    scores = model.probabilities(variables, one.corpus, model.nodes(test.resume, test.job))
    for side in ("resume", "job"):
        expected = evaluation.rank_listed(side, test, scores["text"]).metrics["ndcg@10"].estimate
        assert scalars[f"listed/{side}/text/ndcg@10"] == expected
        # The cosine of a pair is that of its documents, whichever side asks.
        vectors = mean_directions(one.corpus)
        nodes = model.nodes(test.resume, test.job)
        cosines = (vectors[nodes["resume"]] * vectors[nodes["job"]]).sum(axis=1)
        found = evaluation.rank_listed(side, test, cosines).metrics["map"].estimate
        assert scalars[f"listed/{side}/cosine/map"] == pytest.approx(found, abs=1e-6)
