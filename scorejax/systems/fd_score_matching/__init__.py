# SPDX-License-Identifier: Apache-2.0
"""Finite-difference score matching: models whose score is matched from values alone.

`config.model` names what is trained, each with a module of its own: a flow, whose exact likelihood
judges what score matching learned; a deep energy model; a deep kernel exponential family of tables;
NCSN; autoencoders with an implicit encoder. The objectives are those of
`scorejax.objectives.score_matching`, any of them by `config.objective`.

Source: Pang et al. 2020, arXiv:2007.03317, Section 5.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from scorejax.choices import choose, require_keys
from scorejax.data.view import ImageView
from scorejax.evaluate import progress
from scorejax.score_model import evaluation
from scorejax.systems import System
from scorejax.systems.fd_score_matching import autoencoder, deep_energy, flow, kernel, ncsn

EXPERIMENTS = {
    "nice": flow,
    "energy_resnet": deep_energy,
    "kernel_exponential_family": kernel,
    "ncsn": ncsn,
    "ncsnv2": ncsn,
    "implicit_vae": autoencoder,
    "implicit_wae": autoencoder,
}

UNRANKED = ("samples", "codes")
"""Metrics without a number of their name."""


def experiment(config: ConfigDict) -> ModuleType:
    """The module of what a config trains. Raises: ValueError if it is unknown or lacks a key."""
    require_keys(config, ("model",))
    module = choose("model", config.model, EXPERIMENTS)
    require_keys(config, module.KEYS)
    return module


def build(config: ConfigDict) -> System:
    """Binds a config. Raises: ValueError for impossible values, FileNotFoundError without data."""
    module = experiment(config)
    found = module.metrics(config)
    return System(
        init=module.make_init(config),
        loss=module.make_loss(config),
        tx=module.make_optimizer(config),
        source=module.make_source(config),
        evaluate=evaluation.make_evaluate(found, config.best_metric, unranked=UNRANKED),
    )


def metrics(config: ConfigDict) -> dict[str, progress.Metric]:
    """What the model is judged by, by name."""
    return experiment(config).metrics(config)


def image_view(config: ConfigDict) -> ImageView:
    """The data of a config. Raises: ValueError if it is not images."""
    return _of(config, "image_view")(config)


def sampler(config: ConfigDict, name: str, **options: Any) -> Callable:
    """draw(variables, rngs) -> images.

    Raises: ValueError if the model has no samples of images, or none of a class for a `condition`.
    """
    if options.get("condition") and experiment(config) is not ncsn:
        raise ValueError(f"samples of the model {config.model!r} cannot be guided by a classifier")
    return _of(config, "sampler")(config, name, **options)


def likelihood(config: ConfigDict, *, exact: bool = False) -> Callable:
    """measure(variables, {"image", "rng"}) -> bits_per_dim. Raises: ValueError if there is none."""
    return _of(config, "likelihood")(config, exact=exact)


def _of(config: ConfigDict, name: str) -> Callable:
    module = experiment(config)
    if not hasattr(module, name):
        raise ValueError(f"the model {config.model!r} of {config.system!r} has no {name}")
    return getattr(module, name)
