# SPDX-License-Identifier: Apache-2.0
"""The keys of a config that the training loop reads, checked before anything is compiled."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from scorejax.train.parallel import require_divisible
from scorejax.train.step import require_rates


@dataclasses.dataclass(frozen=True)
class Settings:
    """The keys of a config that the training loop reads; steps are updates, counted from the first.

    `batch_size` counts the examples of all devices together and `accumulation` the parts into which
    each device divides its share. `num_steps_per_call` updates make one compiled call, so it
    divides the numbers of steps. `ema_rate` is one rate, or a dictionary of rates by parts of the
    parameters, see `step.make_train_step`. `eval_every` 0 is never; otherwise the last step is
    evaluated too. The checkpoints kept are the `keep_latest` newest and, unless `best_metric` is
    "", the one with the smallest ("min") or largest ("max") value of that evaluation scalar.
    `max_nonfinite_updates`, 0 where a config lacks it, is how many updates in a row may be skipped
    because the loss, the gradient or the change of the parameters is not finite; one more ends the
    run.
    """

    seed: int
    num_train_steps: int
    batch_size: int
    accumulation: int
    num_steps_per_call: int
    ema_rate: float | dict[str, Any]
    log_every: int
    eval_every: int
    save_every: int
    keep_latest: int
    best_metric: str
    best_mode: str
    max_nonfinite_updates: int = 0

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Settings":
        """Reads the keys, ignores others. Raises: ValueError for a missing or impossible one."""
        fields = {field.name: field.default for field in dataclasses.fields(cls)}
        values = {name: config.get(name, default) for name, default in fields.items()}
        missing = [name for name, value in values.items() if value is dataclasses.MISSING]
        if missing:
            raise ValueError(f"the config lacks {', '.join(missing)}, which training needs.")
        rates = values["ema_rate"]
        # A ConfigDict is no tree to JAX.
        values["ema_rate"] = rates.to_dict() if isinstance(rates, ConfigDict) else rates
        return cls(**values)

    def __post_init__(self) -> None:
        minima = {"num_train_steps": 1, "accumulation": 1, "num_steps_per_call": 1, "log_every": 1}
        minima |= {"eval_every": 0, "save_every": 1, "keep_latest": 1, "max_nonfinite_updates": 0}
        for name, minimum in minima.items():
            if getattr(self, name) < minimum:
                raise ValueError(
                    f"{name} needs to be at least {minimum}; got {getattr(self, name)}."
                )
        require_rates(self.ema_rate)
        if self.best_mode not in ("min", "max"):
            raise ValueError(f"best_mode needs to be 'min' or 'max'; got {self.best_mode!r}.")
        if self.best_metric and not self.eval_every:
            raise ValueError(f"best_metric={self.best_metric!r} needs eval_every > 0; got 0.")
        for name in ("num_train_steps", "eval_every", "save_every"):
            self.require_whole_calls(name, getattr(self, name))
        require_divisible(self.batch_size, accumulation=self.accumulation)

    def end_of_call(self, step: int) -> int:
        """The step at which the call that contains step `step` + 1 ends."""
        return step - step % self.num_steps_per_call + self.num_steps_per_call

    def evaluates_at(self, step: int) -> bool:
        """Whether the state of a step is evaluated."""
        last = step == self.num_train_steps
        return bool(self.eval_every) and (last or step % self.eval_every == 0)

    def require_whole_calls(self, name: str, steps: int) -> None:
        """Raises ValueError, for what has this name, unless steps are a number of whole calls."""
        call = self.num_steps_per_call
        if steps % call:
            below = steps // call * call
            nearest = f"{below} or {below + call}" if below else f"{call}"
            raise ValueError(
                f"{name}={steps} needs to be a multiple of num_steps_per_call={call}; "
                f"the nearest is {nearest}."
            )
