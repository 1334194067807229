# SPDX-License-Identifier: Apache-2.0
"""scorejax: score-based generative modelling and density methods in JAX.

The names below are what most programs need; they are imported when first used, so that importing
the package is quick and touches no device. Everything else is in the modules.
"""

import importlib

__version__ = "0.1.0.dev0"

_HOME = {
    "VPSDE": "scorejax.sdes",
    "SubVPSDE": "scorejax.sdes",
    "VESDE": "scorejax.sdes",
    "reverse_drift": "scorejax.sdes",
    "probability_flow": "scorejax.sdes",
    "denoising_score_matching": "scorejax.objectives.denoising",
    "predictor_corrector": "scorejax.samplers.predictor_corrector",
    "probability_flow_ode": "scorejax.samplers.probability_flow",
    "log_prob": "scorejax.likelihood",
    "bits_per_dim": "scorejax.likelihood",
    "inpaint": "scorejax.inverse",
    "colorize": "scorejax.inverse",
    "NCSNpp": "scorejax.models.ncsnpp",
    "load_torch": "scorejax.interop",
}

__all__ = [*_HOME]


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'scorejax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
