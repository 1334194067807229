# SPDX-License-Identifier: Apache-2.0
"""Writes files as PyTorch, EDM and safetensors do, opcode by opcode, and so hostile ones too."""

import io
import json
import struct
import zipfile
from typing import Any

import numpy as np


class Opcodes(bytes):
    """Pickle opcodes that leave one value on the stack."""


class Name:
    """A class or function, `module.name`."""

    def __init__(self, name: str):
        self.module, _, self.name = name.rpartition(".")


class Call:
    """What a __reduce__ of (function, args) makes of a pickle."""

    def __init__(self, name: str, *args: Any):
        self.function, self.args = Name(name), args


class Stored:
    """An array in a storage of its own, as PyTorch pickles a tensor."""

    def __init__(self, array: np.ndarray, *, num: int | None = None, shape=None, strides=None):
        self.array = np.array(array, order="C")
        self.num = self.array.size if num is None else num
        self.shape = self.array.shape if shape is None else shape
        plain = tuple(s // self.array.itemsize for s in self.array.strides)
        self.strides = plain if strides is None else strides


KINDS = {"float32": "Float", "float64": "Double", "float16": "Half", "int64": "Long"}


class Writer:
    """Makes a pickle of protocol 2 and remembers the storages that it refers to."""

    def __init__(self, *, embedded: bool = False):
        self.arrays: list[np.ndarray] = []
        self._embedded = embedded

    def pickle(self, value: Any) -> bytes:
        return b"\x80\x02" + self.opcodes(value) + b"."

    def opcodes(self, value: Any) -> bytes:
        if isinstance(value, Opcodes):
            return value
        if isinstance(value, Name):
            return f"c{value.module}\n{value.name}\n".encode()
        if isinstance(value, Call):
            return self.opcodes(value.function) + self.opcodes(value.args) + b"R"
        if isinstance(value, Stored):
            return self._tensor(value)
        if isinstance(value, dict):
            items = [self.opcodes(part) for item in value.items() for part in item]
            return b"}(" + b"".join(items) + b"u"
        if isinstance(value, list | tuple):
            start, end = (b"](", b"e") if isinstance(value, list) else (b"(", b"t")
            return start + b"".join(map(self.opcodes, value)) + end
        return self._literal(value)

    def _literal(self, value: Any) -> bytes:
        if value is None or isinstance(value, bool):
            return {None: b"N", True: b"\x88", False: b"\x89"}[value]
        if isinstance(value, str):
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        if isinstance(value, bytes):
            return b"B" + struct.pack("<I", len(value)) + value
        if isinstance(value, float):
            return b"G" + struct.pack(">d", value)
        return b"\x8a\x0a" + value.to_bytes(10, "little", signed=True)

    def _tensor(self, tensor: Stored) -> bytes:
        key = str(len(self.arrays))
        kind = Name(f"torch.{KINDS[str(tensor.array.dtype)]}Storage")
        self.arrays.append(tensor.array)
        place = Opcodes(self.opcodes(("storage", kind, key, "cpu", tensor.num)) + b"Q")
        if self._embedded:
            identifier = ("storage", kind, "0", "cpu", tensor.num, None)
            inner = Opcodes(Writer().opcodes(identifier) + b"Q")
            data = legacy_file(inner, [tensor.array])
            place = Call("torch.storage._load_from_bytes", data)
        hooks = Call("collections.OrderedDict")
        return self.opcodes(
            Call("torch._utils._rebuild_tensor_v2", place, 0, tensor.shape, tensor.strides, False,
                 hooks)
        )  # fmt: skip


def torch_zip(value: Any, **members: bytes) -> bytes:
    """A file of torch.save; `members` are added."""
    writer, file = Writer(), io.BytesIO()
    pickle = writer.pickle(value)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle)
        archive.writestr("archive/byteorder", "little")
        for number, array in enumerate(writer.arrays):
            archive.writestr(f"archive/data/{number}", array.tobytes())
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


def legacy_file(value: Any, arrays: list[np.ndarray] | None = None) -> bytes:
    """A file of torch.save before PyTorch 1.6."""
    writer = Writer()
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}
    head = [writer.pickle(part) for part in (0x1950A86A20F9469CFC6C, 1001, system, value)]
    arrays = writer.arrays if arrays is None else arrays
    keys = writer.pickle([str(number) for number in range(len(arrays))])
    data = [struct.pack("<q", array.size) + array.tobytes() for array in arrays]
    return b"".join([*head, keys, *data])


def plain_pickle(value: Any) -> bytes:
    """A file of pickle.dump, in which each tensor carries its storage."""
    return Writer(embedded=True).pickle(value)


def persistent_object(class_name: str, state: dict, source: str = "") -> Call:
    """An object of EDM, with the source of its class."""
    meta = {"type": "class", "version": 6, "module_src": source, "class_name": class_name}
    return Call("torch_utils.persistence._reconstruct_persistent_obj", meta | {"state": state})


def module_state(tensors: dict, modules: dict | None = None, **kwargs: Any) -> dict:
    """The attributes of a torch module with these parameters and these settings."""
    return {
        "training": False, "_parameters": tensors, "_buffers": {}, "_modules": modules or {},
        "_non_persistent_buffers_set": Call("builtins.set", []), "_init_kwargs": kwargs,
    }  # fmt: skip


def safetensors(tensors: dict[str, np.ndarray], **header: Any) -> bytes:
    """A file of safetensors; `header` entries are added."""
    kinds, entries, data = {"float32": "F32", "float64": "F64", "int64": "I64"}, {}, b""
    for name, array in tensors.items():
        offsets = [len(data), len(data) + array.nbytes]
        entries[name] = {"dtype": kinds[str(array.dtype)], "shape": array.shape}
        entries[name]["data_offsets"] = offsets
        data += array.tobytes()
    text = json.dumps({"__metadata__": {"format": "pt"}} | entries | header).encode()
    return struct.pack("<Q", len(text)) + text + data


def score_sde_checkpoint(model: dict[str, np.ndarray], shadow: list[np.ndarray], **more) -> dict:
    """What the PyTorch score-SDE code saves."""
    stored = [Stored(array) for array in shadow]
    return {
        "optimizer": {"state": {0: {"step": 3, "exp_avg": Stored(np.zeros(4, "f4"))}},
                      "param_groups": [{"lr": 2e-4, "betas": (0.9, 0.999), "params": [0]}]},
        "model": {f"module.{name}": Stored(array) for name, array in model.items()},
        "ema": {"decay": 0.999, "num_updates": 3, "shadow_params": stored},
        "step": 1234,
    } | more  # fmt: skip


def edm_pickle(
    tensors: dict[str, np.ndarray], settings: dict[str, Any], preconditioner: str = "EDMPrecond"
) -> bytes:
    """A published file of EDM: these tensors of a SongUNet with these settings, preconditioned."""
    within = {f"model.{name}": array for name, array in tensors.items()}
    net = _edm_module(within, preconditioner, model_type="SongUNet")
    song = net.args[0]["state"]["_modules"]["model"].args[0]
    song["class_name"], song["state"]["_init_kwargs"] = "SongUNet", settings
    return plain_pickle({"ema": net, "loss_fn": None})


def _edm_module(tensors: dict, class_name: str = "Module", **settings: Any) -> Call:
    """An object of EDM with these tensors, named `layer.weight`, in modules within modules."""
    own = {name: Stored(array) for name, array in tensors.items() if "." not in name}
    buffers = {name: own.pop(name) for name in ("freqs", "resample_filter") if name in own}
    within = {}
    for name, array in tensors.items():
        if "." in name:
            within.setdefault(name.split(".")[0], {})[name.partition(".")[2]] = array
    modules = {name: _edm_module(below) for name, below in within.items()}
    state = module_state(own, modules, **settings) | {"_buffers": buffers}
    return persistent_object(class_name, state, source="raise SystemExit")
