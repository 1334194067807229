# SPDX-License-Identifier: Apache-2.0
"""The matching task of a config: which pairs are learnt from, judged, and edges; planted noise."""

import dataclasses

import numpy as np
import pytest

from configs.mv_con import generated
from scorejax import systems
from scorejax.systems.mv_con.task import make_task


def config(**values):
    found = generated.get_config("debug")
    found.update(values)
    return found


def test_edges_are_no_pairs_with_a_label():
    task = make_task(config())
    num_positives = len(task.interactions) + task.train.positive.sum()
    assert len(task.interactions) == round(0.3 * num_positives)
    as_set = lambda rows: set(map(tuple, rows.tolist()))
    edges, labelled = as_set(task.interactions), as_set(task.supervised())
    assert not edges & labelled


def test_wrong_labels_are_known_for_wrong():
    task = make_task(config(noise_rate=0.2, graph_share=0.0, num_negatives=2))
    num = len(task.observed)
    planted = task.train.label[:num] != task.observed.label
    assert planted.sum() == round(0.2 * num)
    truth = task.matches[task.train.resume, task.train.job]
    np.testing.assert_array_equal(task.flipped, truth != task.train.positive)
    # Of generated pairs 30 % of those with label 0 match, and 8 % of all pairs.
    clean = make_task(config(graph_share=0.0))
    hidden = clean.flipped[clean.train.label == 0].mean()
    assert 0.15 < hidden < 0.45 and not clean.flipped[clean.train.label == 1].any()


def test_an_edge_tells_no_label():
    # Each resume of ESCO has one positive: were its negatives kept where that became an edge,
    # having an edge would mean not to match.
    task = make_task(config(num_negatives=3))
    plain = make_task(config())
    drawn = task.train.take(slice(len(plain.train), None))
    assert len(drawn) == 3 * plain.train.positive.sum()
    assert not drawn.positive.any()
    np.testing.assert_array_equal(
        np.bincount(drawn.resume), 3 * np.bincount(plain.train.resume[plain.train.positive])
    )
    positives = plain.train.take(plain.train.positive)
    known = {*zip(positives.resume, positives.job, strict=True)}
    known |= set(map(tuple, plain.interactions.tolist()))
    assert not known & {*zip(drawn.resume, drawn.job, strict=True)}


def test_jobs_of_the_test_are_no_negatives():
    task = make_task(config(num_negatives=3, split="job", graph_share=0.0))
    assert not set(task.test.job) & set(task.train.job)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"views": ("txt",)}, "did you mean 'text'"),
        ({"views": ()}, "one view, or two"),
        ({"views": ("text", "relation", "text")}, "one view, or two"),
        ({"views": ("relation", "relation")}, "one view, or two"),
        ({"co_teaching": "selct"}, "did you mean 'select'"),
        ({"dataset": "tables"}, "set --config.resumes"),
        ({"dataset": "recbole", "data_dir": ""}, "set --config.data_dir"),
        ({"views": ("text",)}, "graph_share=0.3 sets pairs apart"),
        ({"valid_share": 0.0}, "the validation part has no pair with label 1"),
        ({"graph_share": 1.0}, "graph_share needs to lie in"),
        ({"num_negatives": -1}, "num_negatives needs to be at least 0"),
    ],
)
def test_impossible_configs_are_refused(values, message, monkeypatch):
    monkeypatch.delenv("SCOREJAX_DATA_DIR", raising=False)
    with pytest.raises(ValueError, match=message):
        systems.load(config(**values))


def test_files_of_another_content_are_refused():
    # One pair less, which no array of the documents shows.
    task = make_task(config())
    changed = dataclasses.replace(task, train=task.train.take(slice(1, None)))
    before, after = task.digests(), changed.digests()
    assert (before["documents"] == after["documents"]).all()
    assert (before["pairs"] != after["pairs"]).any()


def test_columns_of_tables_have_the_names_that_the_config_gives(tmp_path):
    texts = {"a.csv": ("r", 12, "key,title,body"), "b.csv": ("j", 6, "nr,name,body")}
    for name, (kind, num, header) in texts.items():
        rows = "".join(f"{kind}{i},title {i},skill{i} word\n" for i in range(num))
        (tmp_path / name).write_text(f"{header}\n{rows}")
    pairs = "".join(f"r{i},j{i % 6},{i % 2}\n" for i in range(12))
    (tmp_path / "c.csv").write_text(f"who,what,hired\n{pairs}")
    files = {"resumes": "a.csv", "jobs": "b.csv", "pairs": "c.csv"}
    names = {"id_column": "key", "text_columns": ("title", "body"), "resume_column": "who"}
    names |= {"job_id_column": "nr", "job_text_columns": ("body", "name")}
    names |= {"job_column": "what", "label_columns": ("hired",), "dataset": "tables"}
    shares = {"valid_share": 0.25, "test_share": 0.25, "graph_share": 0.0}
    paths = {key: str(tmp_path / name) for key, name in files.items()}
    task = make_task(config(**paths, **names, **shares))
    assert task.resumes.sentences[3] == ("title 3", "skill3 word")
    assert task.jobs.sentences[3] == ("skill3 word", "title 3")
    judged = {*zip(task.valid.resume, task.valid.job, task.valid.label, strict=True)}
    assert judged <= {(i, i % 6, i % 2) for i in range(12)}
