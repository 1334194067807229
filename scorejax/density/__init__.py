# SPDX-License-Identifier: Apache-2.0
"""Densities of vectors behind one face, and densities learned without their normaliser.

Modules of `DENSITIES` have `fit(rng, x, **options) -> params`, `log_prob(params, x) -> nats` and
`sample(rng, params, num)`, but for `energy`, whose log_prob lacks a constant and which has no
samples. `random_distillation` tells how familiar rows are. Others bound normalisers; `hypothesis`
tests scores.
"""

import importlib
from types import ModuleType

from scorejax.choices import require_known

DENSITIES = (
    "gaussian", "gaussian_mixture", "kernel_density", "made", "maf", "realnvp", "score_flow",
    "energy",
)  # fmt: skip


def get_density(name: str) -> ModuleType:
    """The module of a density. Raises: ValueError for an unknown name."""
    require_known("density", name, DENSITIES)
    return importlib.import_module(f"scorejax.density.{name}")
