# SPDX-License-Identifier: Apache-2.0
"""Bregman divergences: the type, the named ones, and the algebra that both engines search with.

`divergence` is the type and `domain` the sets that arguments lie in; `named` lists the divergences
of the library, made of the elementwise functions in `generators`; `convex` makes one from any
convex function. `sided` fixes which argument is the point. From there the engines part:
`three_point` writes a divergence as a matrix product with a bound on its rounding (for `scan`),
`cauchy` bounds it part by part of the coordinates (for `index`).
"""

from scorejax.bregman.divergences.divergence import SIDES, Divergence
from scorejax.bregman.divergences.named import (
    DIVERGENCES,
    beta,
    exponential,
    generalized_kl,
    get,
    itakura_saito,
    logistic,
    mahalanobis,
    simplex_kl,
    squared_euclidean,
)

__all__ = [
    "DIVERGENCES",
    "SIDES",
    "Divergence",
    "beta",
    "exponential",
    "generalized_kl",
    "get",
    "itakura_saito",
    "logistic",
    "mahalanobis",
    "simplex_kl",
    "squared_euclidean",
]
