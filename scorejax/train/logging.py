# SPDX-License-Identifier: Apache-2.0
"""The log of a run: metrics as JSON lines and event files, pictures, progress on the terminal.

A line is written whole and before the checkpoint that follows it, and a resumed run drops the lines
beyond its checkpoint. The file of a killed run therefore has every step once. In a bucket, lines
and events arrive at each `flush`, see `mirror`.
"""

import contextlib
import json
import math
import pathlib
import sys
import time
from collections.abc import Mapping

import jax
import matplotlib.figure
import numpy as np
import tqdm

from scorejax.files import AnyPath, is_local, save_text, written_whole
from scorejax.report import Evaluation, json_values, save_picture
from scorejax.train.events import EventFile
from scorejax.train.mirror import Mirror

METRICS = "metrics.jsonl"
MOST_SHOWN = 6
"""Largest number of scalars in a line, and of panels in a picture."""
_FAILURES = "_failures"
_DETAILS = ("_standard_error", "_low", "_high", _FAILURES)
"""Endings of scalars that belong to the scalar of the name without them."""
_SECONDS_BETWEEN_LINES = 30.0


class RunLog:
    """Writes the metrics of the steps `start_step` + 1 to `num_train_steps`.

    Training metrics are averaged over `log_every` steps and written at its multiples. The rate
    leaves out the steps up to `end_of_first_call`, by default the first, since they wait for the
    compiler. `evaluation_due` says that the evaluation of `start_step` is still to be logged.
    Where not all scalars of an evaluation are shown, `best_metric` is. The first process writes to
    `workdir`, each other one to a directory below it.
    """

    def __init__(
        self,
        workdir: AnyPath,
        *,
        start_step: int,
        num_train_steps: int,
        log_every: int,
        end_of_first_call: int = 0,
        evaluation_due: bool = False,
        best_metric: str = "",
    ) -> None:
        if jax.process_index() > 0:
            workdir = workdir / f"process_{jax.process_index()}"
            workdir.mkdir(exist_ok=True)
        self._workdir = workdir
        self._mirror = None if is_local(workdir) else Mirror(workdir)
        grown = self._mirror.local if self._mirror else workdir
        self._metrics = grown / METRICS
        if self._mirror:
            self._mirror.fetch(METRICS)
        self._log_every, self._first = log_every, f"eval/{best_metric}"
        self._rows: list[dict[str, float]] = []
        self._num_updates = self._num_skipped = 0
        self._progress = Progress(start_step, num_train_steps, end_of_first_call)
        _drop_lines_beyond(self._metrics, start_step, evaluation_too=evaluation_due)
        # Line buffered, and opened to append: a line reaches the system in one write.
        self._lines = self._metrics.open("a", buffering=1)
        self._events = EventFile(grown / "tensorboard", first_step=start_step + 1)

    def train(self, step: int, metrics: Mapping[str, float]) -> None:
        """Logs the metrics of the update that led to `step`; each mean is over those that have it.

        An update that was skipped has no loss.
        """
        self._rows.append({name: float(value) for name, value in metrics.items()})
        self._progress.update(step, self._rows[-1].get("loss", math.nan))
        self._num_updates += 1
        self._num_skipped += int(metrics.get("skipped", 0))
        if step % self._log_every == 0:
            names = dict.fromkeys(name for row in self._rows for name in row)
            values = {name: [row[name] for row in self._rows if name in row] for name in names}
            means = {f"train/{name}": float(np.mean(value)) for name, value in values.items()}
            self._write(step, {**means, "train/steps_per_second": self._progress.rate})
            self._rows.clear()

    def evaluation(self, step: int, evaluation: Evaluation) -> None:
        """Writes the scalars of an evaluation, and its pictures as <name>_<step>.png or .gif."""
        if evaluation.scalars:
            scalars = {f"eval/{name}": float(value) for name, value in evaluation.scalars.items()}
            self._write(step, scalars)
            shown = headline(scalars, self._first)
            numbers = "  ".join(f"{name} {scalars[name]:.5g}" for name in shown)
            left = len(scalars) - len(shown)
            more = f"  and {left} more in {METRICS}" if left else ""
            self._progress.say(f"step {step}: {numbers}{more}")
        pictures = self._workdir / "pictures"
        pictures.mkdir(exist_ok=True)
        for name, picture in evaluation.captioned(step).items():
            save_picture(pictures / f"{name}_{step:08d}", picture)
        self.flush()
        draw_curves(self._metrics, pictures / "loss.png", first=self._first)

    def say(self, line: str) -> None:
        """Prints a line on stderr, above the progress bar if there is one."""
        self._progress.say(line)

    def flush(self) -> None:
        """Hands all lines and events to the system or the bucket, so that a kill loses none."""
        self._lines.flush()
        self._events.flush()
        if self._mirror:
            self._mirror.send()

    def close(self) -> None:
        """Flushes and closes all files; says how many updates were skipped."""
        if self._num_skipped:
            skipped = f"{self._num_skipped} of {self._num_updates} updates"
            self.say(f"{skipped} were not finite and were skipped.")
        self._progress.close()
        self._lines.close()
        self._events.close()
        if self._mirror:
            try:
                self._mirror.send()
            finally:
                self._mirror.remove()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        # What went wrong first is what the user needs to hear.
        with contextlib.suppress(OSError) if kind else contextlib.nullcontext():
            self.close()

    def _write(self, step: int, scalars: Mapping[str, float]) -> None:
        self._lines.write(json.dumps({"step": step, **json_values(scalars)}) + "\n")
        for name, value in scalars.items():
            self._events.add_scalar(name, value, step)


class Progress:
    """Shows the rate and the time left: a bar on a terminal, elsewhere a line every 30 seconds."""

    def __init__(self, start_step: int, num_steps: int, end_of_first_call: int = 0) -> None:
        self._step, self._num_steps = start_step, num_steps
        self._end_of_first_call = end_of_first_call
        self._is_terminal = sys.stderr.isatty()
        self._bar = tqdm.tqdm(
            total=num_steps, initial=start_step, unit="step", disable=not self._is_terminal
        )
        self._created = time.monotonic()
        self._begin: tuple[int, float] | None = None
        self._next_line = self._created + _SECONDS_BETWEEN_LINES

    @property
    def rate(self) -> float:
        """Steps per second since the first call, which is left out because it compiles."""
        begin_step, begin_time = self._begin or (self._step, time.monotonic())
        return (self._step - begin_step) / max(time.monotonic() - begin_time, 1e-9)

    def update(self, step: int, loss: float) -> None:
        """Shows that `step` is done."""
        self._bar.set_postfix_str(f"loss {loss:.4g}", refresh=False)
        self._bar.update(step - self._step)
        self._step = step
        now = time.monotonic()
        if self._begin is None and step >= self._end_of_first_call:
            self._begin = step, now
            self.say(f"step {step} came after {now - self._created:.1f} s, most of it compilation")
        if not self._is_terminal and (now >= self._next_line or step == self._num_steps):
            self._next_line = now + _SECONDS_BETWEEN_LINES
            left = (self._num_steps - step) / self.rate if self.rate > 0 else math.inf
            estimate = tqdm.tqdm.format_interval(left) if math.isfinite(left) else "?"
            self.say(
                f"step {step}/{self._num_steps}  loss {loss:.4g}  "
                f"{self.rate:.3g} steps/s  {estimate} left"
            )

    def say(self, line: str) -> None:
        """Prints a line on stderr without breaking the bar."""
        self._bar.write(line, file=sys.stderr)

    def close(self) -> None:
        """Leaves the bar as it stands."""
        self._bar.close()


def read_metrics(path: pathlib.Path) -> list[dict[str, float | None]]:
    """The records of a metrics file, oldest first, without a last line that a crash cut short."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def headline(scalars: Mapping[str, float], first: str = "") -> list[str]:
    """Names of at most `MOST_SHOWN` scalars, `first` if it is among them, then in their order.

    Errors and bounds of others are left out, and numbers of failures unless there are some.
    """
    details = {
        name
        for name in scalars
        for ending in _DETAILS
        if name.endswith(ending) and name.removesuffix(ending) in scalars
    }
    shown = [n for n in scalars if n not in details or (n.endswith(_FAILURES) and scalars[n] > 0)]
    return sorted(shown, key=lambda name: name != first)[:MOST_SHOWN]


def draw_curves(metrics: pathlib.Path, picture: AnyPath, first: str = "") -> None:
    """Plots the training loss and, below it, the `headline` of the evaluations against the step.

    There are at most `MOST_SHOWN` panels; bands are intervals, of two standard errors if these are
    what a metric has.
    """
    curves: dict[str, dict[int, float]] = {}
    for record in read_metrics(metrics):
        for name, value in record.items():
            if value is not None and (name == "train/loss" or name.startswith("eval/")):
                curves.setdefault(name, {})[record["step"]] = value
    if not curves:
        return
    newest = {name: [*points.values()][-1] for name, points in curves.items()}
    trained = [name for name in curves if name == "train/loss"]
    evaluated = {name: value for name, value in newest.items() if name not in trained}
    names = [*trained, *headline(evaluated, first)][:MOST_SHOWN]
    figure = matplotlib.figure.Figure(figsize=(7, 2.6 * len(names)), layout="constrained")
    panels = figure.subplots(len(names), squeeze=False, sharex=True)[:, 0]
    for panel, name in zip(panels, names, strict=True):
        points = curves[name]
        panel.plot([*points], [*points.values()], marker="." if len(points) < 50 else None)
        if band := _band(name, curves):
            ends = [*zip(*band, strict=True)]
            panel.fill_between(*ends, alpha=0.25, linewidth=0)
            panel.vlines(*ends, alpha=0.25)  # of a single step there is no band to see
        panel.set_ylabel(name)
        panel.grid(alpha=0.3)
    panels[-1].set_xlabel("step")
    with written_whole(picture) as file:
        figure.savefig(file, format="png", dpi=100)


def _band(name: str, curves: Mapping[str, Mapping[int, float]]) -> list[tuple[int, float, float]]:
    """Step, low and high of the interval of a scalar, at the steps that have one."""
    errors = curves.get(f"{name}_standard_error", {})
    band = {
        step: (curves[name][step] - 2 * error, curves[name][step] + 2 * error)
        for step, error in errors.items()
        if step in curves[name]
    }
    low, high = (curves.get(f"{name}_{end}", {}) for end in ("low", "high"))
    band |= {step: (low[step], high[step]) for step in low if step in high}
    return [(step, *ends) for step, ends in sorted(band.items())]


def _drop_lines_beyond(path: pathlib.Path, step: int, *, evaluation_too: bool) -> None:
    """Rewrites a metrics file without the lines after `step`, and without a broken last line.

    `evaluation_too` drops the evaluation of `step` as well.
    """
    is_dropped = lambda record: (
        record["step"] > step
        or (
            evaluation_too and record["step"] == step and any(n.startswith("eval/") for n in record)
        )
    )
    if path.exists():
        kept = [record for record in read_metrics(path) if not is_dropped(record)]
        save_text(path, "".join(json.dumps(record) + "\n" for record in kept))
