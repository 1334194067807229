# SPDX-License-Identifier: Apache-2.0
"""The samplers of univariate conditional scores, by name."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import jax.numpy as jnp

from scorejax.samplers import autoregressive as samplers
from scorejax.score_model.sampling import Draw
from scorejax.systems.ar_csm.objectives import apply
from scorejax.typing import Array, PRNGKeyArray, Variables

if TYPE_CHECKING:
    from scorejax.systems.ar_csm.model import ConditionalModel


def by_inverse_cdf(model: "ConditionalModel") -> Draw:
    """Draws one dimension after another by the inverse of its distribution function."""
    make_draw = lambda variables: samplers.inverse_cdf(model.invert(variables))
    return _ancestral(model, make_draw, model.calls_to_invert)


def by_langevin(model: "ConditionalModel", num_steps: int = 0) -> Draw:
    """Draws one dimension after another by annealed Langevin dynamics."""
    if model.langevin is None:
        raise ValueError("the sampler 'langevin' needs noise levels: objective='denoising'")
    each = num_steps or model.langevin.num_steps
    options = {"step_size": model.langevin.step_size * model.sigma**2, "steps_per_level": each}
    options |= {"sigmas": model.sigmas, "low": model.low, "high": model.high}

    def move(variables: Variables) -> samplers.DrawDimension:
        return samplers.langevin(apply(model.network, variables, "head"), **options)

    samplers.langevin(lambda u, c, sigma: -u, **options)  # Refuses what cannot be.
    return _ancestral(model, move, len(model.sigmas) * each + 1)


def by_jacobi(model: "ConditionalModel") -> Draw:
    """Draws all dimensions at once, again and again until they stay."""
    dim = math.prod(model.data.shape)
    options = {"order": model.network.dimension_order(dim), "to_value": _to_value(model)}

    def draw(variables: Variables, rngs: PRNGKeyArray) -> dict[str, Array]:
        invert, contexts = model.invert(variables), model.bind(variables).contexts
        shape = (len(rngs), *model.data.shape)
        x, sweeps = samplers.jacobi(rngs, invert, contexts, shape, **options)
        return model.to_output(x, sweeps * dim * model.calls_to_invert) | {"sweeps": sweeps}

    return draw


SAMPLERS: dict[str, Callable[..., Draw]] = {
    "inverse_cdf": by_inverse_cdf,
    "langevin": by_langevin,
    "jacobi": by_jacobi,
}


def _ancestral(
    model: "ConditionalModel", make_draw: Callable[[Variables], samplers.DrawDimension], calls: int
) -> Draw:
    order = model.network.dimension_order(math.prod(model.data.shape))
    to_value = _to_value(model)

    def draw(variables: Variables, rngs: PRNGKeyArray) -> dict[str, Array]:
        one, shape = make_draw(variables), (len(rngs), *model.data.shape)
        cache = apply(model.network, variables, "empty")(jnp.zeros(shape))
        x, nfe = samplers.ancestral(
            rngs,
            lambda keys, c: to_value(one(keys, c)),
            apply(model.network, variables, "advance"),
            cache,
            shape,
            order=order,
            calls_per_draw=calls,
        )
        return model.to_output(x, jnp.full(len(rngs), nfe))

    return draw


def _to_value(model: "ConditionalModel") -> Callable[[Array], Array]:
    """Rounds to grey levels where contexts are of grey levels."""
    return (lambda u: u) if model.levels is None else model.levels.nearest
