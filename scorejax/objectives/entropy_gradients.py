# SPDX-License-Identifier: Apache-2.0
"""Gradients of the entropy of samples z = h(noise) whose density q is not known, only drawn from.

Along a reparameterised sample the gradient of E[log q(z)] is that of S(z) . z with the score
S = grad log q held constant: its own dependence on the parameters is zero on average. S may be
learned by score matching, or be estimated from samples of the same density, as here.

Univariate scores s_d = d/dz_d log q(z_d | z_<d) stand in for S, exactly on average, where the
gradient of z_d is a function of z_<=d: the later terms of S_d then have mean zero given it. Of
other z they give another direction, in general in all coordinates but the last.

Both estimators solve Stein's identity sum_j k(z_i, z_j) S_j + grad_{z_j} k(z_i, z_j) = 0, on
average over j, with k(x, y) = exp(-|x - y|^2 / (2 width^2)) and the median distance of two samples
as the width. One adds a ridge, the other leaves out the small eigenvalues.

Source: Li and Turner 2018, arXiv:1705.07107; Shi et al. 2018, arXiv:1806.02925.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from scorejax.energies import Score
from scorejax.numerics import sum_except_batch


def negative_entropy(score: Score, z: Float[Array, "b *d"]) -> Float[Array, "b"]:
    """S(z) . z with S held constant: its gradient is that of E[log q(z)] on average."""
    return sum_except_batch(jax.lax.stop_gradient(score(z)) * z)


def stein_scores(z: Float[Array, "m k"], *, ridge: float = 1e-3) -> Float[Array, "m k"]:
    """Scores at samples z of a density, -(K + ridge I)^-1 sum_j grad_{z_j} k(z_i, z_j).

    Costs O(m^3). Source: arXiv:1705.07107, Eq. 13.
    Raises: ValueError unless there are two samples or more.
    """
    kernel = _kernel(z)
    ridged = kernel.matrix + ridge * jnp.eye(len(z), dtype=z.dtype)
    return jax.scipy.linalg.solve(ridged, kernel.pull, assume_a="pos")


def spectral_scores(
    z: Float[Array, "m k"], at: Float[Array, "n k"] | None = None, *, share: float = 0.99
) -> Float[Array, "n k"]:
    """Scores at the points `at`, at z itself by default, by eigenfunctions of the kernel under q.

    They are of the fewest largest eigenvalues whose sum is `share` of all. Costs O(m^3).
    Source: arXiv:1806.02925, Eqs. 8-14: Nystrom's method, psi_j(x) = sqrt(m) k(x, z) u_j / l_j.
    Raises: ValueError unless there are two samples or more.
    """
    kernel = _kernel(z)
    values, vectors = jnp.linalg.eigh(kernel.matrix)  # ascending
    smaller = jnp.cumsum(values) - values
    kept = values.sum() - smaller - values < share * values.sum()
    weights = jnp.where(kept, 1 / jnp.where(kept, values, 1.0) ** 2, 0.0)
    coefficients = (vectors * weights[None]) @ (vectors.T @ kernel.pull)
    return _gram(z if at is None else at, z, kernel.width) @ coefficients


class _Kernel(NamedTuple):
    matrix: Float[Array, "m m"]
    """k(z_i, z_j)."""
    pull: Float[Array, "m k"]
    """-sum_j grad_{z_j} k(z_i, z_j) = sum_j k(z_i, z_j) (z_j - z_i) / width^2."""
    width: Float[Array, ""]


def _kernel(z: Float[Array, "m k"]) -> _Kernel:
    if len(z) < 2:
        raise ValueError(f"a score from samples needs at least 2 of them; got {len(z)}.")
    pairs = np.triu_indices(len(z), 1)
    width = jnp.median(jnp.sqrt(_squared_distances(z, z)[pairs]))
    width = jnp.where(width > 0, width, 1.0)  # of samples that coincide the score is then 0
    matrix = _gram(z, z, width)
    centred = z - z.mean(axis=0, keepdims=True)
    pull = (matrix @ centred - matrix.sum(axis=1, keepdims=True) * centred) / width**2
    return _Kernel(matrix, pull, width)


def _gram(
    x: Float[Array, "n k"], y: Float[Array, "m k"], width: Float[Array, ""]
) -> Float[Array, "n m"]:
    return jnp.exp(-_squared_distances(x, y) / (2 * width**2))


def _squared_distances(x: Float[Array, "n k"], y: Float[Array, "m k"]) -> Float[Array, "n m"]:
    return jnp.sum((x[:, None] - y[None]) ** 2, axis=-1)
