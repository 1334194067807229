# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a run: atomic, written in the background, checked before they are used.

A step is a directory of items, so that sampling need not read the optimiser: `model` has the
averaged parameters and the model state, `train` the rest of the state. Some systems have two more:
`published`, the variables that sampling uses where these are not those of `model`, and `source`,
the carry of an online source with the rows of all devices. The state is saved as one device holds
it, so any number of devices can go on. A killed save leaves no step behind; a damaged step is
noticed by its checksums, set aside, and the run goes on from the one before. Older steps are
deleted when a newer one is whole and on disk, so that not even a power failure takes both.
"""

import contextlib
import errno
import json
import logging
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from scorejax import files
from scorejax.files import AnyPath
from scorejax.train import integrity
from scorejax.train.damage import UNFINISHED, saved_steps, set_damaged_aside, unfinished_steps
from scorejax.train.evaluations import Evaluations
from scorejax.train.state import TrainState
from scorejax.typing import PyTree, Variables

DIRECTORY = "checkpoints"
FILES_OF_AN_ITEM = 80 * 1024
"""Bytes that an item takes on a disk beside its arrays: about 20 files in blocks of 4096."""


class _Manager(ocp.CheckpointManager):
    """Orbax's manager, without its questions to JAX whether the run is to end.

    They name steps where `preemption` counts calls, and JAX compares all these numbers.
    """

    def reached_preemption(self, step: int) -> bool:
        del step
        return False


class Checkpoints:
    """The checkpoints of a run, in <workdir>/checkpoints/<step>.

    Keeps the latest `keep_latest` and the best by the evaluation scalar `best_metric` ("" if none),
    which is the smallest or largest as `best_mode` is "min" or "max". One that is no longer kept is
    deleted when a save or an evaluation begins or ends, or the run ends.
    """

    def __init__(
        self,
        workdir: AnyPath,
        *,
        keep_latest: int = 2,
        best_metric: str = "",
        best_mode: str = "min",
    ) -> None:
        silence_orbax()
        self._directory = workdir / DIRECTORY
        self._keep_latest = keep_latest
        self._best_metric, self._best_mode = best_metric, best_mode
        self.evaluations = Evaluations(workdir)
        # Before the manager looks: one unreadable step would keep it from opening the others.
        set_damaged_aside(self._directory)
        with self._one_line_errors():
            self._manager = _Manager(
                self._directory,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=policies.LatestN(None),  # `_delete_old` deletes
                    cleanup_tmp_directories=True,
                    # Called in the background, after the last file and before the directory is
                    # renamed.
                    async_options=ocp.AsyncOptions(
                        post_finalization_callback=self._write_checksums
                    ),
                ),
                item_handlers={
                    item: ocp.StandardCheckpointHandler() for item in (*_ITEMS, *_OPTIONAL_ITEMS)
                },
            )

    def save(
        self,
        state: TrainState,
        *,
        published: Variables | None = None,
        source: PyTree = None,
    ) -> None:
        """Begins to save an unreplicated state of NumPy arrays; waits only for the save before.

        `published` and `source` are the items of these names, if the system has them.
        Raises: OSError with one line if this save cannot begin or the one before has failed.
        """
        items = _items(state)
        if published is not None:
            items["published"] = dict(zip(("params", "model_state"), published, strict=True))
        if source is not None:
            items["source"] = {"carry": source}
        self.wait()
        with self._one_line_errors():
            self._require_space(items)
            self._manager.save(int(state.step), args=_composite(ocp.args.StandardSave, items))

    def wait(self) -> None:
        """Waits until the save in progress is on disk; deletes what it makes superfluous.

        Raises: OSError with one line if the save failed.
        """
        with self._one_line_errors():
            self._manager.wait_until_finished()
            files.sync(self._directory)  # the new step's name, before the old one's is removed
            self._delete_old()

    def rank(self, step: int, scalars: Mapping[str, float]) -> None:
        """Records the scalars of the evaluation of a step, by which its checkpoint is ranked.

        Raises: ValueError if `best_metric` is not among them; OSError if they cannot be written.
        """
        if self._best_metric and scalars and self._best_metric not in scalars:
            raise ValueError(
                f"best_metric={self._best_metric!r} is not among the scalars of the evaluation: "
                f"{', '.join(sorted(scalars))}."
            )
        self.evaluations.end(step, scalars)
        self.wait()

    def restore_latest(self, like: TrainState) -> TrainState | None:
        """The newest state as NumPy arrays, None if there is no checkpoint.

        `like` has the expected shapes and types, as arrays or `jax.ShapeDtypeStruct`.
        Raises: RuntimeError with one line if the checkpoint holds other arrays, or if the processes
        of a run find different steps.
        """
        step = self.latest_step()
        _require_same_step(step, self._directory)
        if step is None:
            return None
        expected = _items(like)
        # Whether updates may be skipped can change between two starts of a run.
        expected["train"].pop("skipped", None)
        saved = self._manager.item_metadata(step).get("train")
        if saved is not None and "skipped" in saved.tree:
            expected["train"]["skipped"] = jax.ShapeDtypeStruct((), jnp.int32)
        items = self._restore(step, expected)
        skipped = items["train"].pop("skipped", np.zeros((), np.int32))
        skipped = None if like.skipped is None else skipped
        return TrainState(**items["train"], **items["model"], skipped=skipped)

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
        self.wait()
        with self._one_line_errors():
            self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        # What went wrong first is what the user needs to hear.
        with contextlib.suppress(OSError) if kind else contextlib.nullcontext():
            self.close()

    def _delete_old(self) -> None:
        if jax.process_index() == 0:
            steps = saved_steps(self._directory)
            kept = {*steps[-self._keep_latest :], self._best(steps)}
            for step in steps:
                if step not in kept:
                    doomed = self._directory / str(step)
                    if files.is_local(doomed):
                        # A name that the next start sweeps away if this is killed half way.
                        doomed = doomed.rename(f"{doomed}{UNFINISHED}-deleted")
                    files.remove_tree(doomed)

    def _best(self, steps: list[int]) -> int | None:
        """The step with the best scalar, the latest of equals; None if none has a finite one."""
        values = {step: self._value(step) for step in steps} if self._best_metric else {}
        sign = 1 if self._best_mode == "max" else -1
        finite = [step for step, value in values.items() if value is not None]
        return max(finite, key=lambda step: (sign * values[step], step), default=None)

    def _value(self, step: int) -> float | None:
        scalars = self.evaluations.scalars(step)
        if scalars is None:  # a run that changed its metric, or one of the release before
            path = self._directory / str(step) / "metrics" / "metrics"
            with files.reaching(path):
                scalars = json.loads(path.read_text()) if files.exists(path) else {}
        value = scalars.get(self._best_metric)
        return value if value is not None and math.isfinite(value) else None

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
                integrity.sync_files(unfinished)

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


_ITEMS = ("train", "model")
_OPTIONAL_ITEMS = ("published", "source")


def _items(state: TrainState) -> dict[str, PyTree]:
    """The items of every checkpoint, by name."""
    return {
        "train": {"step": state.step, "params": state.params, "opt_state": state.opt_state}
        | ({} if state.skipped is None else {"skipped": state.skipped}),
        "model": {"ema_params": state.ema_params, "model_state": state.model_state},
    }


def _composite(argument: type, items: dict[str, PyTree]) -> ocp.args.Composite:
    return ocp.args.Composite(**{name: argument(tree) for name, tree in items.items()})


def _require_same_step(step: int | None, directory: AnyPath) -> None:
    """Raises RuntimeError unless all processes of a run resume at the same step."""
    if jax.process_count() == 1:
        return
    steps = multihost_utils.process_allgather(np.int32(-1 if step is None else step)).tolist()
    if len(set(steps)) > 1:
        names = (f"step {step} in process {i}" for i, step in enumerate(steps) if step >= 0)
        raise RuntimeError(
            f"the processes find different newest checkpoints: {', '.join(names)}, none in the "
            f"others; all of them need to see the same {directory}."
        )


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


def silence_orbax() -> None:
    """Drops the log records of orbax: errors that a user can act on are raised in one line here."""
    logger = logging.getLogger("absl")
    if _is_ours not in logger.filters:
        logger.addFilter(_is_ours)


def _is_ours(record: logging.LogRecord) -> bool:
    return f"{os.sep}orbax{os.sep}" not in record.pathname
