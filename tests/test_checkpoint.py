# SPDX-License-Identifier: Apache-2.0
"""Checkpoints under damage, full disks and foreign directories."""

import contextlib
import json
import os
import pathlib
import shutil
import stat
import subprocess

import jax
import numpy as np
import pytest
from toy_system import CONFIG, build

from scorejax import runs
from scorejax.train.checkpoint import Checkpoints
from scorejax.train.integrity import CHECKSUMS, find_damage, write_checksums
from scorejax.train.loop import train
from scorejax.train.state import TrainState
from scorejax.train.workdir import load_config, new_workdir, open_workdir, require_new_workdir
from tests.trees import assert_equal

# Files of orbax's without any state.
UNLISTED = {"_CHECKPOINT_METADATA", "commit_success.txt"}


def make_state(step: int, width: int = 16) -> TrainState:
    """A state whose numbers depend on the step."""
    system = build(CONFIG | {"width": width})
    state = TrainState.create(*system.init(jax.random.key(step)), system.tx)
    state = jax.tree.map(lambda leaf: np.array(leaf), state)
    return state.replace(step=np.array(step, np.int32))


def save_steps(workdir: pathlib.Path, steps, **options) -> None:
    with Checkpoints(workdir, **options) as checkpoints:
        for step in steps:
            checkpoints.save(make_state(step))


def save_and_rank(checkpoints: Checkpoints, step: int, scalars) -> None:
    """As the loop does: an evaluation follows the save of its step."""
    checkpoints.save(make_state(step))
    if scalars:
        checkpoints.rank(step, scalars)


def steps_in(workdir: pathlib.Path) -> list[int]:
    names = (path.name for path in (workdir / "checkpoints").iterdir())
    return sorted(int(name) for name in names if name.isdecimal())


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    """A directory with the checkpoints 10 and 20, to be copied."""
    workdir = open_workdir(tmp_path_factory.mktemp("run"), CONFIG)
    save_steps(workdir, [10, 20])
    return workdir


@pytest.fixture
def run(two_steps, tmp_path):
    """A copy of that directory, to be harmed."""
    return pathlib.Path(shutil.copytree(two_steps, tmp_path / "run"))


def test_what_was_saved_comes_back_bit_for_bit(run):
    with Checkpoints(run) as checkpoints:
        assert_equal(checkpoints.restore_latest(make_state(0)), make_state(20))
    _, (params, model_state), step = runs.open(run)
    assert step == 20
    assert_equal(params, make_state(20).ema_params)
    assert_equal(model_state, make_state(20).model_state)
    assert_equal(runs.open(run, step=10).variables[0], make_state(10).ema_params)


def test_a_new_directory_has_no_checkpoint(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore_latest(make_state(0)) is None


def test_the_latest_and_the_best_are_kept_across_restarts(tmp_path):
    options = {"keep_latest": 2, "best_metric": "bits_per_dim", "best_mode": "min"}
    for steps in ((1, 2, 3), (4, 5)):
        with Checkpoints(tmp_path, **options) as checkpoints:
            for step in steps:
                bits = {1: 3.0, 2: 1.0, 4: 2.0}.get(step)
                save_and_rank(checkpoints, step, {"bits_per_dim": bits} if bits else {})
    assert steps_in(tmp_path) == [2, 4, 5]
    with Checkpoints(tmp_path, **options) as checkpoints:
        assert checkpoints.latest_step() == 5
        with pytest.raises(ValueError, match=r"best_metric='bits_per_dim' is not among .* loss"):
            save_and_rank(checkpoints, 6, {"loss": 1.0})


def test_a_run_that_ranks_by_another_metric_goes_on_saving(tmp_path):
    found = {
        1: {"loss": 1.0, "size": 9.0},
        2: {"loss": 2.0, "size": 5.0},
        3: {"loss": 3.0, "size": 7.0},
    }
    for step, metric in ((1, "loss"), (2, "size"), (3, "size")):
        with Checkpoints(tmp_path, keep_latest=1, best_metric=metric) as checkpoints:
            save_and_rank(checkpoints, step, found[step])
    assert steps_in(tmp_path) == [2, 3]


@pytest.mark.parametrize("mode", ["min", "max"])
def test_an_evaluation_that_is_not_finite_is_never_the_best(tmp_path, mode):
    values = {"min": [3.0, 1.0, np.nan, 2.0, np.inf], "max": [1.0, 3.0, np.nan, 2.0, -np.inf]}[mode]
    options = {"keep_latest": 1, "best_metric": "loss", "best_mode": mode}
    with Checkpoints(tmp_path, **options) as checkpoints:
        for step, value in enumerate(values):
            save_and_rank(checkpoints, step, {"loss": value})
    assert steps_in(tmp_path) == [1, 4]


def test_the_best_of_a_run_of_the_release_before_is_kept(run):
    # That release stored the scalars of an evaluation with the checkpoint, as orbax does.
    for step, loss in ((10, 1.0), (20, 2.0)):
        (run / "checkpoints" / str(step) / "metrics").mkdir()
        scalars = json.dumps({"loss": loss})
        (run / "checkpoints" / str(step) / "metrics" / "metrics").write_text(scalars)
        write_checksums(run / "checkpoints" / str(step))
    with Checkpoints(run, keep_latest=1, best_metric="loss") as checkpoints:
        assert_equal(checkpoints.restore_latest(make_state(0)), make_state(20))
        save_and_rank(checkpoints, 30, {"loss": 1.5})
    assert steps_in(run) == [10, 30]


def test_the_step_before_is_deleted_when_the_new_one_is_on_disk(tmp_path, monkeypatch):
    synced, checked = {}, []

    def fsync(handle):
        synced[os.fstat(handle).st_ino] = set(os.listdir(handle)) if is_directory(handle) else None

    def rmtree(directory, **options):
        # What a power failure would leave now: the files and the names that were synced.
        directory = pathlib.Path(directory)
        newest = directory.parent / "2"
        assert directory.name.startswith("1.")  # in a name that the next start sweeps away
        for path in (newest, *newest.rglob("*")):
            if path.is_file():
                assert path.name in UNLISTED or path.stat().st_ino in synced, path
            # Orbax adds files without any state to a directory that is synced already.
            else:
                names = {item.name for item in path.iterdir()} - UNLISTED
                assert names <= synced[path.stat().st_ino], path
        assert "2" in synced[newest.parent.stat().st_ino]
        checked.append(directory.name[0])
        original(directory, **options)

    is_directory = lambda handle: stat.S_ISDIR(os.fstat(handle).st_mode)
    original = shutil.rmtree
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(shutil, "rmtree", rmtree)
    save_steps(tmp_path, [1, 2], keep_latest=1)
    assert checked == ["1"]
    assert steps_in(tmp_path) == [2]


def test_a_broken_record_of_evaluations_is_one_line(run):
    for text in ("{", "[1]", '{"1": 2}', '{"a": {}}'):
        (run / "evaluations.json").write_text(text)
        with pytest.raises(RuntimeError, match=r"evaluations.json is not the record .* Remove it"):
            Checkpoints(run)


def files_of(directory: pathlib.Path) -> list[str]:
    return sorted(str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file())


@pytest.mark.deep
def test_a_flipped_bit_in_any_file_that_holds_state_is_noticed(run):
    step = run / "checkpoints" / "20"
    assert find_damage(step) is None
    rng, noticed = np.random.default_rng(0), 0
    for name in files_of(step):
        if name in UNLISTED:
            continue
        original = (step / name).read_bytes()
        # The first and last bit, and twenty at random.
        bits = [0, 8 * len(original) - 1, *rng.integers(8 * len(original), size=20)]
        for bit in bits if original else []:
            flipped = bytearray(original)
            flipped[bit // 8] ^= 1 << (bit % 8)
            (step / name).write_bytes(flipped)
            assert find_damage(step), (name, bit)
            noticed += 1
        (step / name).write_bytes(original)
    assert noticed > 200
    assert find_damage(step) is None


def harm(step: pathlib.Path, how: str) -> None:
    largest = max((p for p in step.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    if how == "bit":
        content = bytearray(largest.read_bytes())
        content[len(content) // 2] ^= 4
        largest.write_bytes(content)
    elif how == "truncated":
        os.truncate(largest, largest.stat().st_size // 2)
    elif how == "file removed":
        largest.unlink()
    elif how == "item removed":
        shutil.rmtree(step / "train")
    elif how == "no checksums":
        (step / CHECKSUMS).unlink()
    elif how == "emptied":
        shutil.rmtree(step)
        step.mkdir()
    elif how == "metadata broken":
        (step / "_CHECKPOINT_METADATA").write_text("{")


WAYS = ["bit", "truncated", "file removed", "item removed", "no checksums", "emptied"]


@pytest.mark.parametrize("how", WAYS)
def test_the_step_before_a_damaged_one_is_used_and_one_line_says_so(run, how, capfd):
    harm(run / "checkpoints" / "20", how)
    _, (params, _), step = runs.open(run)
    assert step == 10
    assert_equal(params, make_state(10).ema_params)
    assert (run / "checkpoints" / "20").exists()
    capfd.readouterr()
    with Checkpoints(run) as checkpoints:
        assert_equal(checkpoints.restore_latest(make_state(0)), make_state(10))
        (line,) = capfd.readouterr().err.splitlines()
        assert "damaged checkpoint 20" in line
        assert "using step 10" in line
        checkpoints.save(make_state(20))
    with Checkpoints(run) as checkpoints:
        assert_equal(checkpoints.restore_latest(make_state(0)), make_state(20))
    assert not capfd.readouterr().err
    assert (run / "damaged" / "20").is_dir()


def test_a_broken_record_of_times_does_not_hide_the_state(run):
    harm(run / "checkpoints" / "20", "metadata broken")
    with Checkpoints(run) as checkpoints:
        assert_equal(checkpoints.restore_latest(make_state(0)), make_state(20))


def test_nothing_is_touched_if_every_checkpoint_is_damaged(run):
    for step in (10, 20):
        harm(run / "checkpoints" / str(step), "truncated")
    with pytest.raises(RuntimeError, match=r"damaged checkpoint 10 .*, 20 .* no other is left"):
        Checkpoints(run)
    with pytest.raises(RuntimeError, match="no sound checkpoint"):
        runs.open(run)
    assert steps_in(run) == [10, 20]


def test_a_model_of_another_shape_is_one_line_naming_the_first_array(run):
    with (
        Checkpoints(run) as checkpoints,
        pytest.raises(
            RuntimeError, match=r"does not fit the config: \S*kernel is float32\[3, 16\]"
        ),
    ):
        checkpoints.restore_latest(make_state(0, width=8))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"system": "other", "width": 8}, "system='toy'"),
        ({"width": 8}, "width=16"),
        ({"seed": 3}, "seed=0"),
        ({"log_ridge": 2.0}, "log_ridge=1.0"),  # a model's key, though it begins as log_every
    ],
)
def test_a_workdir_of_another_run_is_refused_and_not_changed(run, change, words):
    open_workdir(run, CONFIG | {"log_ridge": 1.0})
    before = (run / "config.json").read_bytes()
    with pytest.raises(ValueError, match=words) as error:
        open_workdir(run, CONFIG | {"log_ridge": 1.0} | change)
    assert "\n" not in str(error.value)
    assert (run / "config.json").read_bytes() == before


def test_the_config_is_written_when_the_run_is_new_or_what_may_change_has_changed(run):
    written = (run / "config.json").stat().st_mtime_ns
    open_workdir(run, CONFIG)
    assert (run / "config.json").stat().st_mtime_ns == written
    open_workdir(run, CONFIG | {"num_train_steps": 99})
    assert load_config(run).to_dict() == CONFIG | {"num_train_steps": 99}


def test_a_new_config_is_on_disk_before_training_starts(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_ino))
    workdir = open_workdir(tmp_path / "run", CONFIG)
    for path in (workdir / "config.json", workdir, workdir.parent):
        assert path.stat().st_ino in synced, path


def test_a_resumed_run_may_last_longer_and_report_otherwise(run):
    open_workdir(run, CONFIG | {"num_train_steps": 99, "save_every": 2, "eval_every": 0})
    assert load_config(run)["num_train_steps"] == 99


def test_a_run_of_given_weights_is_there_whole_or_not_at_all(tmp_path):
    with pytest.raises(KeyboardInterrupt), new_workdir(tmp_path / "run", CONFIG):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    with new_workdir(tmp_path / "run", CONFIG) as building:
        save_steps(building, [7])
        assert not (tmp_path / "run").exists()
    assert_equal(runs.open(tmp_path / "run").variables[0], make_state(7).ema_params)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    with pytest.raises(ValueError, match="already holds a run"):
        require_new_workdir(tmp_path / "run")
    (tmp_path / "notes").mkdir()
    require_new_workdir(tmp_path / "notes")
    (tmp_path / "notes" / "a").touch()
    with pytest.raises(ValueError, match="notes is not empty"):
        require_new_workdir(tmp_path / "notes")


def test_a_missing_or_misshapen_workdir_is_one_line(tmp_path, run):
    with pytest.raises(FileNotFoundError, match="is not a directory"):
        runs.open(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        runs.open(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 15 .* there is 10, 20"):
        runs.open(run, step=15)
    (run / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not a JSON file"):
        open_workdir(run, CONFIG)
    (run / "config.json").unlink()
    with pytest.raises(ValueError, match=r"has checkpoints but no config\.json"):
        open_workdir(run, CONFIG)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write to workdir"):
        open_workdir(tmp_path / "file" / "run", CONFIG)
    shutil.rmtree(run / "checkpoints")
    (run / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        runs.open(run)


@contextlib.contextmanager
def mounted(directory: pathlib.Path, *arguments: str):
    """Mounts something on a directory, or skips the test where that is not allowed."""
    if os.geteuid() or not shutil.which("mount"):
        pytest.skip("mounting needs root")
    result = subprocess.run(["mount", *arguments, str(directory)], capture_output=True, text=True)
    if result.returncode:
        pytest.skip(f"cannot mount here: {result.stderr}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


def test_a_full_disk_is_one_line_and_spares_the_checkpoints(tmp_path):
    with mounted(tmp_path, "-t", "tmpfs", "-o", "size=512k", "tmpfs"):
        save_steps(tmp_path, [1])
        free = os.statvfs(tmp_path)
        (tmp_path / "ballast").write_bytes(bytes(free.f_bavail * free.f_bsize - 24 * 1024))
        with pytest.raises(OSError, match="No space left on device") as error:
            save_steps(tmp_path, [2])
        assert "\n" not in str(error.value)
        (tmp_path / "ballast").unlink()
        assert steps_in(tmp_path) == [1]
        with Checkpoints(tmp_path) as checkpoints:
            assert_equal(checkpoints.restore_latest(make_state(0)), make_state(1))
            checkpoints.save(make_state(2))
        assert steps_in(tmp_path) == [1, 2]


def test_a_read_only_workdir_is_one_line_and_can_still_be_read(run, tmp_path):
    with mounted(run, "--bind", str(run)):
        subprocess.run(["mount", "-o", "remount,ro,bind", str(run)], check=True)
        with pytest.raises(OSError, match="Read-only file system") as error:
            train(build(CONFIG), CONFIG, run)
        assert "\n" not in str(error.value)
        assert runs.open(run).step == 20
