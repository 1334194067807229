# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a run: atomic, written in the background, checked before they are used.

A step is a directory of items, so that sampling need not read the optimiser: `model` has the
averaged parameters and the model state, `train` the rest of the state. Some systems have two more:
`published`, the variables that sampling uses where these are not those of `model`, and `source`,
the carry of an online source with the rows of all devices. The state is saved as one device holds
it, so any number of devices can go on. A killed save leaves no step behind; a damaged step is
noticed by its checksums, set aside, and the run goes on from the one before.
"""

import contextlib
import errno
import logging
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from scorejax import files
from scorejax.files import AnyPath
from scorejax.train import integrity
from scorejax.train.damage import (
    describe,
    saved_steps,
    set_damaged_aside,
    unfinished_steps,
    warn,
)
from scorejax.train.state import TrainState
from scorejax.train.workdir import load_config
from scorejax.typing import Params, PyTree, Variables

DIRECTORY = "checkpoints"
FILES_OF_AN_ITEM = 80 * 1024
"""Bytes that an item takes on a disk beside its arrays: about 20 files in blocks of 4096."""


class Inference(NamedTuple):
    """A checkpoint's step and published variables, by default the averaged parameters."""

    step: int
    params: Params
    model_state: PyTree

    @property
    def variables(self) -> Variables:
        """(params, model_state)."""
        return self.params, self.model_state


class Checkpoints:
    """The checkpoints of a run, in <workdir>/checkpoints/<step>.

    Keeps the latest `keep_latest` and the best by the evaluation scalar `best_metric` ("" if none),
    which is the smallest or largest as `best_mode` is "min" or "max".
    """

    def __init__(
        self,
        workdir: AnyPath,
        *,
        keep_latest: int = 2,
        best_metric: str = "",
        best_mode: str = "min",
    ) -> None:
        _silence_orbax()
        self._directory = workdir / DIRECTORY
        self._best_metric = best_metric
        # Before the manager looks: one unreadable step would keep it from opening the others.
        set_damaged_aside(self._directory)
        with self._one_line_errors():
            self._manager = ocp.CheckpointManager(
                self._directory,
                options=self._options(keep_latest, best_mode),
                item_handlers={
                    item: ocp.StandardCheckpointHandler() for item in (*_ITEMS, *_OPTIONAL_ITEMS)
                },
            )

    def save(
        self,
        state: TrainState,
        scalars: Mapping[str, float],
        *,
        published: Variables | None = None,
        source: PyTree = None,
    ) -> None:
        """Begins to save an unreplicated state of NumPy arrays; waits only for the save before.

        `scalars` are those of an evaluation of this state, empty if there was none; `published` and
        `source` are the items of these names, if the system has them.
        Raises: OSError with one line if this save cannot begin or the one before has failed.
        """
        metrics, items = self._rank(scalars), _items(state)
        if published is not None:
            items["published"] = dict(zip(("params", "model_state"), published, strict=True))
        if source is not None:
            items["source"] = {"carry": source}
        with self._one_line_errors():
            self._manager.wait_until_finished()
            self._require_space(items)
            self._manager.save(
                int(state.step),
                args=_composite(ocp.args.StandardSave, items),
                metrics=metrics,
            )

    def restore_latest(self, like: TrainState) -> TrainState | None:
        """The newest state as NumPy arrays, None if there is no checkpoint.

        `like` has the expected shapes and types, as arrays or `jax.ShapeDtypeStruct`.
        Raises: RuntimeError with one line if the checkpoint holds other arrays.
        """
        step = self.latest_step()
        if step is None:
            return None
        items = self._restore(step, _items(like))
        return TrainState(**items["train"], **items["model"])

    def restore_source(self, like: PyTree) -> PyTree:
        """The online source's carry of the newest step, rows of all devices, as NumPy arrays.

        Raises: RuntimeError with one line if the checkpoint has none, or other arrays.
        """
        return self._restore(self.latest_step(), {"source": {"carry": like}})["source"]["carry"]

    def _restore(self, step: int, expected: dict[str, PyTree]) -> Mapping[str, PyTree]:
        metadata = self._manager.item_metadata(step)
        for item, tree in expected.items():
            if metadata.get(item) is None:
                raise RuntimeError(
                    f"checkpoint {self._directory / str(step)} does not fit the config: it has no "
                    f"{item}."
                )
            _require_same_arrays(metadata[item], tree, self._directory / str(step))
        empty = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), expected)
        return self._manager.restore(step, args=_composite(ocp.args.StandardRestore, empty))

    def latest_step(self) -> int | None:
        """The newest step that is saved or being saved, None if there is none."""
        return self._manager.latest_step()

    def close(self) -> None:
        """Waits for the save in progress. Raises: OSError with one line if it failed."""
        with self._one_line_errors():
            self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        # What went wrong first is what the user needs to hear.
        with contextlib.suppress(OSError) if kind else contextlib.nullcontext():
            self.close()

    def _options(self, keep_latest: int, best_mode: str) -> ocp.CheckpointManagerOptions:
        worst = math.inf if best_mode == "min" else -math.inf

        def rank(metrics: dict[str, float]) -> float:
            # A run that changed its metric has steps without it, and a NaN is no best.
            value = metrics.get(self._best_metric, worst)
            return value if math.isfinite(value) else worst

        # `max_to_keep` with `best_fn` would delete the newest step where an older one is better.
        keep: list = [policies.LatestN(keep_latest)]
        if self._best_metric:
            best = policies.BestN(
                get_metric_fn=rank,
                reverse=best_mode == "min",
                n=1,
                keep_checkpoints_without_metrics=False,
            )
            keep.append(best)
        return ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(keep),
            best_fn=rank if self._best_metric else None,  # or the metrics would not be saved
            best_mode=best_mode,
            cleanup_tmp_directories=True,
            # Called in the background, after the last file and before the directory is renamed.
            async_options=ocp.AsyncOptions(post_finalization_callback=self._write_checksums),
        )

    def _rank(self, scalars: Mapping[str, float]) -> dict[str, float] | None:
        if not (self._best_metric and scalars):
            return None
        if self._best_metric not in scalars:
            raise ValueError(
                f"best_metric={self._best_metric!r} is not among the scalars of the evaluation: "
                f"{', '.join(sorted(scalars))}."
            )
        return {name: float(value) for name, value in scalars.items()}

    def _require_space(self, items: dict[str, PyTree]) -> None:
        # A write that fails half way is reported too, but amid tracebacks from its threads.
        size = (
            sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(items))
            + len(items) * FILES_OF_AN_ITEM
        )
        if files.is_local(self._directory) and shutil.disk_usage(self._directory).free < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _write_checksums(self) -> None:
        if jax.process_index() == 0:
            for unfinished in unfinished_steps(self._directory):
                integrity.write_checksums(unfinished)

    @contextlib.contextmanager
    def _one_line_errors(self) -> Iterator[None]:
        """Turns whatever a failed write raises into an OSError of one line, and frees its space."""
        try:
            yield
        except Exception as error:
            with contextlib.suppress(Exception):  # A bucket that cannot be reached lists nothing.
                for unfinished in unfinished_steps(self._directory):
                    files.remove_tree(unfinished)
            raise OSError(
                f"cannot write to {self._directory}: {files.reason(error)}; "
                "the checkpoints that it has are unharmed."
            ) from error


def restore_for_inference(workdir: str | os.PathLike, *, step: int | None = None) -> Inference:
    """The published variables of a run's newest sound checkpoint, or of `step`.

    Arrays are NumPy's; nothing is written. A newer, damaged checkpoint is passed over with a line
    on stderr. Raises: FileNotFoundError or RuntimeError with one line if there is none to use.
    """
    _silence_orbax()
    load_config(workdir)
    directory = files.absolute(workdir) / DIRECTORY
    steps = saved_steps(directory)
    if not steps or (step is not None and step not in steps):
        there = f"; there is {', '.join(map(str, steps))}" if steps else ""
        which = "no checkpoint" if step is None else f"no checkpoint of step {step}"
        raise FileNotFoundError(f"{which} in {directory}{there}.")
    damaged = {}
    for candidate in reversed(steps) if step is None else [step]:
        damage = integrity.find_damage(directory / str(candidate))
        if damage is None:
            if damaged:
                warn(f"{describe(damaged)}; using step {candidate}.")
            with ocp.StandardCheckpointer() as checkpointer:
                published = directory / str(candidate) / "published"
                if published.is_dir():
                    return Inference(candidate, **checkpointer.restore(published))
                model = checkpointer.restore(directory / str(candidate) / "model")
            return Inference(candidate, model["ema_params"], model["model_state"])
        damaged[candidate] = damage
    raise RuntimeError(f"no sound checkpoint in {directory}: {describe(damaged)}.")


_ITEMS = ("train", "model")
_OPTIONAL_ITEMS = ("published", "source")


def _items(state: TrainState) -> dict[str, PyTree]:
    """The items of every checkpoint, by name."""
    return {
        "train": {"step": state.step, "params": state.params, "opt_state": state.opt_state},
        "model": {"ema_params": state.ema_params, "model_state": state.model_state},
    }


def _composite(argument: type, items: dict[str, PyTree]) -> ocp.args.Composite:
    return ocp.args.Composite(**{name: argument(tree) for name, tree in items.items()})


def _require_same_arrays(metadata: PyTree, expected: PyTree, directory: AnyPath) -> None:
    """Raises RuntimeError naming the first array that differs in shape or type."""
    found = {name: (leaf.shape, str(leaf.dtype)) for name, leaf in _named_leaves(metadata.tree)}
    wanted = {name: (leaf.shape, str(leaf.dtype)) for name, leaf in _named_leaves(expected)}
    for name in [*wanted, *found]:
        if found.get(name) != wanted.get(name):
            raise RuntimeError(
                f"checkpoint {directory} does not fit the config: {name} is "
                f"{_form(found.get(name))} there and {_form(wanted.get(name))} here."
            )


def _named_leaves(tree: PyTree) -> list[tuple[str, Any]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]


def _form(form: tuple[tuple[int, ...], str] | None) -> str:
    return "absent" if form is None else f"{form[1]}{list(form[0])}"


def _silence_orbax() -> None:
    """Drops the log records of orbax: errors that a user can act on are raised in one line here."""
    logger = logging.getLogger("absl")
    if _is_ours not in logger.filters:
        logger.addFilter(_is_ours)


def _is_ours(record: logging.LogRecord) -> bool:
    return f"{os.sep}orbax{os.sep}" not in record.pathname
