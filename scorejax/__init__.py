# SPDX-License-Identifier: Apache-2.0
"""scorejax: score-based generative modelling and density methods in JAX.

The package exports the names that most programs need. Each is imported on first use, so importing
the package is quick and touches no device. Everything else lives in the modules.
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
    "encode": "scorejax.samplers.probability_flow",
    "decode": "scorejax.samplers.probability_flow",
    "heun": "scorejax.samplers.few_step",
    "dpm_solver_pp": "scorejax.samplers.dpm_solver",
    "sde_dpm_solver_pp": "scorejax.samplers.dpm_solver",
    "log_prob": "scorejax.likelihood",
    "bits_per_dim": "scorejax.likelihood",
    "inpaint": "scorejax.inverse",
    "colorize": "scorejax.inverse",
    "class_guided": "scorejax.guidance",
    "pseudoinverse_guided": "scorejax.guidance",
    "interpolate": "scorejax.latent",
    "NCSNpp": "scorejax.models.ncsnpp",
    "SongUNet": "scorejax.models.songunet",
    "DhariwalUNet": "scorejax.models.dhariwal",
    "load_torch": "scorejax.interop",
    "load_checkpoint": "scorejax.interop",
}

__all__ = [*_HOME]


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'scorejax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
