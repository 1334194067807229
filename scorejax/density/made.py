# SPDX-License-Identifier: Apache-2.0
"""Density by MADE: a mixture of Gaussians for each coordinate, given the coordinates before it.

log p(x) is the sum of log p(x_d | x_<d), whose mixtures one masked network computes in one pass.

Source: Germain et al. 2015, arXiv:1502.03509; with mixtures, Uria et al. 2013, arXiv:1306.0186.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PRNGKeyArray

from scorejax.density.fitting import TRAINING, Training
from scorejax.density.normalised import NormalisedDensity, fit_network, masked_units
from scorejax.density.rows import Rows, checked_rows
from scorejax.models.autoregressive import AutoregressiveModel
from scorejax.models.masked_ar import MaskedTrunk
from scorejax.models.univariate import MixtureHead
from scorejax.random import Rng, normal, row_keys, split
from scorejax.samplers.autoregressive import ancestral
from scorejax.typing import PyTree

MIN_SCALE = 0.0067
"""Smallest standard deviation of a component, exp(-5), in units of the rows."""


def fit(
    rng: PRNGKeyArray,
    x: Rows,
    *,
    num_components: int = 10,
    hidden: int | None = None,
    num_hidden: int = 2,
    min_scale: float = MIN_SCALE,
    training: Training = TRAINING,
) -> NormalisedDensity:
    """Fits the mixtures to rows of about mean 0 and variance 1; `hidden` is as in `masked_units`.

    Raises: ValueError for rows as `rows.checked_rows`, or an option out of range.
    """
    x = checked_rows(x)
    hidden = masked_units(hidden, x.shape[1])
    head = MixtureHead(num_components, min_scale=min_scale)
    # The head maps contexts linearly: as many features as it has numbers lose nothing.
    network = AutoregressiveModel(MaskedTrunk(hidden, num_hidden, 3 * num_components), head)
    return fit_network(rng, network, x, training, _negative_log_prob)


def log_prob(params: NormalisedDensity, x: Float[Array, "b d"]) -> Float[Array, "b"]:
    """Log-density of each row, in nats."""
    with jax.default_matmul_precision("highest"):
        return params.network.apply(params.variables, x, method=_log_prob)


def sample(rng: Rng, params: NormalisedDensity, num: int) -> Float[Array, "num d"]:
    """Draws rows; row i is a function of key i, by default of `rng` and i alone."""
    apply, shape = functools.partial(params.network.apply, params.variables), (num, params.dim)

    def draw(rngs: Key[Array, "b"], c: Float[Array, "b h"]) -> Float[Array, "b"]:
        mixture = apply(c, method=lambda model, c: model.univariate.components(c))
        which_rngs, noise_rngs = split(rngs)
        which = jax.vmap(jax.random.categorical)(which_rngs, mixture.log_weights)[:, None]
        of_component = lambda values: jnp.take_along_axis(values, which, axis=1)[:, 0]
        noise = normal(noise_rngs, c.shape[:1], c.dtype)
        return of_component(mixture.means) + of_component(mixture.scales) * noise

    return ancestral(
        rng if rng.ndim else row_keys(rng, num),
        draw,
        functools.partial(apply, method="advance"),
        apply(jnp.zeros(shape), method="empty"),
        shape,
        order=params.network.apply(params.variables, params.dim, method="dimension_order"),
        calls_per_draw=1,
    ).x


def _log_prob(model: AutoregressiveModel, x: Float[Array, "b d"]) -> Float[Array, "b"]:
    return jnp.sum(model.log_prob(x, model.contexts(x)), axis=1)


def _negative_log_prob(
    network: AutoregressiveModel, variables: PyTree, rng: PRNGKeyArray, x: Float[Array, "b d"]
) -> Float[Array, "b"]:
    del rng
    return -network.apply(variables, x, method=_log_prob)
