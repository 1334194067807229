# SPDX-License-Identifier: Apache-2.0
"""Finite-difference score matching: models whose score is matched from values alone.

`config.model` names what is trained, each with a module of its own: a flow, whose exact likelihood
judges what score matching learned; a deep energy model; a deep kernel exponential family of tables;
NCSN; autoencoders with an implicit encoder. The objectives are those of
`scorejax.objectives.score_matching`, any of them by `config.objective`.

Source: Pang et al. 2020, arXiv:2007.03317, Section 5.
"""

from types import ModuleType

from ml_collections import ConfigDict

from scorejax.choices import choose, require_keys
from scorejax.score_model import ScoreModel
from scorejax.systems.fd_score_matching import autoencoder, deep_energy, flow, kernel, ncsn
from scorejax.systems.fd_score_matching.autoencoder import Autoencoder
from scorejax.systems.fd_score_matching.deep_energy import DeepEnergy
from scorejax.systems.fd_score_matching.flow import Flow
from scorejax.systems.fd_score_matching.kernel import KernelFamily
from scorejax.train.system import System

EXPERIMENTS = {
    "nice": flow,
    "energy_resnet": deep_energy,
    "kernel_exponential_family": kernel,
    "ncsn": ncsn,
    "ncsnv2": ncsn,
    "implicit_vae": autoencoder,
    "implicit_wae": autoencoder,
}


def experiment(config: ConfigDict) -> ModuleType:
    """The module of a config's model. Raises: ValueError if it is unknown or lacks a key."""
    require_keys(config, ("model",))
    module = choose("model", config.model, EXPERIMENTS)
    require_keys(config, module.KEYS)
    return module


def build(config: ConfigDict) -> System:
    """The training of a config. Raises: ValueError, or FileNotFoundError without its data."""
    return experiment(config).build(config)


def make_model(config: ConfigDict) -> ScoreModel | Flow | DeepEnergy | KernelFamily | Autoencoder:
    """The model of a config. Raises: ValueError for an impossible value."""
    return experiment(config).make_model(config)
