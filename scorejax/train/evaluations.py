# SPDX-License-Identifier: Apache-2.0
"""The record of a run's evaluations: those due, how often each was begun and failed, the scalars.

A step that is saved and evaluated is saved first, so that an evaluation that fails, or for which
the memory does not suffice, loses no update. The run tries it again when it is started again, and
goes on without it once it has failed twice. A kill, which may be a preemption, counts less than an
error. The scalars rank the checkpoints.
"""

import json
from collections.abc import Mapping
from typing import Any

import jax

from scorejax import files
from scorejax.files import AnyPath
from scorejax.report import json_values
from scorejax.train import parallel

RECORD = "evaluations.json"
MAX_FAILURES, MAX_ATTEMPTS = 2, 5
"""After so many errors, or errors and kills, a run goes on without an evaluation."""


class Evaluations:
    """The evaluations of a run by step, in <workdir>/evaluations.json.

    Every process reads the record when it starts and keeps its own; the first one writes it.
    Raises: RuntimeError with one line if the file is no record.
    """

    def __init__(self, workdir: AnyPath) -> None:
        self._path = workdir / RECORD
        self._records: dict[int, dict[str, Any]] = {}
        if files.exists(self._path):
            try:
                with files.reaching(self._path):
                    records = json.loads(self._path.read_text())
                self._records = {int(step): dict(record) for step, record in records.items()}
            except (ValueError, TypeError, AttributeError):
                raise RuntimeError(
                    f"{self._path} is not the record of a run's evaluations. Remove it to go on; "
                    "the best checkpoint then loses its rank, so copy it if you want to keep it."
                ) from None

    def expect(self, step: int) -> None:
        """Records that an evaluation of `step` is due; attempts that did not end still count."""
        if not self.is_due(step):
            self._records.pop(step, None)
            self._record(step)
            self._write()

    def is_due(self, step: int) -> bool:
        """Whether an evaluation of `step` was expected and has not ended.

        All processes ask, and get the first one's answer: a file system may show them other files.
        """
        return parallel.first_answer("scalars" not in self._records.get(step, {"scalars": {}}))

    def begin(self, step: int) -> bool:
        """Records another attempt; False if the attempts are used up. All processes ask."""
        record = self._record(step)
        exhausted = record["attempts"] >= MAX_ATTEMPTS or record["failures"] >= MAX_FAILURES
        if parallel.first_answer(exhausted):
            return False
        record["attempts"] += 1
        self._write()
        return True

    def fail(self, step: int) -> None:
        """Records that an attempt has ended with an error, which other processes may not have."""
        self._record(step)["failures"] += 1
        if jax.process_index() == 0:
            self._save()

    def end(self, step: int, scalars: Mapping[str, float]) -> None:
        """Records the scalars of an evaluation."""
        values = {name: float(value) for name, value in scalars.items()}
        self._record(step)["scalars"] = json_values(values)
        self._write()

    def scalars(self, step: int) -> dict[str, float | None] | None:
        """The scalars of an evaluation, None where not finite; None if it has not ended."""
        return self._records.get(step, {}).get("scalars")

    def _record(self, step: int) -> dict[str, Any]:
        return self._records.setdefault(step, {"attempts": 0, "failures": 0})

    def _write(self) -> None:
        parallel.by_first(self._save)

    def _save(self) -> None:
        files.save_text(self._path, json.dumps(self._records, sort_keys=True) + "\n")
