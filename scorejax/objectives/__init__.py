# SPDX-License-Identifier: Apache-2.0
"""Losses as functions that return one number per example. A name is imported at its first use."""

import importlib

_HOME = {
    "ExampleLoss": "training_loss", "make_loss_fn": "training_loss",
    "DIRECTIONS": "directions", "gaussian": "directions", "rademacher": "directions",
    "sphere": "directions",
    "difference_error": "difference_step", "suggest_eps": "difference_step",
    "suggest_score_eps": "difference_step",
    "directional_derivative": "finite_difference", "fd_denoising": "finite_difference",
    "fd_gradient_penalty": "finite_difference", "fd_sliced": "finite_difference",
    "fd_sliced_vr": "finite_difference", "repeat_rows": "finite_difference",
    "ENERGY_OBJECTIVES": "score_matching", "SCORE_OBJECTIVES": "score_matching",
    "annealed": "score_matching", "expected_multiple": "score_matching",
    "exact_score_matching": "sliced", "sliced_score_matching": "sliced",
    "sliced_score_matching_vr": "sliced",
}  # fmt: skip

__all__ = [*_HOME]


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
