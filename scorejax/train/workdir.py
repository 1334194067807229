# SPDX-License-Identifier: Apache-2.0
"""The directory of a run: its config, and whether another config may resume it.

config.json       the config, and checksums of the frozen arrays
evaluations.json  the scalars of evaluations, which rank the checkpoints
kept.npz          arrays that commands after training need, of some systems
checkpoints/      one directory a step
metrics.jsonl     one line per logged step or evaluation
tensorboard/      the same as event files
pictures/         PNG files of evaluations, and the loss curve
"""

import contextlib
import json
import os
import pathlib
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TypeAlias

import jax
import numpy as np
from ml_collections import ConfigDict

from scorejax import files
from scorejax.files import AnyPath

Config: TypeAlias = ConfigDict
CONFIG = "config.json"
KEPT = "kept.npz"
FROZEN = "frozen"
"""Key of config.json that holds the checksums of a system's frozen arrays, by name."""
# What a resumed run may change: how long it runs, how its steps are cut up, what it reports; and
# whether damaged files are left out, which were an error before.
_FREE_KEYS = (
    "num_train_steps", "num_steps_per_call", "accumulation", "log_every", "save_every",
    "keep_latest", "best_metric", "best_mode", "max_nonfinite_updates", "damaged",
)  # fmt: skip
_FREE_PREFIX = "eval_"
_DECIDE = (
    "system", "model", "network", "sde", "preconditioner", "ladder", "method", "objective",
    "dataset", "environment", "table", "layout", "data_dir", "image_size",
)  # fmt: skip
"""Keys from whose values those of others follow in our configs, the most decisive one first."""


def open_workdir(
    workdir: str | os.PathLike,
    config: Mapping[str, Any],
    *,
    paths: Collection[str] = (),
    frozen: Mapping[str, str] | None = None,
) -> AnyPath:
    """Creates the directory of a run, or checks that it belongs to a run with the same config.

    The config is written when the run is new, and again only if a value that may change has
    changed: later commands read it, for example to find data that were moved.
    The values of the keys `paths` may have changed, since data and other runs may be moved.
    `frozen` maps names of the system's frozen arrays to checksums, see `integrity.tree_checksums`;
    None leaves them unchecked.
    Raises: ValueError if it belongs to another run, OSError if it cannot be written; one line each.
    """
    path = files.absolute(workdir)
    if FROZEN in config:
        raise ValueError(f"the config key {FROZEN!r} is reserved for checksums; rename it.")
    config = _plain(config)
    has_checkpoints = files.exists(path / "checkpoints")
    before: dict[str, Any] | None = None
    if files.exists(path / CONFIG):
        before = _read(path)
        saved = dict(before)
        checksums = saved.pop(FROZEN, {})
        _require_same(saved, config, path, free=(*_FREE_KEYS, *paths))
        if frozen is None:
            frozen = checksums
        elif checksums or has_checkpoints:
            _require_same_frozen(checksums, frozen, path, {key: config.get(key) for key in paths})
    elif has_checkpoints:
        raise ValueError(f"workdir {path} has checkpoints but no {CONFIG}; choose another workdir.")
    try:
        with files.reaching(path):
            path.mkdir(parents=True, exist_ok=True)
        record = config | ({FROZEN: dict(frozen)} if frozen else {})
        if jax.process_index() == 0 and record != before:
            _save(path, record)
            files.sync(path)  # or a power failure could leave checkpoints without a config
            with contextlib.suppress(PermissionError):  # one may write in what one cannot list
                files.sync(path.parent)
    except OSError as error:
        raise OSError(f"cannot write to workdir {path}: {files.reason(error)}") from error
    return path


def keep_arrays(workdir: AnyPath, make: Callable[[], Mapping[str, np.ndarray]]) -> None:
    """Writes the arrays by name that a run keeps, unless it has them.

    Raises: OSError with one line if they cannot be written.
    """
    path = workdir / KEPT
    if jax.process_index() == 0 and not files.exists(path):
        try:
            files.save_npz(path, **make())
        except OSError as error:
            raise OSError(f"cannot write to workdir {workdir}: {files.reason(error)}") from error


def load_kept(workdir: str | os.PathLike) -> dict[str, np.ndarray]:
    """The arrays that a run keeps; {} if it keeps none.

    Raises: ValueError with one line that names the file if it is damaged.
    """
    path = files.absolute(workdir) / KEPT
    if not files.exists(path):
        return {}
    try:
        return files.load_npz(path)
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = " ".join(str(error).split())[:80]
        raise ValueError(
            f"{path} is damaged ({reason}); restore it, or delete it to read the run's data again"
        ) from None


def require_new_workdir(workdir: str | os.PathLike) -> AnyPath:
    """The absolute path of a new run. Raises: ValueError unless it is missing or empty; OSError."""
    path = files.absolute(workdir)
    if files.exists(path / CONFIG):
        raise ValueError(f"workdir {path} already holds a run; choose another workdir.")
    if files.is_local(path):
        is_used = path.exists() and (not path.is_dir() or any(path.iterdir()))
    else:
        is_used = bool(files.files_below(path))
    if is_used:
        raise ValueError(f"workdir {path} is not empty; choose another workdir.")
    return path


@contextlib.contextmanager
def new_workdir(workdir: str | os.PathLike, config: Mapping[str, Any]) -> Iterator[AnyPath]:
    """Yields a directory to build a run in, which is at `workdir` when the block has ended.

    A run that starts from imported weights therefore exists whole or not at all: on a disk the
    directory is renamed; in a bucket it gets its config last, without which it holds no run.
    Raises: ValueError as `require_new_workdir`, OSError if it cannot be written; one line each.
    """
    path = require_new_workdir(workdir)
    if not files.is_local(path):
        try:
            yield path
            _save(path, _plain(config))
        except BaseException:
            files.remove_tree(path)
            raise
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        building = pathlib.Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    except OSError as error:
        raise OSError(f"cannot write to workdir {path}: {error.strerror}") from error
    try:
        yield open_workdir(building, config)
        building.chmod(0o755)  # mkdtemp makes directories that only their owner can read
        building.rename(path)
    except BaseException:
        files.remove_tree(building)
        raise


def load_config(workdir: str | os.PathLike) -> Config:
    """The config of the run in a directory.

    Raises: FileNotFoundError or ValueError with one line if there is no run, or no readable config.
    """
    config = _read(workdir)
    config.pop(FROZEN, None)
    return Config(config)


def require_same_arrays(
    workdir: str | os.PathLike, checksums: Mapping[str, str], origins: Mapping[str, Any]
) -> None:
    """Raises ValueError naming the first frozen array that is not the one of the run in workdir.

    Arrays of the run that `checksums`, see `integrity.tree_checksums`, do not name are not checked.
    `origins` are config keys and paths that the error shows.
    """
    saved = _read(workdir).get(FROZEN, {})
    known = {name: saved[name] for name in checksums.keys() & saved.keys()}
    now = {name: checksums[name] for name in known}
    _require_same_frozen(known, now, files.absolute(workdir), dict(origins))


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config as what JSON gives back."""
    return json.loads(json.dumps(dict(config), default=ConfigDict.to_dict))


def _save(workdir: AnyPath, config: Mapping[str, Any]) -> None:
    files.save_text(workdir / CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")


def _read(workdir: str | os.PathLike) -> dict[str, Any]:
    path = files.absolute(workdir) / CONFIG
    try:
        with files.reaching(path):
            text = path.read_text()
        config = json.loads(text)
    except (FileNotFoundError, NotADirectoryError):
        problem = f"has no {CONFIG}" if path.parent.is_dir() else "is not a directory"
        raise FileNotFoundError(f"workdir {path.parent} {problem}: no run is there.") from None
    except ValueError:
        raise ValueError(f"{path} is not a JSON file; it needs to hold the run's config.") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path} needs to hold the run's config; got {str(config)[:40]!r}.")
    return config


def _require_same(
    old: dict[str, Any], new: dict[str, Any], workdir: AnyPath, *, free: Collection[str]
) -> None:
    """Raises ValueError naming the keys, not `free`, in which two configs contradict.

    The first is the one from which others follow, see `_DECIDE`.
    """
    may_change = lambda key: key in free or key.startswith(_FREE_PREFIX)
    importance = lambda key: (_DECIDE.index(key) if key in _DECIDE else len(_DECIDE), key)
    shared = (key for key in old.keys() & new.keys() if not may_change(key))
    differing = sorted((key for key in shared if old[key] != new[key]), key=importance)
    # A key that the run has no longer been given would silently take its default.
    lost = [key for key in sorted(old.keys() - new.keys()) if not may_change(key)]
    if lost and not set(differing) & set(_DECIDE):
        raise ValueError(
            f"workdir {workdir} holds a run with {lost[0]}={old[lost[0]]!r}, which the config "
            "lacks; add it to resume, or choose another workdir."
        )
    if differing:
        first, *others = differing
        listed = ", ".join(others[:5]) + (" ..." if len(others) > 5 else "")
        also = f" (others that differ: {listed})" if others else ""
        as_before = "the config of that run" if others else f"{first}={old[first]!r}"
        raise ValueError(
            f"workdir {workdir} holds a run with {first}={old[first]!r}, the config has "
            f"{first}={new[first]!r}{also}; choose another workdir, or {as_before} to resume."
        )


def _require_same_frozen(
    old: Mapping[str, str], new: Mapping[str, str], workdir: AnyPath, origins: dict[str, Any]
) -> None:
    """Raises ValueError naming the first frozen array whose content has changed."""
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            there, here = (checksums.get(name, "absent")[:12] for checksums in (old, new))
            origin = "".join(f", from {key}={value!r}" for key, value in origins.items() if value)
            raise ValueError(
                f"the frozen arrays {name!r} have changed: workdir {workdir} was started with "
                f"checksum {there}, they have {here} now{origin}; restore them, or choose another "
                "workdir."
            )
