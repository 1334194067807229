# SPDX-License-Identifier: Apache-2.0
"""Resumes, jobs and pairs from files: all layouts, and each kind of damage in one line."""

import csv
import datetime
import json

import numpy as np
import pytest

from scorejax.data.matching_files import read, read_documents, read_tables
from scorejax.data.matching_rows import DocumentColumns, PairColumns

RESUMES = [
    {"id": "r1", "text": 'Writes Python.\nLikes "tests", mostly', "category": "it"},
    {"id": "r2", "text": "Älteste Köchin", "category": "food"},
    {"id": "r3", "text": "Drives", "category": ""},
]
JOBS = [
    {"id": "7", "text": "Python developer", "category": "it"},
    {"id": "8", "text": "Cook; kitchen", "category": "food"},
]
PAIRS = [
    {"resume_id": "r1", "job_id": "7", "label": "1", "time": "2024-05-02"},
    {"resume_id": "r2", "job_id": "8", "label": "1", "time": "2024-05-01T12:00:00+02:00"},
    {"resume_id": "r3", "job_id": "7", "label": "0", "time": "1714521600.5"},
    {"resume_id": "r1", "job_id": "7", "label": "1", "time": "2024-05-01"},
    {"resume_id": "r2", "job_id": "8", "label": "1", "time": "2025-01-01"},
]


def write(path, records):
    """Records as .csv, .jsonl or .parquet, whichever the path says."""
    if path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, records[0])
            writer.writeheader()
            writer.writerows(records)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    else:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(records), path)
    return path


def tables(folder, suffix=".csv", resumes=RESUMES, jobs=JOBS, pairs=PAIRS):
    named = {"resumes": resumes, "jobs": jobs, "pairs": pairs}
    return [write(folder / f"{name}{suffix}", records) for name, records in named.items()]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_three_tables_are_read_as_they_were_written(tmp_path, suffix):
    matching, split, skipped = read_tables(*tables(tmp_path, suffix))
    assert split is None and skipped == ()
    assert matching.resumes.ids == ("r1", "r2", "r3") and matching.jobs.ids == ("7", "8")
    assert matching.resumes.sentences[0] == ("Writes Python.", 'Likes "tests", mostly')
    assert matching.resumes.sentences[1] == ("Älteste Köchin",)
    assert matching.resumes.categories == ("it", "food", "")
    pairs = matching.pairs
    np.testing.assert_array_equal(pairs.resume, [0, 1, 2])
    np.testing.assert_array_equal(pairs.job, [0, 1, 0])
    np.testing.assert_array_equal(pairs.label, [1, 1, 0])
    # A repeated pair counts at its first time, wherever that is; days without a zone are UTC.
    day = datetime.datetime(2024, 5, 1, tzinfo=datetime.UTC).timestamp()
    np.testing.assert_array_equal(pairs.time, [day, day + 10 * 3600, 1714521600.5])


def test_numbers_of_typed_files_are_the_ids_of_text_files(tmp_path):
    pairs = [
        {"resume_id": "r1", "job_id": 7, "label": 1, "time": 3.25},
        {"resume_id": "r2", "job_id": 8.0, "label": True, "time": 4},
        {"resume_id": "r3", "job_id": 7, "label": 0.0, "time": 5},
    ]
    resumes, jobs, _ = tables(tmp_path)
    found = read_tables(resumes, jobs, write(tmp_path / "typed.jsonl", pairs)).matching.pairs
    np.testing.assert_array_equal(found.job, [0, 1, 0])
    np.testing.assert_array_equal(found.label, [1, 1, 0])
    np.testing.assert_array_equal(found.time, [3.25, 4, 5])


def test_columns_have_the_names_that_the_user_says(tmp_path):
    resumes = [{"user": "a", "title": "Cook", "past": "Two\nyears", "kind": "x"}]
    jobs = [
        {"no": "1", "what": "Kitchen", "where": "Graz"},
        {"no": "2", "what": "Bar", "where": ""},
    ]
    acts = [
        {"u": "a", "j": "1", "applied": "true", "hired": "True", "when": "9"},
        {"u": "a", "j": "2", "applied": "1", "hired": "0", "when": "8"},
    ]
    options = {
        "resume_columns": DocumentColumns("user", ("past", "title"), "kind"),
        "job_columns": DocumentColumns("no", ()),
    }
    paths = tables(tmp_path, ".csv", resumes, jobs, acts)
    both = PairColumns("u", "j", ("applied", "hired"), "when")
    matching = read_tables(*paths, **options, pair_columns=both).matching
    assert matching.resumes.sentences == (("Two", "years", "Cook"),)
    assert matching.resumes.categories == ("x",)
    assert matching.jobs.sentences == (("Kitchen", "Graz"), ("Bar",))
    np.testing.assert_array_equal(matching.pairs.label, [1, 0])
    np.testing.assert_array_equal(matching.pairs.time, [9, 8])
    seen = read_tables(*paths, **options, pair_columns=PairColumns("u", "j", ())).matching
    np.testing.assert_array_equal(seen.pairs.label, [1, 1])
    assert seen.pairs.time is None
    with pytest.raises(
        ValueError, match=r"unknown column of .*pairs\.csv 'wen': did you mean 'when'"
    ):
        read_tables(*paths, **options, pair_columns=PairColumns("u", "j", (), "wen"))
    with pytest.raises(ValueError, match=r"unknown column of .*jobs\.csv 'nr': did you mean 'no'"):
        read_documents(paths[1], DocumentColumns("nr", ()))
    with pytest.raises(ValueError, match=r"unknown column of .*resumes\.csv 'text'"):
        read_documents(paths[0], DocumentColumns("user"))


def test_sentences_are_split_as_the_caller_says(tmp_path):
    path = write(tmp_path / "jobs.csv", JOBS)
    made, skipped = read_documents(path, split_text=lambda text: text.split(";"))
    assert made.sentences == (("Python developer",), ("Cook", "kitchen")) and skipped == ()


def confit(folder):
    resumes = [{"user_id": u, "Skills": f"skills of {u}", "Summary": "s"} for u in "abc"]
    jobs = [{"jd_no": n, "Job Title": f"job {n}", "Company": ""} for n in "12"]
    write(folder / "all_resume.csv", resumes)
    write(folder / "all_jd.csv", jobs)
    parts = {"train_labeled_data": "a1 b2", "valid_classification_data": "c1"}
    for name, pairs in (parts | {"test_classification_data": "c2 a2"}).items():
        rows = [
            {"user_id": u, "jd_no": n, "satisfied": int(i == 0)}
            for i, (u, n) in enumerate(pairs.split())
        ]
        write(folder / f"{name}.jsonl", rows)


def recbole(folder):
    texts = {
        "x.udoc": "user_id:token\tuser_doc:token_seq\n"
        'a\tskills of a\nb\tone "quoted\nb\ttwo\nc\tc\n',
        "x.idoc": "job_id:token\tjob_doc:token_seq\n1\tjob 1\n2\tjob 2\n",
        "x.inter": "user_id:token\tjob_id:token\tdirect:token\tlabel:float\n"
        "a\t1\t0\t1.0\na\t1\t1\t1.0\nb\t2\t1\t0\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def official(folder):
    texts = {
        "geek.sent.id": "a\t4 5\na\t6\nb\t5\nc\t7 7\n",
        "job.sent.id": "1\t8\n2\t9 4\n",
        "data.train": "a\t1\t1\nb\t2\t0\n",
        "data.valid": "c\t1\t1\n",
        "data.test": "c\t2\t1\na\t2\t0\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


@pytest.mark.parametrize(("layout", "lay_out"), [("confit", confit), ("official", official)])
def test_published_layouts_come_with_their_split(tmp_path, layout, lay_out):
    lay_out(tmp_path)
    matching, split, skipped = read(tmp_path, layout)
    assert skipped == () and matching.resumes.ids == ("a", "b", "c")
    assert matching.jobs.ids == ("1", "2")
    rows = lambda p: [*zip(p.resume.tolist(), p.job.tolist(), p.label.tolist(), strict=True)]
    assert rows(split.train) == [(0, 0, 1), (1, 1, 0)]
    assert rows(split.valid) == [(2, 0, 1)]
    assert rows(split.test) == [(2, 1, 1), (0, 1, 0)]
    assert rows(matching.pairs) == rows(split.train) + rows(split.valid) + rows(split.test)
    first = {"confit": ("skills of a", "s"), "official": ("4 5", "6")}[layout]
    assert matching.resumes.sentences[0] == first


def rank_files(folder):
    """Lists of candidates: a job is ranked by b and c, a resume among both jobs."""
    jobs = {"b": {"jd_nos": ["2", 1], "satisfied": [-1, 1]}}
    resumes = {"2": {"user_ids": ["c", "a"], "satisfied": [1, 0]}}
    for name, lists in (("rank_job", jobs), ("rank_resume", resumes)):
        (folder / f"{name}.json").write_text(json.dumps(lists), encoding="utf-8")


def test_lists_of_candidates_come_with_the_split(tmp_path):
    confit(tmp_path)
    rows = lambda p: [*zip(p.resume.tolist(), p.job.tolist(), p.label.tolist(), strict=True)]
    assert read(tmp_path, "confit").split.lists == {}
    rank_files(tmp_path)
    # b with job 2 is a pair to learn from, which a list must not hold.
    with pytest.raises(ValueError, match=r"rank_job\.json, row 1: \('b', '2'\) needs one part"):
        read(tmp_path, "confit")
    found = read(tmp_path, "confit", damaged="skip")
    assert len(found.skipped) == 1
    assert {side: rows(pairs) for side, pairs in found.split.lists.items()} == {
        "resume": [(1, 0, 1)],
        "job": [(2, 1, 1), (0, 1, 0)],  # pairs of the test part may be listed
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "rank_job.json is no JSON: Expecting"),
        ("[1]", "rank_job.json needs a JSON object; got list"),
        ('{"b": {"jd_nos": ["1"]}}', "row 1: query 'b' needs lists 'jd_nos' and 'satisfied'"),
        (
            '{"b": {"jd_nos": ["1"], "satisfied": [1, 0]}}',
            "row 1: query 'b' needs a label for each candidate; got 1 and 2",
        ),
        (
            '{"b": {"jd_nos": ["1"], "satisfied": ["yes"]}}',
            "row 1: query 'b' needs labels 1, 0 or -1; got 'yes'",
        ),
        ('{"z": {"jd_nos": ["1"], "satisfied": [1]}}', "row 1: resume 'z' is unknown"),
        ('{"b": {"jd_nos": ["1"], "satisfied": [0]}}', "needs a candidate with label 1"),
    ],
)
def test_lists_that_cannot_be_used_are_named_in_one_line(tmp_path, text, message):
    confit(tmp_path)
    (tmp_path / "rank_job.json").write_text(text)
    with pytest.raises(ValueError) as refused:
        read(tmp_path, "confit")
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_atomic_files_have_a_row_for_each_sentence(tmp_path):
    recbole(tmp_path)
    matching, split, _ = read(tmp_path, "recbole")
    assert split is None and len(matching.pairs) == 2
    assert matching.resumes.sentences == (("skills of a",), ('one "quoted', "two"), ("c",))
    np.testing.assert_array_equal(matching.pairs.label, [1, 0])
    (tmp_path / "y.udoc").touch()
    with pytest.raises(ValueError, match=r"needs one file \*\.udoc; got 2"):
        read(tmp_path, "recbole")
    with pytest.raises(ValueError, match="did you mean 'recbole'"):
        read(tmp_path, "recbol")


def test_a_pair_in_two_parts_of_a_split_is_refused(tmp_path):
    official(tmp_path)
    (tmp_path / "data.test").write_text("c\t2\t1\na\t1\t1\n")
    message = (
        r"data\.test, row 2: \('a', '1'\) needs one part of the split; data\.train, row 1, has"
    )
    with pytest.raises(ValueError, match=message):
        read(tmp_path, "official")
    found = read(tmp_path, "official", damaged="skip")
    assert len(found.split.test) == 1 and len(found.skipped) == 1


GOOD = {"resumes": "id,text\nr1,one\nr2,two\n", "jobs": "id,text\nj1,one\nj2,two\n"}
GOOD["pairs"] = "resume_id,job_id,label\nr1,j1,1\nr2,j2,0\n"


def write_bytes(folder, **changes):
    paths = []
    for name, text in (GOOD | changes).items():
        paths.append(folder / f"{name}.csv")
        paths[-1].write_bytes(text if isinstance(text, bytes) else text.encode())
    return paths


@pytest.mark.parametrize(
    ("name", "added", "message"),
    [
        ("resumes", b"r3,caf\xe9\n", "needs UTF-8; got byte 0xe9 in column 'text'"),
        ("jobs", b"j1,three\n", "needs an id of its own; 'j1' is that of row 2"),
        ("jobs", b"j3, \n", "needs text; 'j3' is empty"),
        ("jobs", b",three\n", "needs an id; got none"),
        ("jobs", b"j3\n", "needs 2 cells; got 1"),
        ("jobs", b'j3,"three\n', "is no CSV: unexpected end of data"),
        ("pairs", b"r9,j1,1\n", "resume 'r9' is unknown"),
        ("pairs", b"r1,J1,1\n", "job 'J1' is unknown"),
        ("pairs", b"r1,j2,2\n", "a label needs to be 0 or 1; got '2'"),
        ("pairs", b"r1,j1,0\n", "('r1', 'j1') has label 0; pairs.csv, row 2, has 1"),
    ],
)
def test_damaged_rows_are_refused_or_listed_in_one_line(tmp_path, name, added, message):
    paths = write_bytes(tmp_path, **{name: GOOD[name].encode() + added})
    line = f"{tmp_path / name}.csv, row 4: {message}"
    with pytest.raises(ValueError) as refused:
        read_tables(*paths)
    assert str(refused.value).startswith(line) and "\n" not in str(refused.value)
    matching, _, skipped = read_tables(*paths, damaged="skip")
    assert skipped == (str(refused.value),)
    assert [len(matching.resumes), len(matching.jobs), len(matching.pairs)] == [2, 2, 2]


def test_times_and_categories_that_cannot_be_are_damage_too(tmp_path):
    paths = write_bytes(
        tmp_path,
        resumes="id,text,category\nr1,one,x\nr2,two,\nr3,three,y\n",
        jobs="id,text,category\nj1,one,x\nj2,two,\n",
        pairs="resume_id,job_id,label,time\nr1,j1,1,2\nr2,j2,0,soon\nr2,j1,0,inf\n",
    )
    matching, _, skipped = read_tables(*paths, damaged="skip")
    assert matching.resumes.ids == ("r1", "r2") and len(matching.pairs) == 1
    expected = [
        "resumes.csv, row 4: category 'y' of 'r3' is without jobs",
        "pairs.csv, row 3: a time needs to be a finite number or ISO 8601; got 'soon'",
        "pairs.csv, row 4: a time needs to be a finite number or ISO 8601; got 'inf'",
    ]
    assert list(skipped) == [f"{tmp_path}/{line}" for line in expected]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resumes": "id,text\n"}, "resumes.csv has no rows that can be used"),
        ({"resumes": ""}, "resumes.csv has no rows that can be used"),
        ({"resumes": GOOD["resumes"].encode("utf-16")}, "row 1: needs UTF-8; got UTF-16"),
        ({"resumes": b"id,te\xfft\nr1,one\n"}, "row 1: needs UTF-8; got byte 0xff"),
        ({"jobs": "id,text,id\nj1,one,j1\n"}, "row 1: needs each column once; got 'id' twice"),
        ({"pairs": "resume_id,job_id,label\nr1,j1,0\nr2,j2,0\n"}, "none of 2 has label 1"),
        ({"resumes": "id;text\nr1;one\n"}, "resumes.csv 'id'"),
    ],
)
def test_files_without_a_use_are_refused_either_way(tmp_path, changes, message):
    paths = write_bytes(tmp_path, **changes)
    for damaged in ("raise", "skip"):
        with pytest.raises(ValueError, match=message) as refused:
            read_tables(*paths, damaged=damaged)
        assert "\n" not in str(refused.value)


def test_other_files_and_ways_are_refused(tmp_path):
    paths = write_bytes(tmp_path)
    with pytest.raises(ValueError, match=r"unknown suffix of a table '\.xlsx': known: \.csv"):
        read_documents(tmp_path / "jobs.xlsx")
    with pytest.raises(ValueError, match=r"missing\.csv needs to be a file"):
        read_documents(tmp_path / "missing.csv")
    with pytest.raises(ValueError, match="unknown way with damaged rows 'skipp'"):
        read_tables(*paths, damaged="skipp")
    (tmp_path / "jobs.parquet").write_text("no")
    pytest.importorskip("pyarrow")
    with pytest.raises(ValueError, match=r"jobs\.parquet is no parquet file"):
        read_documents(tmp_path / "jobs.parquet")


def test_broken_lines_of_json_are_named(tmp_path):
    path = tmp_path / "jobs.jsonl"
    lines = [
        b'{"id": "a", "text": "one"}',
        b'{"id": "b", "text"',
        b'["c"]',
        b'{"id": "d", "text": ["x"]}',
    ]
    path.write_bytes(
        b"\n".join([*lines, b"", b'{"id": "e", "text": "caf\xe9"}', b'{"id": 5, "text": 6}'])
    )
    made, skipped = read_documents(path, damaged="skip")
    assert made.ids == ("a", "5") and made.sentences == (("one",), ("6",))
    rows = [line.removeprefix(f"{path}, ").split(":")[0] for line in skipped]
    assert rows == ["row 2", "row 3", "row 4", "row 6"]
    with pytest.raises(ValueError, match=r"jobs\.jsonl, row 2: is no JSON"):
        read_documents(path)


def test_parquet_with_broken_text_names_the_row(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    raw = pyarrow.array([b"one", b"caf\xe9", b"three"], pyarrow.binary()).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"id": [1, 2, 3], "text": raw}), tmp_path / "jobs.parquet")
    made, skipped = read_documents(tmp_path / "jobs.parquet", damaged="skip")
    assert made.ids == ("1", "3")
    assert len(skipped) == 1 and "row 2: needs UTF-8; got byte 0xe9 in column 'text'" in skipped[0]


def test_an_open_quotation_mark_costs_its_own_row_alone(tmp_path):
    text = 'id,text\na,one\nb,"open\nc,three\nd,"four, and\nfive"\ne,six\n'
    (tmp_path / "jobs.csv").write_text(text)
    made, skipped = read_documents(tmp_path / "jobs.csv", damaged="skip")
    assert made.ids == ("a", "c", "d", "e") and made.sentences[2] == ("four, and", "five")
    assert len(skipped) == 1 and "jobs.csv, row 3: is no CSV" in skipped[0]


def test_a_fifth_of_broken_rows_is_listed_and_the_rest_is_read(tmp_path):
    rng = np.random.default_rng(0)
    breaks = [b"r%d\n", b"r%d,\n", b"r%d,caf\xe9\n", b"r0,again %d\n"]
    broken = np.zeros(200, int)
    broken[1:] = rng.permutation(np.arange(199) < 40) * rng.integers(1, 5, 199)
    rows = [b"r%d,some text\n" % i if not b else breaks[b - 1] % i for i, b in enumerate(broken)]
    pairs = "resume_id,job_id,label\n" + "".join(f"r{i},j{1 + i % 2},{i % 2}\n" for i in range(200))
    paths = write_bytes(tmp_path, resumes=b"id,text\n" + b"".join(rows), pairs=pairs)
    matching, _, skipped = read_tables(*paths, damaged="skip")
    lost = np.flatnonzero(broken)
    assert len(matching.resumes) == len(matching.pairs) == 160
    # Each broken row once, and each pair that it leaves without a resume.
    for name in ("resumes", "pairs"):
        start = f"{tmp_path / name}.csv, row "
        found = [int(s.removeprefix(start).split(":")[0]) for s in skipped if s.startswith(start)]
        assert sorted(found) == [i + 2 for i in lost]
