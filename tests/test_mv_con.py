# SPDX-License-Identifier: Apache-2.0
"""Multi-view co-teaching as a system: what views share, what peers weigh, and new documents."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorejax.evaluate import ranking
from scorejax.objectives import co_teaching
from scorejax.systems.mv_con import serving
from scorejax.systems.mv_con.evaluation import judged, mean_directions
from scorejax.text import lexical
from tests.matching_case import Case, case, logits, new_documents
from tests.trees import assert_equal


@pytest.mark.deep
def test_a_step_weighs_each_half_by_the_peer_and_learns_by_the_other():
    # The loss of a step from logits of the whole batch, weighed and halved here by hand.
    one = case()
    (loss, aux), _ = one.gradient(one.state.params, one.state, one.batch, one.corpus)
    found = logits(one.model, one.state.params, one.state.model_state, one.corpus, one.batch)
    y, half = one.batch["label"], len(one.batch["label"]) // 2
    cross = {k: np.logaddexp(0, np.where(y > 0, -v, v)) for k, v in found.items()}
    first, second = slice(half), slice(half, None)
    total = 0
    for own, peer, rows in (("text", "relation", second), ("relation", "text", first)):
        weights = np.clip(1 + 0.2 * (y[rows] - 1) * cross[peer][rows], 0, 1)
        total += (weights * cross[own][rows]).sum() / weights.sum()
    assert float(loss) == pytest.approx(total, rel=1e-5)  # single precision, sums of 8 numbers
    np.testing.assert_allclose(float(aux.metrics["loss_text"] + aux.metrics["loss_relation"]), loss)


@pytest.mark.deep
def test_one_view_has_no_gradient_in_the_other():
    # Losses of the two views by turns; node vectors stand in the text view, texts in the graph.
    one = case()
    learners, state = one.model.learners, one.state.model_state

    @functools.partial(jax.jit, static_argnames="name")
    def gradient(name, params):
        def total(params):
            table = learners.table(params, one.corpus)
            shared = learners.shared(params, table, one.corpus)
            own = learners.learners[name]
            found, _ = own.train_logits(
                params[name], state["moments"][name], shared, one.corpus, one.batch, None
            )
            return jnp.sum(found**2)

        return jax.grad(total)(params)

    for name, other in (("text", "relation"), ("relation", "text")):
        found = gradient(name, one.state.params)
        assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(found[other]))
        assert sum(np.abs(leaf).sum() for leaf in jax.tree.leaves(found[name])) > 0


def test_the_text_view_reads_the_nodes_and_the_graph_the_texts():
    one = case()
    params, state = one.state.params, one.state.model_state
    before = logits(one.model, params, state, one.corpus, one.batch)
    for changed, other in (("text", "relation"), ("relation", "text")):
        moved = {**params, changed: jax.tree.map(lambda leaf: 1.5 * leaf, params[changed])}
        after = logits(one.model, moved, state, one.corpus, one.batch)
        assert np.abs(after[other] - before[other]).max() > 1e-4


@pytest.mark.deep
def test_the_table_is_computed_anew_every_so_many_steps():
    one = case()
    expected = one.model.learners.table(one.state.params, one.corpus)
    for step, fresh in ((0, True), (1, False), (19, False), (20, True)):
        state = one.state.replace(step=jnp.asarray(step))
        (_, aux), _ = one.gradient(one.state.params, state, one.batch, one.corpus)
        table = expected if fresh else one.state.model_state["table"]
        np.testing.assert_allclose(aux.model_state["table"], table, atol=1e-6)


@pytest.mark.deep
def test_without_weights_each_learns_alone():
    # A7: the gradient of two views that do not weigh is that of each on its own half.
    one = case(co_teaching="none")
    _, both = one.gradient(one.state.params, one.state, one.batch, one.corpus)
    half = len(one.batch["label"]) // 2
    table = one.model.learners.table(one.state.params, one.corpus)

    @functools.partial(jax.jit, static_argnames="name")
    def alone(name, params, rows):
        def mean(params):
            shared = one.model.learners.shared(params, table, one.corpus)
            found, _ = one.model.learners.learners[name].train_logits(
                params[name], {}, shared, one.corpus, rows, None
            )
            return jnp.mean(jnp.logaddexp(0, jnp.where(rows["label"] > 0, -found, found)))

        return jax.grad(mean)(params)[name]

    for name, rows in (("text", slice(half, None)), ("relation", slice(half))):
        part = {field: values[rows] for field, values in one.batch.items()}
        expected = alone(name, one.state.params, part)
        for ours, theirs in zip(*map(jax.tree.leaves, (both[name], expected)), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_without_a_matcher_texts_are_ranked_by_their_cosines():
    # The matcher's last layer set to zero leaves the scaled cosine of the mean sentence vectors.
    one = case()
    params = jax.tree.map(lambda leaf: leaf, one.state.params)
    params["text"]["pair"]["out"] = jax.tree.map(jnp.zeros_like, params["text"]["pair"]["out"])
    found = logits(one.model, params, one.state.model_state, one.corpus, one.batch)["text"]
    vectors = mean_directions(one.corpus)
    cosines = (vectors[one.batch["resume"]] * vectors[one.batch["job"]]).sum(axis=1)
    np.testing.assert_allclose(found, 5 * cosines, atol=1e-5)


@pytest.mark.deep
def test_selection_drops_the_negatives_of_largest_loss():
    one = case(co_teaching="select", forget_rate=0.5, forget_steps=1)
    state = one.state.replace(step=jnp.asarray(5))  # past the warm-up
    (_, aux), _ = one.gradient(one.state.params, state, one.batch, one.corpus)
    label = one.batch["label"].reshape(2, -1)
    for name, y in (("relation", label[0]), ("text", label[1])):
        kept = (y == 1).sum() + (y == 0).sum() // 2
        assert float(aux.metrics[f"kept_{name}"]) == kept / len(y)


@pytest.mark.deep
@pytest.mark.parametrize("view", ["pjfnn", "bpjfnn", "apjfnn"])
def test_published_networks_train_in_the_same_loop(view):
    # Thirty steps of Adam on one batch of 16 pairs: a network that learns fits it.
    marks = {"learning_rate": 0.01, "cosine_decay": False, "warmup": 1, "max_words": 14}
    one = Case(views=(view,), graph_share=0.0, **marks)
    state, losses = one.state, []
    for _ in range(30):
        (loss, aux), gradient = one.gradient(state.params, state, one.batch, one.corpus)
        updates, opt_state = one.system.tx.update(gradient, state.opt_state, state.params)
        params = jax.tree.map(jnp.add, state.params, updates)
        state = state.replace(params=params, opt_state=opt_state, model_state=aux.model_state)
        losses.append(float(loss))
    assert np.mean(losses[-3:]) < 0.5 * losses[0]


def test_labels_of_the_test_change_no_score():
    # A8 and the leakage rule: the arrays that training reads are equal, bit for bit.
    one, task = case(), case().model.task
    turned = dataclasses.replace(task.test, label=1 - task.test.label)
    other = dataclasses.replace(one.model, make_task=lambda: dataclasses.replace(task, test=turned))
    assert_equal(other.corpus, one.corpus)
    carry = other.source().init(0, jax.random.key(1))
    _, batch = other.source().next(carry, one.state, jax.random.key(2))
    assert_equal(batch, {name: one.batch[name] for name in batch})


def test_new_documents_are_scored_without_training():
    # A copy of a known text has its text vector; known node vectors do not move; without a shared
    # word a document has no edge, and its node vector is that of its own text.
    one = case()
    model, params = one.model, one.state.params
    corpus = serving.corpus_of_new(model, *new_documents(model))
    before, after = model._prepare(params, one.corpus), model._prepare(params, corpus)
    num = len(one.corpus.sentences)
    np.testing.assert_allclose(after.nodes[:num], before.nodes, atol=1e-6)
    np.testing.assert_allclose(after.table[num + 1], before.table[7], atol=1e-6)
    assert num not in corpus.edges.target
    past = np.full_like(corpus.edges.source, len(after.table))  # the dummy node
    without = corpus.replace(edges=corpus.edges.replace(source=past, target=past))
    isolated = model._prepare(params, without)
    np.testing.assert_allclose(after.nodes[num], isolated.nodes[num], atol=1e-6)


def test_rankings_are_those_of_all_scores():
    one = case()
    model, variables = one.model, (one.state.params, one.state.model_state)
    resumes, jobs = new_documents(model)
    tables = model.ranker(top=2, num_candidates=10)(variables, resumes, jobs)
    corpus = serving.corpus_of_new(model, resumes, jobs)
    num, first_job = len(corpus.sentences) - 5, len(corpus.sentences) - 3
    pairs = {"resume": np.repeat([num, num + 1], 3), "job": np.tile(first_job + np.arange(3), 2)}
    scores = model.probabilities(variables, corpus, pairs)["mean"].reshape(2, 3)
    for side, ids, others, matrix in (
        ("resume", resumes.ids, jobs.ids, scores),
        ("job", jobs.ids, resumes.ids, scores.T),
    ):
        other = "job" if side == "resume" else "resume"
        listed = [(row[side], row["rank"], row[other]) for row in tables[side]]
        expected = [
            (ids[i], place, others[j])
            for i, row in enumerate(matrix)
            for place, j in enumerate(np.argsort(-row)[:2], start=1)
        ]
        assert listed == expected
    shared = next(r for r in tables["resume"] if r["resume"] == "copy")
    words = set(" ".join(resumes.sentences[1]).split())
    assert set(shared["shared_terms"].split()) <= words
    assert not set(shared["missing_terms"].split()) & words


def test_doubtful_pairs_come_first():
    one = case(noise_rate=0.3)
    variables = one.state.params, one.state.model_state
    found = one.model.metrics()["noise"]()(jax.random.key(0), variables)
    rows, task = found.tables["noise"], one.model.task
    losses = [row["loss_mean"] for row in rows]
    assert losses == sorted(losses, reverse=True) and len(rows) == len(task.train)
    train = task.train
    scores = one.model.probabilities(
        variables, one.corpus, one.model.nodes(train.resume, train.job)
    )["mean"]
    worst = np.argmax(np.where(train.label > 0, -np.log(scores), -np.log1p(-scores)))
    assert rows[0]["resume"] == task.resumes.ids[train.resume[worst]]
    assert rows[0]["job"] == task.jobs.ids[train.job[worst]]


@pytest.mark.deep
def test_two_text_views_start_apart_and_have_no_graph():
    one = case(views=("text", "text"), graph_share=0.0)
    assert set(one.state.params) == {"text", "text_2"} and one.corpus.edges is None
    first, second = (jax.tree.leaves(one.state.params[name]) for name in ("text", "text_2"))
    assert any((a != b).any() for a, b in zip(first, second, strict=True))


def test_weights_are_those_of_the_objective():
    model = case().model
    losses, labels = jnp.array([0.5, 1.0, 7.0]), jnp.array([0.0, 1.0, 0.0])
    rows = {"label": labels}
    np.testing.assert_array_equal(
        model.weigh(0)(losses, rows), co_teaching.peer_weights(losses, labels, strength=0.2)
    )


def test_the_report_ranks_test_pairs_both_ways_beside_untrained_scores():
    # Reciprocal ranks by sorting, resume by resume; scores of pairs do not tie here. True matches
    # that nobody observed count, and pairs whose labels training or validation knows do not.
    one = case()
    model, variables = one.model, (one.state.params, one.state.model_state)
    scalars = model.metrics()["ranking"]()(jax.random.key(0), variables).scalars
    task = model.task
    parts = (part.take(part.positive) for part in (task.observed, task.valid))
    known = {pair for part in parts for pair in zip(part.resume, part.job, strict=True)}
    values = {"resume": [], "job": []}
    resumes, jobs = np.unique(task.test.resume), np.arange(len(task.jobs))
    pairs = model.nodes(np.repeat(resumes, len(jobs)), np.tile(jobs, len(resumes)))
    scores = model.probabilities(variables, one.corpus, pairs)["mean"]
    table = dict(zip(((r, j) for r in resumes for j in jobs), scores, strict=True))
    for side, queries in (("resume", resumes), ("job", jobs)):
        for query in queries:
            others = jobs if side == "resume" else resumes
            own = [(query, o) if side == "resume" else (o, query) for o in others]
            own = sorted((pair for pair in own if pair not in known), key=lambda p: -table[p])
            places = [place for place, pair in enumerate(own, start=1) if task.matches[pair]]
            values[side] += [1 / places[0]] if places else []
    for side, expected in values.items():
        assert scalars[f"{side}/mean/queries"] == len(expected)
        assert scalars[f"{side}/mean/mrr"] == pytest.approx(np.mean(expected))
    # A query of words is looked up among documents: on the jobs' side these are the resumes.
    texts = [task.resumes.texts[i] for i in resumes]
    by_words = lexical.bm25_scores(task.jobs.texts, texts)
    part = judged(task, task.test, task.valid)
    ranks = ranking.rank(by_words, part.relevant.T, candidates=part.candidates.T)
    expected = np.nanmean(ranking.reciprocal_rank(ranks))
    assert scalars["job/bm25/mrr"] == pytest.approx(expected)


def test_resumes_of_one_group_are_resampled_together():
    one = case()
    grouped = dataclasses.replace(one.model.task, groups=np.zeros(60, np.int32))
    model = dataclasses.replace(one.model, make_task=lambda: grouped)
    variables = one.state.params, one.state.model_state
    scalars = model.metrics()["ranking"]()(jax.random.key(0), variables).scalars
    assert np.isnan(scalars["resume/mean/mrr_low"]) and np.isfinite(scalars["job/mean/mrr_low"])


@pytest.mark.deep
def test_two_text_views_drop_different_units():
    one = case(views=("text", "text"), graph_share=0.0, dropout=0.5, co_teaching="none")
    both = dict.fromkeys(("text", "text_2"), one.state.params["text"])
    halves = jax.tree.map(lambda leaf: jnp.concatenate([leaf[:8], leaf[:8]]), one.batch)
    (_, aux), _ = one.gradient(both, one.state, halves, one.corpus)
    assert float(aux.metrics["loss_text"]) != float(aux.metrics["loss_text_2"])


def test_texts_without_a_known_word_are_no_near_ones():
    # Cosines of unit vectors by hand; the zero vector has cosine 0 with all.
    rng = np.random.default_rng(0)
    points, queries = (rng.normal(size=(n, 4)).astype(np.float32) for n in (30, 5))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    points[7] = queries[2] = 0
    found = serving.nearest(queries, points, 30)
    for query, row in zip(queries, found, strict=True):
        cosines = points[row] @ query
        assert (np.diff(cosines) <= 1e-6).all()
