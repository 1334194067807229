# SPDX-License-Identifier: Apache-2.0
"""The training loop, one for every system.

Called with the workdir of a stopped run, it resumes at the newest sound checkpoint and ends bit for
bit where the run would have ended. Noise and offline batches follow from the seed and the step; the
carry of an online source is in the checkpoint.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from scorejax.train import parallel
from scorejax.train.checkpoint import Checkpoints
from scorejax.train.logging import RunLog
from scorejax.train.preemption import notice_of_termination
from scorejax.train.preflight import preflight
from scorejax.train.settings import Settings
from scorejax.train.state import TrainState, averaged
from scorejax.train.system import System, frozen_arguments
from scorejax.train.updates import RunKeys, compiled_updates
from scorejax.typing import Array


def train(system: System, config: Mapping[str, Any], workdir: str | os.PathLike) -> TrainState:
    """Trains a system in a directory, or resumes there; returns the state as NumPy arrays.

    Reads the fields of `Settings` from the config. On SIGTERM it saves and returns early.
    Raises: ValueError if the config is impossible or contradicts the run in workdir; RuntimeError
    if the loss is not finite or a checkpoint has other arrays; OSError if workdir cannot be
    written. Each is one line, and leaves existing checkpoints as they are.
    """
    settings, workdir = preflight(system, config, workdir)
    keys = RunKeys(*jax.random.split(jax.random.key(settings.seed), len(RunKeys._fields)))
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
            if int(state.step) >= settings.num_train_steps:
                log.say(
                    f"the run is at step {int(state.step)} of {settings.num_train_steps} already."
                )
            return _run(system, settings, keys, state, checkpoints, log, terminated)


def _newest_or_new_state(system: System, checkpoints: Checkpoints, rng: Array) -> TrainState:
    create = lambda params, model_state: TrainState.create(params, model_state, system.tx)
    like = jax.eval_shape(lambda rng: create(*system.init(rng)), rng)
    state = checkpoints.restore_latest(like)
    # `init` runs outside of jit: arrays that it returns from the host would be constants inside.
    return jax.device_get(jax.jit(create)(*system.init(rng))) if state is None else state


def _run(
    system: System,
    settings: Settings,
    keys: RunKeys,
    state: TrainState,
    checkpoints: Checkpoints,
    log: RunLog,
    terminated: Callable[[int], bool],
) -> TrainState:
    start_step, steps_per_call = int(state.step), settings.num_steps_per_call
    updates = compiled_updates(system, settings, keys, state, checkpoints)
    frozen, publish = frozen_arguments(system), parallel.map_copies(system.published)
    in_flight = parallel.InFlight()
    replicated = parallel.replicate(state)
    done = start_step
    first_end, end = settings.end_of_call(start_step), settings.num_train_steps
    for step in range(first_end, end + 1, steps_per_call):
        replicated, metrics = updates.advance(replicated, done, step)
        _report(in_flight.push(step, metrics), log, checkpoints)
        done = step

        last, stop = step == end, terminated(step)
        evaluates = settings.eval_every and (last or step % settings.eval_every == 0)
        saves = last or stop or step % settings.save_every == 0
        if evaluates or saves:
            _report(in_flight.drain(), log, checkpoints)
            scalars = {}
            if saves:
                state = parallel.unreplicate(replicated)
            if evaluates:
                rng = jax.random.fold_in(keys.evaluate, step)
                evaluation = system.evaluate(rng, publish(replicated), *frozen)
                log.evaluation(step, evaluation)
                scalars = evaluation.scalars
            log.flush()
            if saves:
                published = None
                if system.published is not averaged:
                    published = jax.device_get(system.published(state))
                checkpoints.save(state, scalars, published=published, source=updates.source_carry())
        if stop:
            log.say(f"terminated at step {step}, which is saved; run it again to go on.")
            break
    return state


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
