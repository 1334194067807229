# SPDX-License-Identifier: Apache-2.0
"""The record of a run's evaluations: those due, how often each was begun, and its scalars.

A step is saved before it is evaluated, so that an evaluation that fails, or for which the memory
does not suffice, loses no update. The run tries it once more when it is started again, and after
that goes on without it. The scalars rank the checkpoints.
"""

import json
from collections.abc import Mapping
from typing import Any

import jax

from scorejax import files
from scorejax.files import AnyPath
from scorejax.report import json_values

RECORD = "evaluations.json"
MAX_ATTEMPTS = 2


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
                records = json.loads(self._path.read_text())
                self._records = {int(step): dict(record) for step, record in records.items()}
            except (ValueError, TypeError, AttributeError):
                raise RuntimeError(
                    f"{self._path} is not the record of a run's evaluations; remove it to go on, "
                    "and the checkpoints lose their ranks."
                ) from None

    def expect(self, step: int) -> None:
        """Records that an evaluation of `step` is due; attempts that did not end still count."""
        if not self.is_due(step):
            self._records[step] = {"attempts": 0}
            self._write()

    def is_due(self, step: int) -> bool:
        """Whether an evaluation of `step` was expected and has not ended."""
        return "scalars" not in self._records.get(step, {"scalars": {}})

    def begin(self, step: int) -> bool:
        """Records another attempt; False if the attempts are used up."""
        record = self._records[step]
        if record["attempts"] >= MAX_ATTEMPTS:
            return False
        record["attempts"] += 1
        self._write()
        return True

    def end(self, step: int, scalars: Mapping[str, float]) -> None:
        """Records the scalars of an evaluation."""
        values = {name: float(value) for name, value in scalars.items()}
        self._records.setdefault(step, {"attempts": 1})["scalars"] = json_values(values)
        self._write()

    def scalars(self, step: int) -> dict[str, float | None] | None:
        """The scalars of an evaluation, None where not finite; None if it has not ended."""
        return self._records.get(step, {}).get("scalars")

    def _write(self) -> None:
        if jax.process_index() == 0:
            files.save_text(self._path, json.dumps(self._records, sort_keys=True) + "\n")
