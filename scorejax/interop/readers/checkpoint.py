# SPDX-License-Identifier: Apache-2.0
"""Reads published checkpoints as data: nothing in a file is ever executed.

The format is recognised by the content, not by the file's name: `.pth` of the PyTorch score-SDE
code, of NCSNv2 and of BiO-Net, msgpack of the JAX score-SDE code, pickles of EDM, TensorFlow
checkpoints of recovery likelihood (the index, with its shards beside it), and bare state
dictionaries in `.pth` or `.safetensors`. A read takes at most a small multiple of the file's size
in memory.
"""

import math
import mmap
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from scorejax.files import disguise
from scorejax.interop.readers import edm_pickle, flax_msgpack, leveldb_table, tensor_bundle
from scorejax.interop.readers.inert_pickle import Record, read_pickle
from scorejax.interop.readers.safetensors import read_safetensors
from scorejax.interop.readers.torch_save import (
    LEGACY_MAGIC,
    Tensor,
    numpy_value,
    pickled_constructors,
    read_torch_legacy,
    read_torch_zip,
)

StateDict = dict[str, np.ndarray]
_PREFIX = "module."
_LEGACY_START = b"\x80\x02\x8a\x0a" + LEGACY_MAGIC.to_bytes(10, "little")


class Checkpoint(NamedTuple):
    """The weights of a file by their official names, without the prefix `module.`.

    `layout`, "torch", "flax" or "tensorflow", is the convention of names and axes. `raw` holds the
    trained weights, `averaged` their moving average; None if the file lacks them. `settings` are
    those that the file states, by the name of the official class.
    """

    layout: str
    raw: StateDict | None
    averaged: StateDict | None
    step: int = 0
    settings: Mapping[str, Mapping[str, Any]] = {}

    def weights(self, *, averaged: bool = True) -> StateDict:
        """The averaged or the raw weights. Raises: ValueError if the file lacks them."""
        chosen, other = (self.averaged, "raw") if averaged else (self.raw, "averaged")
        if chosen is None:
            kind = "averaged" if averaged else "raw"
            raise ValueError(f"the file has no {kind} weights, only {other} ones.")
        return chosen


def read_checkpoint(path: str | os.PathLike) -> Checkpoint:
    """Reads a published checkpoint.

    A TensorFlow checkpoint may be named by its index, by a shard, or by what their names share.
    Raises: FileNotFoundError; ValueError with one line if the file is damaged, hostile or of an
    unknown format. Both name the file.
    """
    path = tensor_bundle.index_of(pathlib.Path(path))
    if not path.is_file():
        raise FileNotFoundError(f"no file of weights at {path}.")
    if kind := disguise(path):
        raise ValueError(f"{path} is {kind}.")
    try:
        with path.open("rb") as file:
            return _read(file, path.stat().st_size)
    except ValueError as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())[:400]}") from None


def _read(file: Any, size: int) -> Checkpoint:
    start = file.read(32)
    file.seek(0)
    if start.startswith(b"PK"):
        return _from_torch(read_torch_zip(file, size))
    if start[8:9] == b"{":
        return Checkpoint("torch", _state_dict(read_safetensors(file, size)), None)
    if len(start) < 32:
        raise ValueError("too short for a checkpoint, perhaps truncated.")
    # Mapped: a read beyond the end of the file returns fewer bytes, and allocates no buffer.
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[-len(leveldb_table.MAGIC) :] == leveldb_table.MAGIC:
            return _from_tensorflow(tensor_bundle.read_tensorflow(pathlib.Path(file.name)))
        if start.startswith(_LEGACY_START):
            return _from_torch(read_torch_legacy(data))
        if start[0] == 0x80:
            value = read_pickle(data, pickled_constructors(), records=edm_pickle.RECORDS)
            return _from_pickle(value)
        if start[0] in range(0x81, 0x90) or start[0] in (0xDE, 0xDF):
            return Checkpoint("flax", **flax_msgpack.read_flax(data))
    raise ValueError(
        "not a checkpoint of a known kind: .pth, .pkl, .safetensors, .index or flax msgpack."
    )


def _from_pickle(value: Any) -> Checkpoint:
    if isinstance(value, dict) and isinstance(value.get("ema"), Record):
        tensors, settings = edm_pickle.network(value["ema"])
        return Checkpoint("torch", None, _state_dict(tensors), settings=settings)
    return _from_torch(value)


def _from_tensorflow(state: Mapping[str, Any]) -> Checkpoint:
    return Checkpoint("tensorflow", state["raw"], state["averaged"], _count(state["step"]))


def _from_torch(value: Any) -> Checkpoint:
    """The checkpoint in one of the layouts that the PyTorch codes of score models save."""
    if isinstance(value, list) and value and isinstance(value[0], dict):  # NCSNv2
        averaged = value[4] if len(value) > 4 and isinstance(value[4], dict) else None
        step = value[3] if len(value) > 3 else 0
        raw, averaged = _state_dict(value[0]), averaged and _state_dict(averaged)
        if averaged is not None and "sigmas" in raw:
            averaged.setdefault("sigmas", raw["sigmas"])
        return Checkpoint("torch", raw, averaged, _count(step))
    if not isinstance(value, dict):
        raise ValueError(f"a {type(value).__name__} where a checkpoint holds a mapping.")
    if isinstance(value.get("state_dict"), dict):  # BiO-Net
        return Checkpoint("torch", _state_dict(value["state_dict"]), None)
    if not isinstance(value.get("model"), dict):
        return Checkpoint("torch", _state_dict(value), None)
    raw, averaged = _state_dict(value["model"]), None
    if "ema" in value:
        averaged = _named_average(raw, value["ema"])
    return Checkpoint("torch", raw, averaged, _count(value.get("step", 0)))


def _named_average(raw: StateDict, entry: Any) -> StateDict:
    """The averaged weights under their names.

    The entry lists them in the order of the parameters, without buffers and without the frozen
    frequencies of the Fourier embedding; these come from the raw weights.
    """
    shadow = entry.get("shadow_params") if isinstance(entry, dict) else None
    if not isinstance(shadow, list):
        raise ValueError("the entry ema has no list shadow_params.")
    names = [name for name in raw if not name.endswith("sigmas")]
    frozen = "all_modules.0.W"
    if frozen in names and len(shadow) < len(names):
        names.remove(frozen)
    if len(names) != len(shadow):
        raise ValueError(f"{len(shadow)} averaged tensors for {len(names)} parameters.")
    averaged = {name: _array(name, value) for name, value in zip(names, shadow, strict=True)}
    misshapen = [name for name in names if averaged[name].shape != raw[name].shape]
    if misshapen:
        first = misshapen[0]
        raise ValueError(
            f"{len(misshapen)} averaged tensors are misshapen, first {first} "
            f"{averaged[first].shape} for {raw[first].shape}."
        )
    return {name: averaged.get(name, array) for name, array in raw.items()}


def _state_dict(value: Mapping[Any, Any]) -> StateDict:
    """Arrays by name, without the prefix `module.`. Raises: ValueError if an entry is no tensor."""
    state: StateDict = {}
    for name, tensor in value.items():
        if not isinstance(name, str):
            raise ValueError(f"a tensor whose name is {str(name)[:40]}, not text.")
        short = name.removeprefix(_PREFIX)
        if short in state:
            raise ValueError(f"two tensors with the name {short[:80]}.")
        state[short] = _array(short, tensor)
    if not state:
        raise ValueError("there are no tensors in it.")
    return state


def _array(name: str, value: Any) -> np.ndarray:
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, Tensor):
        try:
            return value.array()
        except ValueError as error:
            raise ValueError(f"tensor {name[:80]}: {error}") from None
    if isinstance(value, Record):
        return numpy_value(value)
    raise ValueError(f"{name[:80]} is a {type(value).__name__}, not a tensor.")


def _count(step: Any) -> int:
    """The number of updates. Raises: ValueError unless it is a number in [0, 2^31)."""
    if isinstance(step, Tensor | Record):
        step = _array("step", step)
    if isinstance(step, np.ndarray) and step.size == 1:
        step = step.item()
    if not isinstance(step, int | float) or not math.isfinite(step) or not 0 <= step < 2**31:
        raise ValueError(f"its step is {str(step)[:40]}, not a number of updates.")
    return int(step)
