# SPDX-License-Identifier: Apache-2.0
"""Reads networks from the pickles of EDM: tensors and settings, without executing their code.

Such a pickle holds, for each object, the source code of its class, to be executed on loading. Here
it stays text: an object is a `Record` whose one argument holds the class name and the state.
"""

from typing import Any

from scorejax.interop.readers.inert_pickle import Record
from scorejax.interop.readers.torch_save import Tensor

_PERSISTENT = "torch_utils.persistence._reconstruct_persistent_obj"
RECORDS = (_PERSISTENT, "torch.nn.modules.container.", "dnnlib.util.EasyDict")
"""Prefixes of the names that become records."""
MAX_DEPTH = 16


def network(record: Record) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """Tensors by name, in the order of the official state dictionary, and settings by class.

    For a preconditioned network these are the inner network's, without the prefix `model.`.
    Raises: ValueError with one line if the record is no network.
    """
    tensors: dict[str, Tensor] = {}
    settings: dict[str, dict[str, Any]] = {}
    seen: set[int] = set()
    pending = [("", record, 0)]
    while pending:
        prefix, module, depth = pending.pop()
        state = _state(module)
        # Each module once: a module that contains itself would never end.
        if id(module) in seen or depth > MAX_DEPTH:
            raise ValueError(f"the module {prefix[:80]} is there twice, or too deep.")
        seen.add(id(module))
        if depth < 2 and isinstance(state.get("_init_kwargs"), dict):
            settings[_class_name(module)] = dict(state["_init_kwargs"])
        for kind in ("_parameters", "_buffers"):
            entries = _entries(state.get(kind, {}), kind)
            tensors |= {f"{prefix}{k}": entries[k] for k in entries if entries[k] is not None}
        below = _entries(state.get("_modules", {}), "_modules")
        pending += [(f"{prefix}{name}.", below[name], depth + 1) for name in reversed(below)]
    if tensors and all(name.startswith("model.") for name in tensors):
        tensors = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    return tensors, settings


def _class_name(module: Record) -> str:
    return str(module.args[0].get("class_name", "")) if module.name == _PERSISTENT else module.name


def _state(module: Any) -> dict[str, Any]:
    """The attributes of a module."""
    if not isinstance(module, Record):
        raise ValueError(f"a {type(module).__name__} where a module should be.")
    if module.name != _PERSISTENT:
        state = module.state
    elif len(module.args) == 1 and isinstance(module.args[0], dict):
        state = module.args[0].get("state")
    else:
        state = None
    if not isinstance(state, dict):
        raise ValueError(f"the module {module.name[:80]} has no state.")
    return state


def _entries(value: Any, kind: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"a module whose {kind} are no mapping.")
    return value
