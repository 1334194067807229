# SPDX-License-Identifier: Apache-2.0
"""What no objective can be taken of is refused in one clear line, by hand and before a config."""

import math

import jax
import jax.numpy as jnp
import jaxtyping
import pytest

from scorejax.density import kernel_exponential_family as family
from scorejax.objectives import fd_gradient_penalty, fd_sliced, sliced, suggest_eps
from scorejax.objectives import finite_difference as fd
from scorejax.objectives.denoising import energy_denoising
from tests.smooth_energies import quadratic

RNG = jax.random.key(0)


def vector_energy(x):
    return x**2


BAD = {
    "zero": (lambda e, x: fd_sliced(e, RNG, x, eps=0.0), "eps needs to be positive"),
    "negative": (lambda e, x: fd_sliced(e, RNG, x, eps=-0.1), "eps needs to be positive"),
    "nan": (lambda e, x: fd_sliced(e, RNG, x, eps=math.nan), "eps needs to be positive"),
    "below_resolution": (
        lambda e, x: fd_sliced(e, RNG, x, eps=1e-8),
        "eps needs more than .* the rounding of 5 coordinates",
    ),
    "below_resolution_in_jit": (
        lambda e, x: jax.jit(lambda x: fd_sliced(e, RNG, x, eps=1e-8))(x),
        "eps needs more than",
    ),
    "one_of_many": (
        lambda e, x: fd_sliced(e, RNG, x, eps=jnp.linspace(0.0, 1.0, 7)),
        "eps needs to be positive",
    ),
    "zero_direction": (
        lambda e, x: fd.directional_derivative(e, x, jnp.zeros_like(x), order=1, eps=0.1),
        "directions need lengths",
    ),
    "zero_direction_sliced": (
        lambda e, x: sliced.sliced_along(e, jnp.zeros((1, *x.shape)), x),
        "directions need lengths",
    ),
    "other_shape": (
        lambda e, x: fd.fd_sliced_along(e, jnp.ones((1, 7, 2)), x, eps=0.1),
        "directions need the shape of x",
    ),
    "integers_along": (
        lambda e, x: sliced.sliced_along(e, jnp.ones((1, 7, 5)), jnp.ones((7, 5), jnp.int32)),
        "needs floating-point data; got int32",
    ),
    "integers_denoising": (
        lambda e, x: energy_denoising(e, RNG, jnp.ones((7, 5), jnp.int32), sigma=0.1),
        "needs floating-point data; got int32",
    ),
    "integers": (
        lambda e, x: fd_sliced(e, RNG, jnp.ones((7, 5), jnp.int32), eps=0.1),
        "needs floating-point data; got int32",
    ),
    "vector": (
        lambda e, x: fd_sliced(vector_energy, RNG, x, eps=0.1),
        "energy needs one number per example",
    ),
    "vector_exact": (
        lambda e, x: sliced.sliced_score_matching(vector_energy, RNG, x),
        "energy needs one number per example",
    ),
    "vector_penalty": (
        lambda e, x: fd_gradient_penalty(vector_energy, RNG, x, eps=0.1),
        "energy needs one number per example",
    ),
    "vector_denoising": (
        lambda e, x: energy_denoising(vector_energy, RNG, x, sigma=0.1),
        "energy needs one number per example",
    ),
    "zero_of_a_family": (
        lambda e, x: family.fd_sliced(lambda x: x, x, jnp.ones_like(x), eps=0.0),
        "eps needs to be positive",
    ),
    "zero_direction_of_a_family": (
        lambda e, x: family.fd_denoising(lambda x: x, x, x, 0 * x, sigma=1.0, eps=0.1),
        "directions need lengths",
    ),
    "half": (
        lambda e, x: fd_sliced(lambda x: e(x).astype(jnp.bfloat16), RNG, x, eps=0.1),
        "energy needs float32 or better",
    ),
    "score_shape": (
        lambda e, x: fd.fd_sliced_vr(e, RNG, x, eps=0.1),
        "score needs the shape of x",
    ),
    "no_directions": (
        lambda e, x: fd_sliced(e, RNG, x, eps=0.1, num_directions=0),
        "num_directions needs at least 1",
    ),
    "order": (
        lambda e, x: fd.directional_derivative(e, x, x, order=0, eps=0.1),
        "needs order >= 1",
    ),
    "scale": (lambda e, x: suggest_eps(5, scale=0.0), "suggest_eps needs"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_clear_line(monkeypatch, name):
    # As outside the tests, where nothing checks the types of arguments.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    energy, x = quadratic()
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message) as caught:
        call(energy, jnp.asarray(x, jnp.float32))
    assert "\n" not in str(caught.value)
