# SPDX-License-Identifier: Apache-2.0
"""The training loop, one for every system.

A call with the workdir of a run that was stopped, in whatever way, goes on from its newest sound
checkpoint and ends bit for bit where the run would have ended: batches and noise follow from the
seed and the step, and nothing else is carried over.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
import optax

from scorejax.report import Evaluation
from scorejax.train import parallel
from scorejax.train.checkpoint import Checkpoints
from scorejax.train.logging import RunLog
from scorejax.train.preemption import notice_of_termination
from scorejax.train.settings import Settings
from scorejax.train.state import TrainState
from scorejax.train.step import TrainStep, make_train_step, scan_steps
from scorejax.train.workdir import open_workdir
from scorejax.typing import Array, LossFn, Params, PRNGKeyArray, PyTree


class System(Protocol):
    """What the loop asks of a system.

    Of the source, `init(start_step, rng) -> carry` is called once and `next(carry, state, rng) ->
    (carry, batch)` for every step in order; a batch is a dict of arrays with this process's share
    of `batch_size` examples, and `state` is replicated, for this call only. `evaluate` gets the
    state of one device.
    """

    loss: LossFn
    tx: optax.GradientTransformation
    source: Any

    def init(self, rng: PRNGKeyArray) -> tuple[Params, PyTree]: ...

    def evaluate(self, rng: PRNGKeyArray, state: TrainState) -> Evaluation: ...


def train(system: System, config: Mapping[str, Any], workdir: str | os.PathLike) -> TrainState:
    """Trains a system in a directory, or goes on there; returns the state as NumPy arrays.

    Of the config, it reads the fields of `Settings`. On SIGTERM it saves and returns early.
    Raises: ValueError if the config is impossible or contradicts the run in workdir, RuntimeError
    if the loss is not finite or a checkpoint has other arrays, OSError if workdir cannot be
    written: one line each, and none harms the checkpoints that there are.
    """
    settings = Settings.from_config(config)
    workdir = open_workdir(workdir, config)
    keys = _Keys(*jax.random.split(jax.random.key(settings.seed), len(_Keys._fields)))
    ranking = {"best_metric": settings.best_metric, "best_mode": settings.best_mode}
    with (
        notice_of_termination() as terminated,  # outermost: the last save is not to be killed
        Checkpoints(workdir, keep_latest=settings.keep_latest, **ranking) as checkpoints,
    ):
        state = _newest_or_new_state(system, checkpoints, keys.init)
        with RunLog(
            workdir,
            start_step=int(state.step),
            num_train_steps=settings.num_train_steps,
            log_every=settings.log_every,
            end_of_first_call=settings.end_of_call(int(state.step)),
        ) as log:
            return _run(system, settings, keys, state, checkpoints, log, terminated)


class _Keys(NamedTuple):
    """A run's keys: of the parameters, of the data, of the noise in the loss, of evaluations."""

    init: Array
    data: Array
    step: Array
    evaluate: Array


def _newest_or_new_state(system: System, checkpoints: Checkpoints, rng: Array) -> TrainState:
    def create(rng: Array) -> TrainState:
        return TrainState.create(*system.init(rng), system.tx)

    state = checkpoints.restore_latest(jax.eval_shape(create, rng))
    return jax.device_get(jax.jit(create)(rng)) if state is None else state


def _run(
    system: System,
    settings: Settings,
    keys: _Keys,
    state: TrainState,
    checkpoints: Checkpoints,
    log: RunLog,
    terminated: Callable[[int], bool],
) -> TrainState:
    start_step, steps_per_call = int(state.step), settings.num_steps_per_call
    call = _compiled_call(system, settings)
    in_flight = parallel.InFlight()
    replicated = parallel.replicate(state)
    carry = system.source.init(start_step, keys.data)
    done = start_step
    first_end, end = settings.end_of_call(start_step), settings.num_train_steps
    for step in range(first_end, end + 1, steps_per_call):
        batches = []
        for number in range(done, step):
            rng = jax.random.fold_in(keys.data, number)
            carry, batch = system.source.next(carry, replicated, rng)
            batches.append(batch)
        replicated, metrics = call(replicated, parallel.shard(batches), keys.step)
        _report(in_flight.push(step, metrics), log, checkpoints)
        done = step

        last, stop = step == end, terminated(step)
        evaluates = settings.eval_every and (last or step % settings.eval_every == 0)
        saves = last or stop or step % settings.save_every == 0
        if evaluates or saves:
            _report(in_flight.drain(), log, checkpoints)
            state, scalars = parallel.unreplicate(replicated), {}
            if evaluates:
                scalars = _evaluate(system, keys, state, log)
            log.flush()
            if saves:
                checkpoints.save(state, scalars)
        if stop:
            log.say(f"terminated at step {step}, which is saved; run it again to go on.")
            break
    return state


def _compiled_call(system: System, settings: Settings) -> TrainStep:
    step = make_train_step(
        system.loss,
        system.tx,
        ema_rate=settings.ema_rate,
        axis_name=parallel.AXIS,
        accumulation=settings.accumulation,
    )
    return parallel.map_step(scan_steps(step))


def _evaluate(system: System, keys: _Keys, state: TrainState, log: RunLog) -> dict[str, float]:
    rng = jax.random.fold_in(keys.evaluate, int(state.step))
    evaluation = system.evaluate(rng, jax.device_put(state))
    log.evaluation(int(state.step), evaluation)
    return evaluation.scalars


def _report(
    finished: Iterable[tuple[int, Mapping[str, np.ndarray]]], log: RunLog, checkpoints: Checkpoints
) -> None:
    """Logs the steps of finished calls. Raises: RuntimeError at the first that is not finite."""
    for last_step, metrics in finished:
        num_steps = len(metrics["finite"])
        for row in range(num_steps):
            step = last_step - num_steps + 1 + row
            if not metrics["finite"][row]:
                good = checkpoints.latest_step()
                raise RuntimeError(
                    f"the loss or its gradient is not finite at step {step}; "
                    + (
                        "nothing is saved."
                        if good is None
                        else f"the checkpoint of step {good} is kept."
                    )
                )
            log.train(step, {k: v[row] for k, v in metrics.items() if k != "finite"})
