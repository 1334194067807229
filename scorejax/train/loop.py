# SPDX-License-Identifier: Apache-2.0
"""The training loop, one for every system.

Called with the workdir of a stopped run, it resumes at the newest sound checkpoint and ends bit for
bit where the run would have ended. Noise and offline batches follow from the seed and the step; the
carry of an online source is in the checkpoint. A step that is saved and evaluated is saved first.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from scorejax.train import banner, parallel
from scorejax.train.checkpoint import Checkpoints
from scorejax.train.lock import held
from scorejax.train.logging import RunLog
from scorejax.train.preemption import notice_of_termination
from scorejax.train.preflight import preflight
from scorejax.train.settings import Settings
from scorejax.train.state import TrainState, averaged
from scorejax.train.system import System, frozen_arguments
from scorejax.train.updates import RunKeys, compiled_updates
from scorejax.typing import Array, Variables


def train(system: System, config: Mapping[str, Any], workdir: str | os.PathLike) -> TrainState:
    """Trains a system in a directory, or resumes there; returns the state as NumPy arrays.

    Reads the fields of `Settings` from the config. On SIGTERM it saves and returns early. An
    evaluation that failed is tried again when the run resumes, and left out if it fails again.
    Raises: KeyboardInterrupt after it has saved, on the first Ctrl-C; ValueError if the config is
    impossible or contradicts the run in workdir; RuntimeError if the loss is not finite too often,
    a checkpoint has other arrays, or the processes of the run resume at different steps; OSError if
    workdir cannot be written, or another process trains there. Each is one line, and leaves
    existing checkpoints as they are.
    """
    with held(workdir):
        return _train_alone(system, config, workdir)


def _train_alone(
    system: System, config: Mapping[str, Any], workdir: str | os.PathLike
) -> TrainState:
    settings, workdir = preflight(system, config, workdir)
    keys = RunKeys(*jax.random.split(jax.random.key(settings.seed), len(RunKeys._fields)))
    ranking = {"best_metric": settings.best_metric, "best_mode": settings.best_mode}
    with (
        notice_of_termination() as terminated,  # outermost: the last save is not to be killed
        Checkpoints(workdir, keep_latest=settings.keep_latest, **ranking) as checkpoints,
    ):
        state = _newest_or_new_state(system, settings, checkpoints, keys.init)
        with RunLog(
            workdir,
            start_step=int(state.step),
            num_train_steps=settings.num_train_steps,
            log_every=settings.log_every,
            end_of_first_call=settings.end_of_call(int(state.step)),
            evaluation_due=_evaluation_is_due(settings, checkpoints, int(state.step)),
            best_metric=settings.best_metric,
        ) as log:
            if jax.process_index() == 0:
                for line in banner.opening(system, config, settings, state, workdir):
                    log.say(line)
            return _run(system, settings, keys, state, checkpoints, log, terminated)


def _newest_or_new_state(
    system: System, settings: Settings, checkpoints: Checkpoints, rng: Array
) -> TrainState:
    skips = settings.max_nonfinite_updates > 0
    create = lambda params, model_state: TrainState.create(
        params, model_state, system.tx, skips=skips
    )
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
    terminated: Callable[[], bool],
) -> TrainState:
    start_step, steps_per_call = int(state.step), settings.num_steps_per_call
    updates = compiled_updates(system, settings, keys, state, checkpoints)
    publish, in_flight = parallel.map_copies(system.published), parallel.InFlight()
    replicated = parallel.replicate(state)
    if _evaluation_is_due(settings, checkpoints, start_step):
        _evaluate(system, keys, start_step, publish(replicated), checkpoints, log)
    done = start_step
    first_end, end = settings.end_of_call(start_step), settings.num_train_steps
    for step in range(first_end, end + 1, steps_per_call):
        replicated, metrics = updates.advance(replicated, done, step)
        _report(in_flight.push(step, metrics), system, settings, log, checkpoints)
        done = step

        stop = terminated()
        evaluates = settings.evaluates_at(step)
        saves = stop or step == end or step % settings.save_every == 0
        if evaluates or saves:
            _report(in_flight.drain(), system, settings, log, checkpoints)
            if saves:
                state = parallel.unreplicate(replicated)
            log.flush()
            if evaluates:
                checkpoints.evaluations.expect(step)
            if saves:
                published = None
                if system.published is not averaged:
                    published = jax.device_get(system.published(state))
                checkpoints.save(state, published=published, source=updates.source_carry())
            if evaluates and not stop:
                _evaluate(system, keys, step, publish(replicated), checkpoints, log)
        if stop:
            log.say(f"terminated at step {step}, which is saved; run it again to go on.")
            break
    return state


def _evaluation_is_due(settings: Settings, checkpoints: Checkpoints, step: int) -> bool:
    """Whether the run stopped at a step that it had saved and not yet evaluated."""
    return settings.evaluates_at(step) and checkpoints.evaluations.is_due(step)


def _evaluate(
    system: System,
    keys: RunKeys,
    step: int,
    variables: Variables,
    checkpoints: Checkpoints,
    log: RunLog,
) -> None:
    """Evaluates a step, once it is saved; says so if this has failed too often to be tried."""
    checkpoints.wait()
    if not checkpoints.evaluations.begin(step):
        log.say(f"the evaluation of step {step} has failed too often; it is left out.")
        return
    rng = jax.random.fold_in(keys.evaluate, step)
    try:
        evaluation = system.evaluate(rng, variables, *frozen_arguments(system))
    except Exception:
        checkpoints.evaluations.fail(step)
        raise
    log.evaluation(step, evaluation)
    checkpoints.rank(step, evaluation.scalars)


def _report(
    finished: Iterable[tuple[int, Mapping[str, np.ndarray]]],
    system: System,
    settings: Settings,
    log: RunLog,
    checkpoints: Checkpoints,
) -> None:
    """Logs the steps of finished calls.

    Raises: RuntimeError at the first that is not finite, if it may not be skipped, or that has
    diverged.
    """
    for last_step, metrics in finished:
        num_steps = len(metrics["finite"])
        for row in range(num_steps):
            step = last_step - num_steps + 1 + row
            values = {name: value[row] for name, value in metrics.items()}
            finite, in_a_row = values.pop("finite"), int(values.pop("skipped", 1))
            if values.get("diverged", 0):
                log.train(step, values)
                kept = _kept(checkpoints.latest_step())
                raise RuntimeError(f"diverged at step {step}: {system.divergence}; {kept}.")
            if finite:
                log.train(step, values | ({"skipped": 0.0} if "skipped" in metrics else {}))
            elif in_a_row <= settings.max_nonfinite_updates:
                log.train(step, {"skipped": 1.0})
            else:
                raise RuntimeError(
                    _not_finite(step, settings.max_nonfinite_updates, checkpoints.latest_step())
                )


def _not_finite(step: int, most: int, saved: int | None) -> str:
    """The reason why a run stops after `most` updates that were skipped."""
    ordinal = f", nor at the {most} before it" if most else ""
    return (
        f"the loss or its gradient is not finite at step {step}{ordinal}; {_kept(saved)}. "
        f"To go on, let more such updates be skipped: max_nonfinite_updates is {most}. If they "
        "recur, start a run with a smaller learning rate or clipped gradients."
    )


def _kept(saved: int | None) -> str:
    return "nothing is saved" if saved is None else f"the checkpoint of step {saved} is kept"
