# SPDX-License-Identifier: Apache-2.0
"""Metrics and pictures on disk, read back with what others would read them with."""

import json

import numpy as np
import PIL.Image
import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from scorejax import report
from scorejax.evaluate import pictures, reports
from scorejax.report import Evaluation
from scorejax.train import logging
from scorejax.train.logging import RunLog, read_metrics


def open_log(workdir, start_step=0, **changes):
    options = {"num_train_steps": 20, "log_every": 5} | changes
    return RunLog(workdir, start_step=start_step, **options)


def events_in(workdir):
    """(step, tag, value) of every scalar in the event files, each record's checksum verified."""
    scalars = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        content, position = path.read_bytes(), 0
        while position < len(content):
            length = int.from_bytes(content[position : position + 8], "little")
            data = content[position + 12 : position + 12 + length]
            checksum = content[position + 12 + length : position + 16 + length]
            assert int.from_bytes(checksum, "little") == masked_crc32c(data)
            event = Event.FromString(data)
            scalars += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
            position += 16 + length
    return scalars


def test_a_line_has_the_mean_over_the_steps_since_the_last(tmp_path):
    losses = np.random.default_rng(0).normal(size=12)
    with open_log(tmp_path) as log:
        for step, loss in enumerate(losses, start=1):
            log.train(step, {"loss": loss})
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [5, 10]
    # One mean of five doubles.
    np.testing.assert_allclose(rows[0]["train/loss"], losses[:5].mean(), rtol=1e-14)
    np.testing.assert_allclose(rows[1]["train/loss"], losses[5:10].mean(), rtol=1e-14)


def test_event_files_hold_the_same_numbers(tmp_path):
    with open_log(tmp_path, log_every=1) as log:
        for step in (1, 2, 3):
            log.train(step, {"loss": step / 4, "grad_norm": float(step)})
        log.evaluation(3, Evaluation({"bits_per_dim": 2.5}, {}))
    found = {(step, tag): value for step, tag, value in events_in(tmp_path)}
    assert found[2, "train/loss"] == 0.5
    assert found[3, "train/grad_norm"] == 3.0
    assert found[3, "eval/bits_per_dim"] == 2.5


def test_what_is_flushed_is_in_the_files(tmp_path):
    with open_log(tmp_path, log_every=1) as log:
        for step in range(1, 51):
            log.train(step, {"loss": 1.0})
        log.flush()
        written = {step for step, tag, _ in events_in(tmp_path) if tag == "train/loss"}
        assert written == set(range(1, 51))
        assert len(read_metrics(tmp_path / "metrics.jsonl")) == 50


def test_a_resumed_log_has_every_step_once_though_a_line_was_cut_short(tmp_path):
    with open_log(tmp_path, log_every=2) as log:
        for step in range(1, 13):
            log.train(step, {"loss": 1.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 14, "train/lo')
    with open_log(tmp_path, start_step=8, log_every=2) as log:
        for step in range(9, 21):
            log.train(step, {"loss": 2.0})
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(2, 21, 2))
    assert [row["train/loss"] for row in rows] == [1.0] * 4 + [2.0] * 6


def test_a_value_that_is_not_finite_leaves_the_lines_readable(tmp_path):
    with open_log(tmp_path, log_every=1) as log:
        log.train(1, {"loss": 1.0, "ratio": float("inf")})

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=refuse)["train/ratio"] is None


def test_pictures_and_curves_are_png_files(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    with open_log(tmp_path, log_every=1) as log:
        for step in range(1, 11):
            log.train(step, {"loss": 1 / step})
        log.evaluation(10, Evaluation({"bits_per_dim": 3.0}, {"samples": picture}))
    with PIL.Image.open(tmp_path / "pictures" / "samples_00000010.png") as image:
        np.testing.assert_array_equal(np.asarray(image), picture)
    with PIL.Image.open(tmp_path / "pictures" / "loss.png") as image:
        curves = np.asarray(image.convert("L"))
    # Two panels of 260 points of height, with something drawn in each.
    assert curves.shape == (520, 700)
    assert curves[:260].min() < 200
    assert curves[260:].min() < 200


def test_a_line_and_a_picture_show_six_scalars_without_the_bounds_of_others(tmp_path, capfd):
    scalars = {f"{name}{end}": 0.5 for name in "abcdefgh" for end in ("", "_low", "_high")}
    scalars |= {"bits": 3.0, "bits_standard_error": 0.1, "bits_failures": 0.0, "h_failures": 2.0}
    with open_log(tmp_path, log_every=1, best_metric="h") as log:
        log.train(1, {"loss": 1.0})
        log.evaluation(1, Evaluation(scalars, {}))
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("step 1:")]
    shown = [word for word in line.split() if word.startswith("eval/")]
    assert shown == [f"eval/{name}" for name in "habcde"]
    assert line.endswith(f"and {len(scalars) - 6} more in metrics.jsonl")
    assert logging.headline({"bits": 3.0, "bits_failures": 1.0}) == ["bits", "bits_failures"]
    with PIL.Image.open(tmp_path / "pictures" / "loss.png") as image:
        assert image.size == (700, 6 * 260)  # the training loss, and five evaluations


@pytest.mark.parametrize(
    "interval", [{"iou_low": 0.2, "iou_high": 0.8}, {"iou_standard_error": 0.15}]
)
def test_an_interval_is_a_band_around_its_curve(interval, tmp_path):
    areas = []
    for further in ({}, interval):
        with open_log(tmp_path) as log:
            for step in (1, 2, 3):
                scalars = {"iou": 0.5, **further}
                log.evaluation(step, Evaluation(scalars, {}))
        with PIL.Image.open(tmp_path / "pictures" / "loss.png") as image:
            blue = np.asarray(image.convert("RGB")).astype(int)
        areas.append((blue[..., 2] > blue[..., 0] + 20).mean())
    # Axes fill most of the picture, the band nearly all of their height; the curve is a thin line.
    assert areas[0] < 0.05 and areas[1] > 0.5


def test_a_caption_has_the_step_and_leaves_the_picture_as_it_is(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (30, 90, 3), dtype=np.uint8)
    drawn = Evaluation({}, {"a": picture, "b": picture}, captions={"a": "9 samples by pc"})
    with open_log(tmp_path) as log:
        log.evaluation(10, drawn)
    saved = {}
    for name in "ab":
        with PIL.Image.open(tmp_path / "pictures" / f"{name}_00000010.png") as image:
            saved[name] = np.asarray(image)
    np.testing.assert_array_equal(saved["b"], picture)
    np.testing.assert_array_equal(saved["a"][-30:], picture)
    expected = report.with_caption(picture, "9 samples by pc, step 10")
    np.testing.assert_array_equal(saved["a"], expected)
    assert saved["a"].shape[1] == 90 and (expected[:-30] < 100).any()
    # Narrow pictures have captions of several lines, which they are not wide enough to cut.
    assert len(expected) > len(report.with_caption(picture.repeat(4, axis=1), "9 samples, step 10"))


def test_samples_are_drawn_below_their_sampler_evaluations_and_step(tmp_path):
    samples = {"image": np.zeros((4, 8, 8, 1)), "nfe": np.full(4, 35)}
    reports.save_samples(str(tmp_path / "x"), samples, step=7, sampler="heun")
    with PIL.Image.open(tmp_path / "x.png") as image:
        drawn = np.asarray(image)
    caption = "4 samples by heun, 35 evaluations each, step 7"
    grid = pictures.image_grid(samples["image"])
    np.testing.assert_array_equal(drawn, report.with_caption(grid, caption))


def test_progress_is_plain_lines_where_there_is_no_terminal(tmp_path, capfd):
    with open_log(tmp_path, num_train_steps=3) as log:
        for step in (1, 2, 3):
            log.train(step, {"loss": 0.25})
        log.say("a word")
    lines = capfd.readouterr().err.splitlines()
    assert lines[0].startswith("step 1 came after")
    assert lines[1].startswith("step 3/3  loss 0.25")
    assert lines[1].endswith("00:00 left")
    assert lines[2:] == ["a word"]


def test_the_rate_leaves_out_the_call_that_compiles(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(logging.time, "monotonic", lambda: clock[0])
    with open_log(tmp_path, end_of_first_call=10) as log:
        for clock[0], steps in ((60.0, range(1, 11)), (65.0, range(11, 21))):
            for step in steps:
                log.train(step, {"loss": 0.25})
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["train/steps_per_second"] == 10 / 5


def test_a_report_is_json_though_one_of_its_numbers_is_none(tmp_path):
    reports.save_and_print(tmp_path / "report.json", {"error": float("nan"), "num": 3})
    text = (tmp_path / "report.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {"error": None, "num": 3}


@pytest.mark.parametrize("num_lines", [0, 3])
def test_a_directory_without_metrics_is_a_new_run(tmp_path, num_lines):
    with open_log(tmp_path, log_every=1) as log:
        for step in range(1, num_lines + 1):
            log.train(step, {"loss": 1.0})
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == num_lines
