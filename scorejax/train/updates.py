# SPDX-License-Identifier: Apache-2.0
"""Compiled calls of several updates, on batches from the host or from an online source.

Both kinds have `advance(state, start, end) -> (state, metrics)`, which dispatches the updates from
step `start` to step `end` and does not wait for them, and `source_carry()`, what a checkpoint keeps
of the source.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import jax
import numpy as np

from scorejax.train import parallel
from scorejax.train.checkpoint import Checkpoints
from scorejax.train.settings import Settings
from scorejax.train.state import TrainState
from scorejax.train.step import TrainStep, make_train_step, scan_online_steps, scan_steps
from scorejax.train.system import System, frozen_arguments
from scorejax.typing import Array, OnlineSource, PyTree


class RunKeys(NamedTuple):
    """A run's random keys: for parameters, data, the noise in the loss, evaluations, and the start
    of an online source, whose steps draw from keys folded into `data`.

    Splitting a key into more leaves the first ones as they are, so that former runs resume.
    """

    init: Array
    data: Array
    step: Array
    evaluate: Array
    source: Array


class Updates(Protocol):
    """The interface of both kinds."""

    def advance(
        self, state: TrainState, start: int, end: int
    ) -> tuple[TrainState, dict[str, Array]]: ...

    def source_carry(self) -> PyTree: ...


def compiled_updates(
    system: System, settings: Settings, keys: RunKeys, state: TrainState, checkpoints: Checkpoints
) -> Updates:
    """The updates of a run from `state` on, the newest of `checkpoints` or a new one.

    Raises: RuntimeError if the checkpoint lacks the carry of an online source.
    """
    make = functools.partial(
        make_train_step,
        tx=system.tx,
        ema_rate=settings.ema_rate,
        axis_name=parallel.AXIS,
        accumulation=settings.accumulation,
    )
    phases = [(start, make(loss)) for start, loss in [(0, system.loss), *system.phases]]
    frozen = tuple(parallel.replicate(tree) for tree in frozen_arguments(system))
    if not isinstance(system.source, OnlineSource):
        return _OfflineUpdates(system, phases, frozen, keys, int(state.step))
    create = lambda state: system.source.init(keys.source, state)
    like = jax.eval_shape(create, state)
    if checkpoints.latest_step() is None:
        carry = jax.device_get(jax.jit(create)(state))
    else:
        carry = checkpoints.restore_source(like)
    return _OnlineUpdates(system, phases, frozen, keys, carry)


Phases = Sequence[tuple[int, TrainStep]]
"""(step, update): the update from so many updates on."""


def _phase(phases: Phases, step: int) -> int:
    """Which of the phases the update after `step` updates belongs to."""
    return max(number for number, (start, _) in enumerate(phases) if start <= step)


class _OfflineUpdates:
    """Updates on batches that the host draws and hands to the devices, some for each call."""

    def __init__(
        self, system: System, phases: Phases, frozen: tuple, keys: RunKeys, start_step: int
    ) -> None:
        self._source, self._frozen, self._keys = system.source, frozen, keys
        self._phases = phases
        self._calls = [
            parallel.map_step(scan_steps(step), num_frozen=len(frozen)) for _, step in phases
        ]
        self._carry = system.source.init(start_step, keys.data)

    def advance(
        self, state: TrainState, start: int, end: int
    ) -> tuple[TrainState, dict[str, Array]]:
        batches = []
        for number in range(start, end):
            rng = jax.random.fold_in(self._keys.data, number)
            self._carry, batch = self._source.next(self._carry, state, rng)
            batches.append(batch)
        call = self._calls[_phase(self._phases, start)]
        return call(state, parallel.shard(batches), self._keys.step, *self._frozen)

    def source_carry(self) -> None:
        """Nothing: batches follow from the seed and the step."""
        return


class _OnlineUpdates:
    """Updates on batches that the devices make: no data pass between host and devices in a call."""

    def __init__(
        self, system: System, phases: Phases, frozen: tuple, keys: RunKeys, carry: PyTree
    ) -> None:
        self._phases, self._source, self._frozen = phases, system.source, frozen
        self._rngs = keys.step, keys.data
        self._carry = parallel.spread(carry)
        self._calls: dict[tuple[int, int], TrainStep] = {}

    def advance(
        self, state: TrainState, start: int, end: int
    ) -> tuple[TrainState, dict[str, Array]]:
        call = self._call_of(end - start, _phase(self._phases, start))
        (state, self._carry), metrics = call((state, self._carry), (), self._rngs, *self._frozen)
        return state, metrics

    def _call_of(self, num_steps: int, phase: int) -> TrainStep:
        """The compiled call; a run that goes on from between two ends of calls needs a second."""
        key = num_steps, phase
        if key not in self._calls:
            step = self._phases[phase][1]
            steps = scan_online_steps(step, self._source.step, num_steps, axis_name=parallel.AXIS)
            self._calls[key] = parallel.map_step(steps, num_frozen=len(self._frozen))
        return self._calls[key]

    def source_carry(self) -> dict[str, np.ndarray]:
        """The carry with the rows of all devices."""
        return parallel.gather(self._carry)
