# SPDX-License-Identifier: Apache-2.0
"""Systems: one thin module per paper, each of which maps a config to a `System`.

A module of this package is a system if it has `build(config) -> System`. What a system can do
beyond training (draw samples, evaluate densities) are further functions of its module, which the
commands find with `capability`.
"""

import importlib
import pkgutil
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import PRNGKeyArray
from ml_collections import ConfigDict

from scorejax.choices import unknown
from scorejax.data.source import BatchSource
from scorejax.report import Evaluation
from scorejax.train.state import TrainState
from scorejax.typing import LossFn, Params, PyTree, Shape

__all__ = ["Evaluation", "System", "capability", "known", "load", "make_init"]


class System(NamedTuple):
    """All that training needs to know of a paper."""

    init: Callable[[PRNGKeyArray], tuple[Params, PyTree]]
    """rng -> (params, model_state)."""
    loss: LossFn
    tx: optax.GradientTransformation
    source: BatchSource
    evaluate: Callable[[PRNGKeyArray, TrainState], Evaluation]


def make_init(model: nn.Module, *shapes: Shape) -> Callable[[PRNGKeyArray], tuple[Params, PyTree]]:
    """`System.init` of a network of arrays (b, *shape), such as images and then labels of shape ().

    Raises: as the network, for what only its layers can know.
    """

    def init(rng: PRNGKeyArray) -> tuple[Params, PyTree]:
        variables = dict(model.init(rng, *(jnp.ones((1, *shape)) for shape in shapes)))
        return variables.pop("params"), variables

    jax.eval_shape(lambda: init(jax.random.key(0)))
    return init


def known() -> list[str]:
    """Names of the systems, for `config.system`."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(config: ConfigDict) -> System:
    """Builds the system that `config.system` names.

    Raises: ValueError, one line, for an unknown name or an impossible value in the config.
    """
    return _module(config).build(config)


def capability(config: ConfigDict, name: str) -> Callable:
    """The function `name` of the system's module, such as "sampler" or "likelihood".

    Raises: ValueError if the system has no such function.
    """
    module = _module(config)
    if not hasattr(module, name):
        raise ValueError(f"the system {config.system!r} has no {name}")
    return getattr(module, name)


def _module(config: ConfigDict) -> ModuleType:
    name = config.get("system")
    if name not in known():
        raise unknown("system", name, known())
    return importlib.import_module(f"{__name__}.{name}")
