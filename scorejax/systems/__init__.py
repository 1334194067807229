# SPDX-License-Identifier: Apache-2.0
"""Systems: one thin module per paper, which binds a config to a model and its training.

A module of this package is a system. It has `build(config) -> System`, which training needs, and
`make_model(config)`, which reads no data sets (a table that comes with scikit-learn apart) and
returns an object with capabilities of `scorejax.capabilities`.
"""

import importlib
import pkgutil
import types
import typing
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from scorejax.capabilities import cannot
from scorejax.choices import unknown
from scorejax.report import Evaluation
from scorejax.train.initial import make_init
from scorejax.train.system import System

__all__ = ["Evaluation", "System", "able", "known", "load", "load_model", "make_init", "require"]


def known() -> list[str]:
    """Names of the systems, for `config.system`."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(config: ConfigDict) -> System:
    """Builds the system that `config.system` names.

    Raises: ValueError, one line, for an unknown name or an impossible value in the config;
    FileNotFoundError without its data.
    """
    return _module(config).build(config)


def load_model(config: ConfigDict) -> Any:
    """The model that a config describes; reads no data set.

    Raises: ValueError, one line, for an unknown name or an impossible value in the config.
    """
    return _module(config).make_model(config)


def require(config: ConfigDict, capability: type) -> Any:
    """The model that a config describes, which has a capability of `scorejax.capabilities`.

    Raises: ValueError naming the systems that have it if this one has not, and as `load_model`.
    """
    model = load_model(config)
    if not isinstance(model, capability):
        model_name = f", model {config.model!r}," if "model" in config else ""
        name = f"the system {config.system!r}{model_name}"
        raise cannot(name, capability, able(capability), model)
    return model


def able(capability: type) -> list[str]:
    """Names of the systems whose models have a capability, at least for some configs."""
    return [name for name in known() if _offers(name, capability)]


def _offers(name: str, capability: type) -> bool:
    make_model = importlib.import_module(f"{__name__}.{name}").make_model
    returned = typing.get_type_hints(make_model)["return"]
    kinds = returned.__args__ if isinstance(returned, types.UnionType) else (returned,)
    return any(issubclass(kind, capability) for kind in kinds)


def _module(config: ConfigDict) -> ModuleType:
    name = config.get("system")
    if name not in known():
        raise unknown("system", name, known())
    return importlib.import_module(f"{__name__}.{name}")
