# SPDX-License-Identifier: Apache-2.0
"""Densities: those fitted to rows, by name, normalisers of energies, and tests on scores."""

import importlib
from types import ModuleType

from scorejax.choices import require_known

DENSITIES = ("gaussian", "gaussian_mixture", "made", "maf", "realnvp", "score_flow")
"""Modules with fit(rng, x (n, d), **options) -> params and log_prob(params, x (b, d)) -> (b,)."""


def get_density(name: str) -> ModuleType:
    """The module of a density. Raises: ValueError for an unknown name."""
    require_known("density", name, DENSITIES)
    return importlib.import_module(f"scorejax.density.{name}")
