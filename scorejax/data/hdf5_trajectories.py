# SPDX-License-Identifier: Apache-2.0
"""Demonstrations in HDF5, as Minari and D4RL have them.

They are read by h5py alone, which the extra `rl` installs; nothing is downloaded.
"""

import importlib
import json
import os
import pathlib
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from scorejax import files
from scorejax.data.demonstrations import Demonstrations, from_episodes

MINARI_VERSION = "0.5.4"
"""Version of Minari whose layout `save_minari` writes."""


def load_minari(
    path: str | os.PathLike,
    *,
    num_episodes: int | None = None,
    subsample: int = 1,
    rng: np.random.Generator | None = None,
) -> Demonstrations:
    """Demonstrations of a data set of Minari: its folder, the folder data in it, or the HDF5 file.

    Observations of several arrays are joined to one vector in the order of their names, as
    gymnasium flattens them. Other arguments as in `Demonstrations.subsample`.
    Raises: FileNotFoundError; ValueError naming the file: for another format than HDF5, no
    episodes, actions or observations that are no vectors of real numbers, or h5py missing.
    """
    path = _minari_file(files.require_local(path, "a data set of Minari"))
    with _open(path) as file:
        names = sorted((name for name in file if name.startswith("episode_")), key=_number)
        if not names:
            raise ValueError(f"{path} needs episodes; it has none")
        episodes = [_minari_episode(file[name], f"{path}: {name}") for name in names]
    fields = {key: [episode[key] for episode in episodes] for key in episodes[0]}
    if all(np.isnan(rewards).all() for rewards in fields["rewards"]):
        del fields["rewards"]
    whole = from_episodes(**fields, name=str(path))
    return whole.subsample(num_episodes, subsample, rng=rng)


def is_d4rl(path: str | os.PathLike) -> bool:
    """Whether a file has arrays of transitions, as D4RL's, in the place of Minari's episodes."""
    if not os.path.isfile(path):
        return False
    with _open(pathlib.Path(path)) as file:
        return "observations" in file


def _minari_file(path: pathlib.Path) -> pathlib.Path:
    """The HDF5 file of a data set, whose metadata, if it is there, must not say otherwise."""
    folder = path.parent if path.is_file() else path
    folder = folder / "data" if (folder / "data").is_dir() else folder
    metadata = folder / "metadata.json"
    if metadata.is_file():
        try:
            data_format = json.loads(metadata.read_text()).get("data_format", "hdf5")
        except ValueError as error:
            raise ValueError(f"{metadata} needs to be JSON: {error}") from None
        if data_format != "hdf5":
            raise ValueError(f"{folder} needs the data_format hdf5; got {data_format}")
    path = path if path.is_file() else folder / "main_data.hdf5"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; give the folder of a Minari data set")
    return path


def _minari_episode(group: Any, name: str) -> dict[str, Any]:
    missing = {"observations", "actions", "rewards", "terminations"} - set(group)
    if missing:
        raise ValueError(f"{name} lacks {min(missing)}")
    terminations = group["terminations"][()]
    return {
        "observations": _vectors(group["observations"], f"{name}/observations"),
        "actions": _vectors(group["actions"], f"{name}/actions"),
        "rewards": group["rewards"][()],
        "terminated": bool(len(terminations) and terminations[-1]),
    }


def _vectors(node: Any, name: str) -> np.ndarray:
    """Rows (t, d) of an array, or of all arrays of a group side by side."""
    if hasattr(node, "keys"):
        return np.concatenate([_vectors(node[key], name) for key in sorted(node, key=_number)], 1)
    values = node[()]
    if values.dtype.kind != "f" or values.ndim < 1:
        raise ValueError(f"{name} needs real numbers; got {values.dtype} {values.shape}")
    return values.reshape(len(values), -1)


def _number(name: str) -> tuple[str, int]:
    """Sorts names that end in a number by it."""
    stem = name.rstrip("0123456789")
    return stem, int(name[len(stem) :] or 0)


def save_minari(
    root: str | os.PathLike,
    demonstrations: Demonstrations,
    *,
    dataset_id: str,
    action_low: ArrayLike,
    action_high: ArrayLike,
) -> pathlib.Path:
    """Writes root/dataset_id/data, which Minari opens if `root` is MINARI_DATASETS_PATH.

    `dataset_id` is name-v0, or namespace/name-v0. Rewards that are not known are NaN.
    Raises: ValueError if transitions were left out, so that an episode does not hang together;
    OSError.
    """
    episodes = list(demonstrations.episodes())
    for i, e in enumerate(episodes):
        if not np.array_equal(e.next_observations[:-1], e.observations[1:]):
            raise ValueError(
                f"{demonstrations.name} needs whole episodes to be saved for Minari; transitions "
                f"of episode {i} were left out"
            )
    folder = pathlib.Path(root) / dataset_id / "data"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "main_data.hdf5"
    with files.written_whole(path) as opened, _hdf5().File(opened, "w", track_order=True) as file:
        for i, e in enumerate(episodes):
            _write_episode(file.create_group(f"episode_{i}"), i, e)
    everywhere = np.full(demonstrations.observation_dim, np.inf)
    metadata = {
        "total_episodes": len(episodes),
        "total_steps": len(demonstrations),
        "data_format": "hdf5",
        "jpeg_encoding": False,
        "observation_space": _box(-everywhere, everywhere, demonstrations.observations.dtype),
        "action_space": _box(action_low, action_high, demonstrations.actions.dtype),
        "dataset_size": round(path.stat().st_size / 1e6, 1),
        "dataset_id": dataset_id,
        "minari_version": MINARI_VERSION,
    }
    files.save_text(folder / "metadata.json", json.dumps(metadata))
    return folder


def _write_episode(group: Any, number: int, episode: Demonstrations) -> None:
    num = len(episode)
    group.attrs["id"], group.attrs["total_steps"] = number, num
    last = np.arange(num) == num - 1
    ended = bool(episode.terminated[-1])
    rewards = np.full(num, np.nan) if episode.rewards is None else episode.rewards
    arrays = {
        "observations": np.concatenate([episode.observations, episode.next_observations[-1:]]),
        "actions": episode.actions,
        "rewards": rewards,
        "terminations": last & ended,
        "truncations": last & (not ended),
    }
    for name, values in arrays.items():
        group.create_dataset(name, data=values, chunks=True, maxshape=(None, *values.shape[1:]))


def _box(low: ArrayLike, high: ArrayLike, dtype: np.dtype) -> str:
    low, high = np.asarray(low, float), np.asarray(high, float)
    box = {"type": "Box", "dtype": str(dtype), "shape": list(low.shape)}
    return json.dumps(box | {"low": low.tolist(), "high": high.tolist()})


def load_d4rl(path: str | os.PathLike, *, num_episodes: int | None = None) -> Demonstrations:
    """The first episodes of a D4RL file, cut where `terminals` or `timeouts` say.

    Without next_observations in the file the last transition of every episode is left out, the
    terminal one among them, since its next observation is not known.
    Raises: FileNotFoundError; ValueError naming the file, if an array or h5py is missing.
    """
    path = files.require_local(path, "a D4RL file")
    with _open(path) as file:
        missing = {"observations", "actions", "rewards", "terminals"} - set(file)
        if missing:
            raise ValueError(f"{path} needs the array {min(missing)!r} of D4RL")
        names = ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations")
        arrays = {name: file[name][()] for name in names if name in file}
    terminated = arrays["terminals"].astype(bool).reshape(-1)
    ends = terminated | arrays.get("timeouts", np.zeros_like(terminated)).astype(bool).reshape(-1)
    episode = np.concatenate([[0], np.cumsum(ends)[:-1]])
    kept = np.ones(len(ends), bool)
    if "next_observations" not in arrays:
        arrays["next_observations"] = np.roll(arrays["observations"], -1, axis=0)
        kept[:-1], kept[-1] = ~ends[:-1], False
    fields = ("observations", "actions", "next_observations", "rewards")
    whole = Demonstrations(
        **{field: arrays[field][kept] for field in fields},
        terminated=terminated[kept],
        episode=episode[kept],
        name=str(path),
    )
    return whole.subsample(num_episodes)


def _hdf5() -> Any:
    try:
        return importlib.import_module("h5py")
    except ImportError:
        raise ValueError(
            "HDF5 needs the package h5py, which is not installed: pip install h5py, or scorejax "
            "with its extra rl"
        ) from None


def _open(path: pathlib.Path) -> Any:
    """The HDF5 file. Raises: FileNotFoundError, or ValueError if it is no HDF5."""
    hdf5 = _hdf5()
    try:
        return hdf5.File(path, "r")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is not there") from None
    except OSError as error:
        raise ValueError(f"{path} needs to be an HDF5 file: {files.reason(error)}") from None
