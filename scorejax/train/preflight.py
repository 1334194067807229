# SPDX-License-Identifier: Apache-2.0
"""Checks before training: whatever can be wrong with a config, a system or a workdir, in one line.

Nothing is compiled, so that `launch.train` reports a mistake at once.
"""

import os
from collections.abc import Mapping
from typing import Any

import jax

from scorejax.files import AnyPath
from scorejax.train import integrity, parallel
from scorejax.train.settings import Settings
from scorejax.train.state import TrainState
from scorejax.train.system import System
from scorejax.train.workdir import keep_arrays, open_workdir
from scorejax.typing import OnlineSource


def preflight(
    system: System, config: Mapping[str, Any], workdir: str | os.PathLike
) -> tuple[Settings, AnyPath]:
    """Checks that a system can train in a directory; returns its settings and the absolute path.

    Creates the directory, its config.json, and kept.npz if the system keeps arrays, unless they are
    there.
    Raises: ValueError if the config is impossible or contradicts the run in workdir, if a phase of
    the system begins within a compiled call, if the rates
    of `ema_rate` are not those of parts of the parameters, if the rows of an online source do not
    divide over the devices, or if frozen arrays have changed; OSError if workdir cannot be written.
    """
    settings = Settings.from_config(config)
    for start, _ in system.phases:
        settings.require_whole_calls("the step at which another loss starts", start)
    if isinstance(settings.ema_rate, dict) or isinstance(system.source, OnlineSource):
        create = lambda: TrainState.create(*system.init(jax.random.key(0)), system.tx)
        state = jax.eval_shape(create)
        _require_prefix(settings.ema_rate, state.params)
        if isinstance(system.source, OnlineSource):
            start = lambda state: system.source.init(jax.random.key(0), state)
            parallel.require_spreadable(jax.eval_shape(start, state))
    checksums = integrity.tree_checksums(system.frozen)
    path = open_workdir(workdir, config, paths=system.paths, frozen=checksums)
    if system.kept is not None:
        keep_arrays(path, system.kept)
    return settings, path


def _require_prefix(ema_rate: Any, params: Any, name: str = "ema_rate") -> None:
    """Raises ValueError unless a dictionary of rates has the keys of the parameters."""
    if not isinstance(ema_rate, Mapping):
        return
    parts = params if isinstance(params, Mapping) else {}
    if ema_rate.keys() != parts.keys():
        theirs = ", ".join(sorted(parts)) or "no parts"
        raise ValueError(
            f"{name} needs a rate for each part of the parameters, {theirs}; got "
            f"{', '.join(sorted(ema_rate)) or 'none'}."
        )
    for key, rate in ema_rate.items():
        _require_prefix(rate, parts[key], f"{name}.{key}")
