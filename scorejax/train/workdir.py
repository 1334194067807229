# SPDX-License-Identifier: Apache-2.0
"""The directory of a run: its config, and whether a config may go on with it.

config.json       what the run was started with
checkpoints/      one directory a step
metrics.jsonl     one line per logged step or evaluation
tensorboard/      the same as event files
pictures/         PNG files of evaluations, and the loss curve
"""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

CONFIG = "config.json"
# What a resumed run may change: how long it runs, how its steps are cut up, what it reports.
_FREE_KEYS = ("num_train_steps", "num_steps_per_call", "accumulation", "data_dir")
_FREE_PREFIXES = ("log_", "eval_", "save_", "keep_", "best_")


def open_workdir(workdir: str | os.PathLike, config: Mapping[str, Any]) -> pathlib.Path:
    """Creates the directory of a run, or checks that it belongs to a run with the same config.

    Raises: ValueError if it belongs to another run, OSError if it cannot be written; one line each.
    """
    path = pathlib.Path(workdir).absolute()
    config = json.loads(json.dumps(dict(config)))
    if (path / CONFIG).exists():
        _require_same(load_config(path), config, path)
    elif path.is_dir() and (path / "checkpoints").exists():
        raise ValueError(f"workdir {path} has checkpoints but no {CONFIG}; choose another workdir.")
    try:
        path.mkdir(parents=True, exist_ok=True)
        if jax.process_index() == 0:
            write_atomically(path / CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")
    except OSError as error:
        raise OSError(f"cannot write to workdir {path}: {error.strerror}") from error
    return path


def open_new_workdir(workdir: str | os.PathLike, config: Mapping[str, Any]) -> pathlib.Path:
    """Creates the directory of a run that is to begin with weights of another's.

    Raises: ValueError if a run is there, OSError if it cannot be written; one line each.
    """
    path = pathlib.Path(workdir).absolute()
    if (path / CONFIG).exists():
        raise ValueError(f"workdir {path} already holds a run; choose another workdir.")
    return open_workdir(path, config)


def load_config(workdir: str | os.PathLike) -> dict[str, Any]:
    """The config of the run in a directory.

    Raises: FileNotFoundError or ValueError with one line if there is no run, or no readable config.
    """
    path = pathlib.Path(workdir).absolute() / CONFIG
    try:
        config = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        problem = f"has no {CONFIG}" if path.parent.is_dir() else "is not a directory"
        raise FileNotFoundError(f"workdir {path.parent} {problem}: no run is there.") from None
    except ValueError:
        raise ValueError(f"{path} is not a JSON file; it needs to hold the run's config.") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path} needs to hold the run's config; got {str(config)[:40]!r}.")
    return config


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Writes a file so that whoever reads it, now or after a crash, finds it old or new, whole."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _require_same(old: dict[str, Any], new: dict[str, Any], workdir: pathlib.Path) -> None:
    """Raises ValueError naming the first key in which two configs contradict each other."""
    # The system first: with another one, every other difference follows from it.
    for key in sorted(old.keys() & new.keys(), key=lambda key: (key != "system", key)):
        free = key in _FREE_KEYS or key.startswith(_FREE_PREFIXES)
        if not free and old[key] != new[key]:
            raise ValueError(
                f"workdir {workdir} holds a run with {key}={old[key]!r}, the config has "
                f"{key}={new[key]!r}; choose another workdir, or {key}={old[key]!r} to resume."
            )
