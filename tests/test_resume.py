# SPDX-License-Identifier: Apache-2.0
"""Runs that are killed, and go on as if they had not been."""

import json
import math
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
from test_checkpoint import harm, mounted, steps_in
from toy_system import CONFIG, Source, build

from scorejax.report import Evaluation
from scorejax.train.checkpoint import Checkpoints
from scorejax.train.integrity import find_damage
from scorejax.train.loop import train
from scorejax.train.state import TrainState
from tests.slow import slow_where
from tests.trees import assert_equal

TOY = str(pathlib.Path(__file__).resolve().parent / "toy_system.py")


def start(workdir: pathlib.Path, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, TOY, str(workdir), *arguments], stderr=subprocess.PIPE, text=True
    )


def finish(workdir: pathlib.Path, *arguments: str) -> tuple[int, str]:
    """Runs to the end; returns the exit status and what was on stderr."""
    process = start(workdir, *arguments)
    _, stderr = process.communicate(timeout=120)
    return process.returncode, stderr


def final_state(workdir: pathlib.Path) -> TrainState:
    system = build(CONFIG)
    like = jax.eval_shape(
        lambda rng: TrainState.create(*system.init(rng), system.tx), jax.random.key(0)
    )
    with Checkpoints(workdir) as checkpoints:
        return checkpoints.restore_latest(like)


def metrics_of(workdir: pathlib.Path) -> list[dict]:
    """The lines of the log without the rate, which no two runs share."""
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in row.items() if k != "train/steps_per_second"} for row in rows]


def assert_same_run(workdir: pathlib.Path, reference: pathlib.Path) -> None:
    assert_equal(final_state(workdir), final_state(reference))
    assert metrics_of(workdir) == metrics_of(reference)


def kill_at(process: subprocess.Popen, reached) -> bool:
    """Sends SIGKILL as soon as `reached()`; False if the process ended before."""
    drain = threading.Thread(target=process.stderr.read)
    drain.start()
    while process.poll() is None:
        if reached():
            process.kill()
            process.wait()
            drain.join()
            return True
        time.sleep(0.0005)
    drain.join()
    return False


def saving(workdir: pathlib.Path):
    return list((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*"))


# Long enough to be killed many times: a checkpoint every ten steps.
NUM_STEPS = 400
LONG = (f"--num_train_steps={NUM_STEPS}", "--save_every=10", "--eval_every=200", "--log_every=10")


@pytest.fixture(scope="module")
def unkilled(tmp_path_factory):
    """A run that was never killed, on one device."""
    workdir = tmp_path_factory.mktemp("unkilled")
    assert finish(workdir, *LONG)[0] == 0
    return workdir


def kill_and_resume(workdir: pathlib.Path, num_kills: int, seed: int) -> int:
    """Kills a run at random moments, every other time during a save; then lets it end.

    Returns how many times a save was interrupted.
    """
    rng, interrupted = np.random.default_rng(seed), 0
    for number in range(num_kills):
        latest = max(steps_in(workdir), default=0) if (workdir / "checkpoints").exists() else 0
        room = (NUM_STEPS - 40 - latest) // 10  # checkpoints that are left for all the kills
        goal = latest + 10 * rng.integers(1, 2 + max(room // (num_kills - number), 0))
        delay = rng.uniform(0, 0.03)

        def reached(goal=goal, delay=delay, during_save=number % 2 == 0):
            if not (workdir / "checkpoints" / str(goal)).exists():
                return False
            time.sleep(delay)
            return not during_save or bool(saving(workdir))

        assert kill_at(start(workdir, *LONG), reached), "the run ended before it was killed"
        interrupted += bool(saving(workdir))
    assert finish(workdir, *LONG)[0] == 0
    return interrupted


@pytest.mark.slow  # test_buckets.py and test_online_source.py kill runs by default
def test_a_run_killed_twice_ends_where_one_never_killed_ends(unkilled, tmp_path):
    kill_and_resume(tmp_path, num_kills=2, seed=0)
    assert_same_run(tmp_path, unkilled)


@pytest.mark.slow
def test_a_run_killed_twelve_times_ends_where_one_never_killed_ends(unkilled, tmp_path):
    assert kill_and_resume(tmp_path, num_kills=12, seed=1) >= 2
    assert_same_run(tmp_path, unkilled)


@pytest.mark.slow  # by default the signal comes from within the process, in the next test
def test_sigterm_saves_and_the_run_goes_on(unkilled, tmp_path):
    process = start(tmp_path, *LONG)
    while not (tmp_path / "checkpoints" / "50").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0
    step = int(re.search(r"terminated at step (\d+), which is saved", stderr)[1])
    assert max(steps_in(tmp_path)) == step < NUM_STEPS
    assert finish(tmp_path, *LONG)[0] == 0
    assert_equal(final_state(tmp_path), final_state(unkilled))
    steps = [row["step"] for row in metrics_of(tmp_path) if "train/loss" in row]
    assert steps == list(range(10, NUM_STEPS + 1, 10))


def signalling(signals: dict[int, int]) -> Source:
    """Batches of the toy system; a signal arrives while the batch of its step is drawn."""

    class Signalling(Source):
        def next(self, step, state, rng):
            if step in signals:
                signal.raise_signal(signals[step])
            return super().next(step, state, rng)

    return Signalling(CONFIG["batch_size"])


@pytest.mark.deep
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_notice_just_before_an_evaluation_saves_and_the_evaluation_follows(
    number, heeds_interrupts, tmp_path, capfd
):
    expected = train(build(CONFIG), CONFIG, tmp_path / "whole")
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    interrupted = build(CONFIG)._replace(source=signalling({19: number}))
    if number == signal.SIGTERM:
        assert int(train(interrupted, CONFIG, tmp_path / "parts").step) == 20
    else:  # A notebook or a script does not go on as if the run had ended.
        with pytest.raises(KeyboardInterrupt):
            train(interrupted, CONFIG, tmp_path / "parts")
        assert steps_in(tmp_path / "parts")[-1] == 20
    assert "terminated at step 20, which is saved" in capfd.readouterr().err
    assert handlers == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))
    assert metrics_of(tmp_path / "parts")[-1]["step"] == 20
    assert not any("eval/size" in row for row in metrics_of(tmp_path / "parts"))
    assert_equal(train(build(CONFIG), CONFIG, tmp_path / "parts"), expected)
    assert metrics_of(tmp_path / "parts") == metrics_of(tmp_path / "whole")


def test_the_second_interrupt_ends_the_run_at_once(heeds_interrupts, tmp_path):
    twice = build(CONFIG)._replace(source=signalling({9: signal.SIGINT, 10: signal.SIGINT}))
    with pytest.raises(KeyboardInterrupt):
        # Both arrive in one call, which would end at step 20.
        train(twice, CONFIG | {"num_steps_per_call": 20, "save_every": 20}, tmp_path)
    assert steps_in(tmp_path) == []


@pytest.mark.deep
def test_a_run_that_dies_in_an_evaluation_tries_it_again_and_then_goes_on_without(tmp_path, capfd):
    expected = train(build(CONFIG), CONFIG, tmp_path / "whole")
    whole = metrics_of(tmp_path / "whole")
    system, run, killed = build(CONFIG), tmp_path / "run", tmp_path / "killed"

    class Dying(type(system)):
        def evaluate(self, rng, variables):
            step = int(variables[1]["seen"])
            if not (killed / "checkpoints" / str(step)).exists():
                # A kill here leaves these files: the step is there, whole and on disk.
                assert find_damage(run / "checkpoints" / str(step)) is None
            shutil.copytree(run, killed, dirs_exist_ok=True)
            raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")

    for attempt in range(1, 3):
        with pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED"):
            train(Dying(*system), CONFIG, run)
        assert max(steps_in(run)) == 20
        assert json.loads((killed / "evaluations.json").read_text())["20"]["attempts"] == attempt

    # A kill, which may be a preemption, counts less than an error.
    record = json.loads((killed / "evaluations.json").read_text())
    assert record["20"] == {"attempts": 2, "failures": 1}
    record["20"] = {"attempts": 5, "failures": 0}
    (killed / "evaluations.json").write_text(json.dumps(record))
    # The third start goes on, to the next evaluation; so does one after five kills.
    for workdir in (killed, run):
        capfd.readouterr()
        with pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED"):
            train(Dying(*system), CONFIG, workdir)
        assert "the evaluation of step 20 has failed too often" in capfd.readouterr().err
        assert max(steps_in(workdir)) == 40
    # The second attempt at the last evaluation does not fail.
    assert_equal(train(system, CONFIG, run), expected)
    missing = [row for row in whole if row not in metrics_of(run)]
    assert [(row["step"], "eval/size" in row) for row in missing] == [(20, True)]
    assert [row for row in whole if row not in missing] == metrics_of(run)


def test_an_evaluation_that_was_logged_but_not_recorded_is_in_the_log_once(tmp_path):
    expected = train(build(CONFIG), CONFIG, tmp_path)
    before = metrics_of(tmp_path)
    record = json.loads((tmp_path / "evaluations.json").read_text())
    del record["40"]["scalars"]
    (tmp_path / "evaluations.json").write_text(json.dumps(record))
    assert_equal(train(build(CONFIG), CONFIG, tmp_path), expected)
    assert metrics_of(tmp_path) == before


@pytest.mark.deep
def test_the_best_checkpoint_is_that_of_the_evaluation_and_a_nan_never_deletes_it(tmp_path):
    sizes = {10: 3.0, 20: 1.0, 30: math.nan, 40: 2.0}

    class Ranked(type(build(CONFIG))):
        def evaluate(self, rng, variables):
            return Evaluation({"size": sizes[int(variables[1]["seen"])]}, {})

    best = CONFIG | {"eval_every": 10, "save_every": 10, "keep_latest": 1, "best_metric": "size"}
    for num_steps in (20, 30, 40):
        train(Ranked(*build(CONFIG)), best | {"num_train_steps": num_steps}, tmp_path)
        assert steps_in(tmp_path) == ([20] if num_steps == 20 else [20, num_steps])


@pytest.mark.slow
def test_the_number_of_devices_may_change_at_the_restart(tmp_path):
    one = train_on_one_device(tmp_path / "one", 40)
    train_on_one_device(tmp_path / "changed", 20)
    two = train(build(CONFIG), CONFIG, tmp_path / "changed")
    assert jax.device_count() == 2
    assert int(two.step) == int(one.step) == 40
    # Sums of float32 in another order, amplified by twenty steps of Adam at rate 0.01.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), two, one)


def train_on_one_device(workdir: pathlib.Path, num_steps: int) -> TrainState:
    arguments = ("--devices=1", f"--num_train_steps={num_steps}")
    status, stderr = finish(workdir, *arguments)
    assert status == 0, stderr
    return final_state(workdir)


@pytest.mark.parametrize("how", slow_where(lambda how: how == "truncated", ["bit", "truncated"]))
def test_a_run_goes_on_from_the_step_before_a_damaged_one(how, tmp_path, capfd):
    expected = train(build(CONFIG), CONFIG, tmp_path / "sound")
    train(build(CONFIG), CONFIG | {"num_train_steps": 20}, tmp_path / "harmed")
    harm(tmp_path / "harmed" / "checkpoints" / "20", how)
    capfd.readouterr()
    state = train(build(CONFIG), CONFIG, tmp_path / "harmed")
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "damaged" in line]
    assert "damaged checkpoint 20" in line
    assert "using step 16" in line
    assert_equal(state, expected)
    assert metrics_of(tmp_path / "harmed") == metrics_of(tmp_path / "sound")


def test_a_loss_that_is_not_finite_stops_at_its_step_and_keeps_the_last_checkpoint(tmp_path):
    # The update numbered 27 is the 28th.
    poisoned = CONFIG | {"poison_step": 27}
    message = "not finite at step 28; the checkpoint of step 24 is kept"
    with pytest.raises(RuntimeError, match=message):
        train(build(poisoned), poisoned, tmp_path)
    assert max(steps_in(tmp_path)) == 24
    state = final_state(tmp_path)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state))
    assert max(row["step"] for row in metrics_of(tmp_path)) == 26


def test_updates_that_are_not_finite_are_skipped_counted_and_logged(tmp_path):
    # The updates numbered 27 and 28 lead to the steps 28 and 29, which lie in two calls.
    config = CONFIG | {"poison_step": (27, 28), "eval_every": 0, "max_nonfinite_updates": 2}
    whole = train(build(config), config, tmp_path / "whole")
    assert (int(whole.step), int(whole.skipped)) == (40, 0)
    assert int(whole.model_state["seen"]) == 38
    rows = {row["step"]: row for row in metrics_of(tmp_path / "whole")}
    fractions = {step: row["train/skipped"] for step, row in rows.items()}
    assert fractions == dict.fromkeys(range(2, 41, 2), 0.0) | {28: 0.5, 30: 0.5}
    assert all(np.isfinite(row["train/loss"]) for row in rows.values())

    # The count of those in a row survives a restart between them.
    parts = tmp_path / "parts"
    assert int(train(build(config), config | {"num_train_steps": 28}, parts).skipped) == 1
    with pytest.raises(RuntimeError, match=r"step 29, nor at the 1 before it; .* step 28 is kept"):
        train(build(config), config | {"max_nonfinite_updates": 1}, parts)
    assert_equal(train(build(config), config, parts), whole)
    assert metrics_of(parts) == metrics_of(tmp_path / "whole")


@pytest.mark.deep
def test_a_run_that_stopped_at_a_loss_that_is_not_finite_can_go_on(tmp_path):
    config = CONFIG | {"poison_step": (27,), "eval_every": 0}
    with pytest.raises(
        RuntimeError, match=r"step 28; the checkpoint of step 24 is kept\. To go on"
    ):
        train(build(config), config, tmp_path)
    skips = config | {"max_nonfinite_updates": 1}
    assert int(train(build(config), skips | {"num_train_steps": 32}, tmp_path).step) == 32
    # And back: the checkpoint has a count that the state has not.
    assert train(build(config), config, tmp_path).skipped is None


def test_a_finished_run_is_left_as_it_is(tmp_path):
    first = train(build(CONFIG), CONFIG, tmp_path)
    before = metrics_of(tmp_path)
    again = train(build(CONFIG), CONFIG, tmp_path)
    assert_equal(first, again)
    assert metrics_of(tmp_path) == before


@pytest.mark.deep
def test_a_run_may_be_prolonged(tmp_path):
    whole = train(build(CONFIG), CONFIG | {"eval_every": 0}, tmp_path / "whole")
    short = CONFIG | {"eval_every": 0, "num_train_steps": 12}
    train(build(short), short, tmp_path / "parts")
    longer = train(build(CONFIG), CONFIG | {"eval_every": 0}, tmp_path / "parts")
    assert_equal(longer, whole)


def test_a_run_may_go_on_from_between_two_calls(tmp_path):
    steps = {"eval_every": 0, "num_train_steps": 8}
    whole = train(build(CONFIG), CONFIG | steps, tmp_path / "whole")
    single = CONFIG | {"eval_every": 0, "num_train_steps": 3, "num_steps_per_call": 1}
    train(build(CONFIG), single, tmp_path / "parts")
    parts = train(build(CONFIG), CONFIG | steps, tmp_path / "parts")
    # One step compiled alone and within a loop rounds differently, in the last digits of float32.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), parts, whole)
    assert int(parts.step) == 8


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_train_steps": 41}, "num_train_steps=41 .* multiple .* 40 or 42"),
        ({"save_every": 1}, "save_every=1 .* multiple .* nearest is 2"),
        ({"batch_size": 15}, "batch_size=15 .* nearest .* 14 or 16"),
        ({"ema_rate": 1.0}, "ema_rate"),
        ({"keep_latest": 0}, "keep_latest needs to be at least 1; got 0"),
        ({"best_mode": "least"}, "best_mode .* 'least'"),
        ({"best_metric": "size", "eval_every": 0}, "best_metric='size' needs eval_every > 0"),
        ({"log_every": 0}, "log_every needs to be at least 1"),
        ({"max_nonfinite_updates": -1}, "max_nonfinite_updates needs to be at least 0; got -1"),
    ],
)
def test_impossible_settings_are_refused_before_anything_is_written(change, words, tmp_path):
    with pytest.raises(ValueError, match=words) as error:
        train(build(CONFIG), CONFIG | change, tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_config_without_a_key_is_refused(tmp_path):
    config = {key: value for key, value in CONFIG.items() if key != "seed"}
    with pytest.raises(ValueError, match="the config lacks seed"):
        train(build(CONFIG), config, tmp_path / "run")


@pytest.mark.slow  # full disks are among the mistakes of test_bad_input.py
def test_a_disk_that_fills_up_stops_the_run_with_one_line(tmp_path):
    with mounted(tmp_path, "-t", "tmpfs", "-o", "size=800k", "tmpfs"):
        assert finish(tmp_path, "--num_train_steps=8")[0] == 0
        free = os.statvfs(tmp_path)
        (tmp_path / "ballast").write_bytes(bytes(free.f_bavail * free.f_bsize - 24 * 1024))
        status, stderr = finish(tmp_path)
        assert status == 1
        assert "No space left on device" in stderr.splitlines()[-1], stderr
        assert "Traceback" not in stderr
        (tmp_path / "ballast").unlink()
        assert 8 in steps_in(tmp_path) and finish(tmp_path)[0] == 0
        assert max(steps_in(tmp_path)) == 40
