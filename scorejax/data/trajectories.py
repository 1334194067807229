# SPDX-License-Identifier: Apache-2.0
"""Files of demonstrations: a plain .npz here, HDF5 in `hdf5_trajectories`."""

import os
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from scorejax import files
from scorejax.data.demonstrations import Demonstrations, from_episodes, from_rollouts
from scorejax.data.hdf5_trajectories import is_d4rl, load_d4rl, load_minari, save_minari

__all__ = [
    "Demonstrations", "from_episodes", "from_rollouts", "load", "load_d4rl", "load_minari",
    "load_npz", "save_minari", "save_npz",
]  # fmt: skip

Path = str | os.PathLike


def load(path: Path) -> Demonstrations:
    """Demonstrations of a .npz file, of an .hdf5 file of D4RL, or of a data set of Minari.

    Raises: ValueError, FileNotFoundError.
    """
    if str(path).endswith(".npz"):
        return load_npz(path)
    return load_d4rl(path) if is_d4rl(path) else load_minari(path)


def load_npz(path: Path) -> Demonstrations:
    """Demonstrations of an .npz file, which has arrays of e whole episodes, one after the other:

    observations (n + e, o): of every episode of T actions its T + 1 observations, the last included
    actions (n, a), and lengths (e,), the T of each episode; without lengths there is one episode
    terminated (e,): whether the environment ended the episode, not a time limit; by default none
    rewards (n,), for returns, and dt, the time of a step: both may be left out
    or, of transitions: observations, actions, next_observations, terminated and episode, all (n, .)

    Raises: FileNotFoundError; ValueError that names the file and what is wrong with it.
    """
    try:
        arrays = files.load_npz(path)
    except (ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} needs to be an .npz file of numbers: {files.reason(error)}"
        ) from None
    return _from_arrays(arrays, name=str(path))


def save_npz(path: Path, demonstrations: Demonstrations) -> None:
    """Writes transitions by their fields, for `load_npz`. Raises: OSError."""
    fields = dict(vars(demonstrations))
    fields.pop("name")
    files.save_npz(path, **{name: value for name, value in fields.items() if value is not None})


def _from_arrays(arrays: Mapping[str, Any], *, name: str) -> Demonstrations:
    """Demonstrations of arrays by name; see `load_npz` for the two forms.

    Raises: ValueError for a missing or unknown name, and as `Demonstrations` and `from_episodes`.
    """
    pairs = "next_observations" in arrays
    optional = {"rewards", "terminated", "dt"}
    optional |= {"thinned", "ended"} if pairs else {"lengths"}
    needed = {"observations", "actions"} | ({"next_observations", "episode"} if pairs else set())
    missing, unknown = needed - arrays.keys(), arrays.keys() - needed - optional
    if missing or unknown:
        problem = f"lacks {min(missing)}" if missing else f"has {min(unknown)!r}, which is unknown"
        known = ", ".join(sorted(needed | optional))
        raise ValueError(f"{name} {problem}; it needs arrays of {known}")
    for field, values in arrays.items():
        if (np.ndim(values) == 0) != (field == "dt") and field not in ("lengths", "terminated"):
            needs = "a number" if field == "dt" else "an array with a row for each step"
            raise ValueError(f"{name} needs {field} to be {needs}; got shape {np.shape(values)}")
    arrays = dict(arrays)
    if "dt" in arrays:
        arrays["dt"] = float(arrays["dt"])
    if pairs:
        num = len(arrays["actions"])
        return Demonstrations(**({"terminated": np.zeros(num, bool)} | arrays), name=name)
    return _cut(arrays, name)


def _cut(arrays: dict[str, Any], name: str) -> Demonstrations:
    """Cuts rows of whole episodes, one after the other, at their lengths."""
    lengths = np.atleast_1d(arrays.pop("lengths", len(arrays["actions"])))
    if not np.issubdtype(lengths.dtype, np.integer) or lengths.ndim != 1 or (lengths < 0).any():
        raise ValueError(
            f"{name} needs lengths to be whole numbers (e,); got {lengths.dtype} {lengths.shape}"
        )
    for field, more in (("observations", 1), ("actions", 0), ("rewards", 0)):
        if field not in arrays:
            continue
        num, total = len(arrays[field]), int(np.sum(lengths + more))
        if num != total:
            hint = "T + 1 for T actions: first and last included" if more else "T for T actions"
            raise ValueError(
                f"{name} needs {total} {field} in {len(lengths)} episodes, {hint}; got {num}"
            )
        arrays[field] = np.split(arrays[field], np.cumsum(lengths + more)[:-1])
    if "terminated" in arrays:
        arrays["terminated"] = np.atleast_1d(arrays["terminated"])
    return from_episodes(**arrays, name=name)
