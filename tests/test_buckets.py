# SPDX-License-Identifier: Apache-2.0
"""Runs in a bucket of Google Cloud Storage, by the real client libraries and a server of our own.

Everything passes over HTTP as it would to Google: configs, logs and pictures through gcsfs, arrays
through tensorstore, deletions of steps through gcsfs and google-cloud-storage. Not tested here are
credentials, HTTPS, and buckets with hierarchical namespaces.
"""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event
from toy_system import CONFIG, build

from launch import command
from scorejax import files, runs
from scorejax.evaluate import reports, segmented_folder
from scorejax.evaluate.parts import Parts
from scorejax.train import workdir
from scorejax.train.loop import train
from tests import fake_gcs
from tests.commands import run
from tests.test_parallel import in_two_processes
from tests.trees import assert_equal

TOY = str(pathlib.Path(__file__).resolve().parent / "toy_system.py")


@pytest.fixture(scope="module")
def store():
    """The objects of a bucket; the libraries of this process and its children are led to it."""
    if importlib.util.find_spec("gcsfs") is None:
        pytest.skip("gcsfs is not installed")
    store = fake_gcs.Store()
    with fake_gcs.serving(store) as variables, pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        yield store


@pytest.fixture(autouse=True)
def nothing_local(tmp_path, monkeypatch):
    """Each test starts in an empty directory, and leaves no ./gs: there."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield
    assert not list((tmp_path / "here").iterdir())


def kill_during_save(process: subprocess.Popen, store: fake_gcs.Store, prefix: str) -> None:
    """Kills a run once it has begun to write a step and not ended."""
    unfinished = lambda: f"{prefix}/commit_success.txt" not in store.names(prefix)
    while process.poll() is None:
        if store.names(f"{prefix}/train/") and unfinished():
            process.kill()
            break
        time.sleep(0.001)
    process.communicate()
    assert store.names(prefix)
    assert unfinished(), "the save ended before the run was killed"


@pytest.fixture(scope="module")
def killed_and_resumed(store, tmp_path_factory):
    """(state, local state): of a run in a bucket, killed in a save, and of one never killed."""
    arguments = [sys.executable, TOY, "gs://bucket/deep/run", "--devices=2"]
    process = subprocess.Popen(
        arguments, stderr=subprocess.PIPE, cwd=tmp_path_factory.mktemp("child")
    )
    kill_during_save(process, store, "deep/run/checkpoints/12")
    state = train(build(CONFIG), CONFIG, "gs://bucket/deep/run")
    local = tmp_path_factory.mktemp("local")
    return state, train(build(CONFIG), CONFIG, local), local


def metrics(text: str) -> list[dict]:
    rows = [json.loads(line) for line in text.splitlines()]
    return [{k: v for k, v in row.items() if k != "train/steps_per_second"} for row in rows]


@pytest.mark.slow  # test_resume.py kills runs on a disk
def test_a_run_killed_in_a_save_ends_bit_for_bit_where_a_local_one_ends(store, killed_and_resumed):
    state, expected, local = killed_and_resumed
    assert_equal(state, expected)
    # `keep_latest` is 3: older steps are deleted, and what the killed save left was swept away.
    steps = {name.split("/")[3] for name in store.names("deep/run/checkpoints/")}
    assert steps == {"32", "36", "40"}
    logged = metrics(store.content("deep/run/metrics.jsonl").decode())
    assert logged == metrics((local / "metrics.jsonl").read_text())
    assert store.content("deep/run/config.json") == (local / "config.json").read_bytes()
    pictures = {path.name for path in (local / "pictures").iterdir()}
    assert {name.split("/")[-1] for name in store.names("deep/run/pictures/")} == pictures


@pytest.mark.deep
def test_what_a_run_in_a_bucket_learned_opens_as_that_of_a_local_run(killed_and_resumed):
    _, _, local = killed_and_resumed
    here, there = runs.open(local), runs.open("gs://bucket/deep/run")
    assert here.step == there.step == 40
    assert here.config.to_dict() == there.config.to_dict()
    assert_equal(here.variables, there.variables)
    assert_equal(runs.open("gs://bucket/deep/run/", 36).variables, runs.open(local, 36).variables)


def test_event_files_in_a_bucket_hold_the_steps_of_each_start(store, killed_and_resumed):
    steps = []
    for name in store.names("deep/run/tensorboard/"):
        content, position, found = store.content(name), 0, set()
        while position < len(content):
            length = int.from_bytes(content[position : position + 8], "little")
            event = Event.FromString(content[position + 12 : position + 12 + length])
            found |= {event.step for value in event.summary.value if value.tag == "train/loss"}
            position += 16 + length
        steps.append(found)
    first, second = steps
    # The first start sent what it had before the save in which it was killed, of step 12.
    assert first >= set(range(2, 13, 2))
    assert second == set(range(10, 41, 2))


@pytest.mark.deep
def test_a_damaged_step_in_a_bucket_is_set_aside(store, killed_and_resumed, capfd):
    prefix = "deep/run/checkpoints/40/"
    name = next(name for name in store.names(prefix) if "model/ocdbt.process_0/d/" in name)
    content = bytearray(store.content(name))
    content[len(content) // 2] ^= 1
    store.put(name, bytes(content))
    harmed = {name.removeprefix(prefix): store.content(name) for name in store.names(prefix)}
    assert runs.open("gs://bucket/deep/run").step == 36
    state = train(build(CONFIG), CONFIG, "gs://bucket/deep/run")
    assert_equal(state, killed_and_resumed[0])
    lines = [line for line in capfd.readouterr().err.splitlines() if "damaged" in line]
    assert lines[1].endswith("moved to gs://bucket/deep/run/damaged; using step 36.")
    aside = "deep/run/damaged/40/"
    assert {name.removeprefix(aside): store.content(name) for name in store.names(aside)} == harmed
    assert runs.open("gs://bucket/deep/run").step == 40


def test_a_built_run_is_there_whole_or_not_at_all(store):
    def fail():
        with workdir.new_workdir("gs://bucket/built", {"seed": 1}) as path:
            files.save_text(path / "weights", "7")
            raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        fail()
    assert not store.names("built")
    with workdir.new_workdir("gs://bucket/built", {"seed": 1}) as path:
        files.save_text(path / "weights", "7")
        with pytest.raises(FileNotFoundError, match="no run is there"):
            runs.read_config("gs://bucket/built")
    assert store.content("built/weights") == b"7"
    assert runs.read_config("gs://bucket/built").seed == 1
    with pytest.raises(ValueError, match="already holds a run"):
        workdir.require_new_workdir("gs://bucket/built")
    # What a browser makes for a new folder: an empty object that is no entry of it.
    store.put("empty/", b"")
    assert str(workdir.require_new_workdir("gs://bucket/empty")) == "gs://bucket/empty"


def test_a_resumed_run_with_another_config_is_refused(killed_and_resumed):
    with pytest.raises(ValueError, match=r"gs://bucket/deep/run holds a run with seed=0"):
        train(build(CONFIG), CONFIG | {"seed": 1}, "gs://bucket/deep/run")


def test_outputs_of_commands_are_written_to_the_bucket(store):
    out = command.output("", "gs://bucket/out", "samples")
    images, nfe = np.random.default_rng(0).random((4, 8, 8, 1)), np.arange(4)
    assert reports.save_samples(out, {"image": images, "nfe": nfe}, step=3) == (
        "gs://bucket/out/samples.png, gs://bucket/out/samples.npz"
    )
    np.testing.assert_array_equal(files.load_npz(f"{out}.npz")["images"], images)
    reports.save_and_print("gs://bucket/out/report.json", {"fid": 2.0})
    assert json.loads(store.content("out/report.json")) == {"fid": 2.0}
    instances = np.arange(12).reshape(3, 4)
    segmented_folder.save("gs://bucket/out/cells", np.zeros((3, 4, 3), np.uint8), instances)
    kinds = {"cells_instances.png", "cells_mask.png", "cells_overlay.png"}
    assert {"out/" + kind for kind in kinds} < set(store.names("out/"))
    with files.as_path("gs://bucket/out/cells_instances.png").open("rb") as file:
        np.testing.assert_array_equal(np.asarray(Image.open(file)), instances)


def test_parts_of_a_long_computation_are_kept_in_the_bucket(store):
    parts = Parts("gs://bucket/long/fid", {"seed": 1})
    part = {"x": np.arange(3.0)}
    assert not parts.has("0")
    parts.save("0", part)
    again = Parts("gs://bucket/long/fid", {"seed": 1})
    assert again.has("0")
    np.testing.assert_array_equal(again.load("0")["x"], part["x"])
    parts.remove()
    assert not store.names("long")


def test_a_bucket_that_refuses_is_one_line(store, killed_and_resumed):
    calls = {
        "open": lambda: runs.open("gs://bucket/deep/run"),
        "train": lambda: train(build(CONFIG), CONFIG, "gs://bucket/deep/run"),
        "save": lambda: files.save_text("gs://bucket/out/x", "x"),
    }
    for name, call in calls.items():
        store.forbidden = True
        try:
            with pytest.raises(OSError, match="Forbidden") as error:
                call()
        finally:
            store.forbidden = False
        assert len(str(error.value).splitlines()) == 1, name
    with pytest.raises(OSError, match="cannot write to workdir gs://absent/run: "):
        train(build(CONFIG), CONFIG, "gs://absent/run")
    with pytest.raises(FileNotFoundError, match="no run is there"):
        runs.open("gs://bucket/nowhere")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("s3://bucket/run", "s3://bucket/run.* needs to be a local path or gs://bucket/name"),
        ("http://host/run", "needs to be a local path or gs://bucket/name"),
        (pathlib.Path("gs://bucket/run"), "pathlib.Path drops a slash"),
        (pathlib.Path("s3://bucket/run"), "s3:/bucket/run.* needs to be a local path"),
        ("gs://", "names no bucket"),
        ("gs:///run", "names no bucket"),
    ],
)
def test_what_is_no_path_is_refused_in_one_line(path, words):
    for use in (
        lambda: train(build(CONFIG), CONFIG, path),
        lambda: runs.open(path),
        lambda: command.output(str(path), "", ""),
        lambda: files.save_text(path, ""),
    ):
        with pytest.raises(ValueError, match=words) as error:
            use()
        assert "\n" not in str(error.value)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs the package gcsfs, .*: pip install gcsfs"):
        train(build(CONFIG), CONFIG, "gs://bucket/run")


def test_an_index_is_no_bucket(store):
    from scorejax import bregman

    with pytest.raises(ValueError, match="an index needs a local path; got gs://bucket/index"):
        bregman.build_index(np.ones((4, 2)), "squared_euclidean", path="gs://bucket/index")


def test_a_name_with_a_colon_is_local():
    for name in ("run:1", "a:b/c", "./gs:/x", "/tmp/gs:/x", "c:/run"):
        assert files.as_path(name) == pathlib.Path(name)
        assert files.absolute(name) == pathlib.Path(name).absolute()


@pytest.mark.slow
def test_the_commands_work_on_a_run_in_a_bucket(store):
    where = "--workdir=gs://bucket/digits"
    config = ("--config=configs/score_sde/digits.py:debug", "--config.num_train_steps=20")
    run("train", *config, where, **os.environ)
    run("sample", where, "--num=2", "--sampler=ode", **os.environ)
    run("likelihood", where, "--num=2", **os.environ)
    run("evaluate", where, "--metrics=loss", **os.environ)
    names = {name.removeprefix("digits/") for name in store.names("digits/")}
    assert {"samples.png", "samples.npz", "likelihood_test.json", "evaluation.json"} < names
    assert not any("parts-" in name for name in names)
    assert int(files.load_npz("gs://bucket/digits/samples.npz")["step"]) == 20


@pytest.mark.slow
def test_two_processes_train_into_one_bucket(store, killed_and_resumed):
    in_two_processes("run(sys.argv[2])", "gs://bucket/two")
    logged = metrics(store.content("two/metrics.jsonl").decode())
    assert [row["step"] for row in logged if "train/loss" in row] == list(range(2, 41, 2))
    assert "two/process_1/metrics.jsonl" in store.names("two/")
    assert runs.open("gs://bucket/two").step == 40
    # As in test_parallel: collectives of another kind sum in another order, which Adam amplifies.
    compare = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    found, expected = (runs.open(path) for path in ("gs://bucket/two", killed_and_resumed[2]))
    jax.tree.map(compare, found.variables, expected.variables)
