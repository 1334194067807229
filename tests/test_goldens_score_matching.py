# SPDX-License-Identifier: Apache-2.0
"""The score-matching objectives against losses of the authors' implementation, value and gradient.

Everything is in double precision. The files' tolerances are those of single precision; here value
and gradient are held to 1e-8 of their largest entry, and to 1e-6 at eps 0.001, where the second
difference is 1e-6 of the energy and the last digits of both sides are rounding (1e-16 / 1e-6,
some hundred times). The factor beside a name is what the published code multiplies ours with.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorejax.objectives import denoising, sliced
from scorejax.objectives import exact_score_matching as exact
from scorejax.objectives import finite_difference as fd
from scorejax.objectives.directions import score_of
from scorejax.objectives.score_matching import annealed_at

RNG = jax.random.key(0)
D, SIGMA, TARGET, LOSS_COE = 8, 0.3, 0.1, 0.5
LAYERS = ("l1.weight", "l1.bias", "l2.weight", "l2.bias", "l3.weight", "l3.bias")


def energy_of(params):
    """linear(tanh(linear(softplus(linear x)))) + 0.15 |x|^2."""
    a, b, c, d, e, f = params

    def energy(x):
        h = jnp.tanh(jax.nn.softplus(x @ a.T + b[None]) @ c.T + d[None])
        return (h @ e.T + f[None])[:, 0] + 0.15 * jnp.sum(x**2, axis=1)

    return energy


def unit(v):
    """Along the directions of v (n, b, *d), of length 1 over all coordinates."""
    return v / jnp.sqrt(jnp.sum(v**2, axis=tuple(range(2, v.ndim)), keepdims=True))


def normal(v):
    """The normal draws v (n, b, *d) as directions of mean square length 1."""
    return v / np.sqrt(v[0, 0].size)


def vr(energy, u, x):
    return sliced.score_sliced_vr_along(score_of(energy), u, x)


def dsm(energy, displacement, x, sigma):
    score = score_of(energy)(x + displacement)
    return denoising.half_sum((score + displacement / sigma**2) ** 2)


def fd_dsm(energy, displacement, g, target, eps):
    u = unit(g["w"][None])
    return fd.fd_denoising_along(energy, u, displacement, g["x"], target_sigma=target, eps=eps)


def fd_ssm(energy, g, eps):
    return fd.fd_sliced_along(energy, unit(g["v"][None]), g["x"], eps=eps)


def pair(g):
    return jnp.stack([g["v"], g["w"]])


# (energy, inputs, eps) -> (b,).
LOSSES = {
    "exact_sm": lambda e, g, eps: exact(e, RNG, g["x"]),
    "ssm_rademacher": lambda e, g, eps: (
        D * sliced.sliced_along(e, unit(jnp.sign(g["v"])[None]), g["x"])
    ),
    "ssm_sphere": lambda e, g, eps: D * sliced.sliced_along(e, unit(g["v"][None]), g["x"]),
    "ssm_gaussian": lambda e, g, eps: D * sliced.sliced_along(e, normal(g["v"][None]), g["x"]),
    "ssm_2particles": lambda e, g, eps: sliced.sliced_along(e, unit(pair(g)), g["x"]),
    "ssmvr_rademacher": lambda e, g, eps: vr(e, unit(jnp.sign(g["v"])[None]), g["x"]),
    "ssmvr_2particles": lambda e, g, eps: vr(e, normal(pair(g)), g["x"]),
    "ebm_ssmvr": lambda e, g, eps: vr(e, normal(g["v"][None]), g["x"]),
    "fd_ssm": lambda e, g, eps: D * fd_ssm(e, g, eps),
    "ebm_ssm_fd": fd_ssm,
    "demo_ssm_fd": lambda e, g, eps: 2 * fd_ssm(e, g, eps),
    "fd_ssmvr_scorenet": lambda e, g, eps: fd.fd_sliced_vr_along(
        score_of(e), unit(g["v"][None]), g["x"], eps=eps
    ),
    "dsm": lambda e, g, eps: SIGMA**4 * dsm(e, SIGMA * g["v"], g["x"], SIGMA),
    # Its step has the length eps sqrt(D).
    "fd_dsm": lambda e, g, eps: (
        SIGMA**4 * (D / 2) * fd_dsm(e, SIGMA * g["v"], g, SIGMA, eps * np.sqrt(D))
    ),
    "mdsm": lambda e, g, eps: (
        2 * LOSS_COE / g["sigmas"][:, 0] ** 2 * dsm(e, g["sigmas"] * g["v"], g["x"], TARGET)
    ),
    "mdsm_fd": lambda e, g, eps: (
        LOSS_COE * D / g["sigmas"][:, 0] ** 2 * fd_dsm(e, g["sigmas"] * g["v"], g, TARGET, eps)
    ),
}


@functools.cache
def value_and_gradient(name):
    loss = lambda params, inputs, eps: jnp.mean(LOSSES[name](energy_of(params), inputs, eps))
    return jax.jit(jax.value_and_grad(loss))


def assert_close(actual, expected, relative):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=relative * np.abs(expected).max())


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    ("file", "relative"), [("f_fd_losses", 1e-8), ("f_fd_losses_smalleps", 1e-6)]
)
def test_energy_objectives_are_the_published_losses(golden, x64, file, relative, name):
    arrays = golden(file)
    params = [jnp.asarray(arrays[f"params/energy.{layer}"], jnp.float64) for layer in LAYERS]
    inputs = {
        key: jnp.asarray(arrays[f"in/{key}"], jnp.float64) for key in ("x", "v", "w", "sigmas")
    }
    value, gradient = value_and_gradient(name)(params, inputs, arrays["cfg/eps"])
    assert_close(value, arrays[f"out64/{name}"], relative)
    flat = np.concatenate([np.ravel(leaf) for leaf in gradient])
    assert_close(flat, arrays[f"out64/{name}_grad"], relative)
    # The tolerance in the file is for single precision, and must not be the stricter one.
    assert np.all(np.abs(flat - arrays[f"out64/{name}_grad"]) <= arrays[f"tol/{name}_grad"])


def channels_last(x):
    return jnp.asarray(np.moveaxis(x, 1, -1), jnp.float64)


def network_of(params):
    """Two 3x3 convolutions, channels last; kernels are (out, in, height, width)."""
    first, first_bias, second, second_bias = params
    conv = functools.partial(
        jax.lax.conv_general_dilated,
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "OIHW", "NHWC"),
    )

    def network(x, sigma):
        h = jnp.tanh(conv(x, first) + first_bias[None, None, None])
        return (conv(h, second) + second_bias[None, None, None]) / (
            0.1 + sigma[:, None, None, None]
        )

    return network


ANNEALED = {
    "anneal_ssmvr": lambda s, rng, x, v: sliced.score_sliced_vr_along(s, normal(v[None]), x),
    "anneal_fdssmvr_v2": lambda s, rng, x, v: fd.fd_sliced_vr_along(s, unit(v[None]), x, eps=0.1),
}


@pytest.mark.parametrize("name", ANNEALED)
def test_annealed_objectives_are_the_published_losses(golden, x64, name):
    arrays = golden("f_anneal_losses")
    layers = ("c1.weight", "c1.bias", "c2.weight", "c2.bias")
    params = [jnp.asarray(arrays[f"params/net.{layer}"], jnp.float64) for layer in layers]
    x, z, v = (channels_last(arrays[f"in/{key}"]) for key in ("x", "z", "v"))
    sigma = jnp.asarray(arrays["in/sigmas"], jnp.float64)[arrays["in/labels"]]

    @jax.jit
    @jax.value_and_grad
    def value_and_gradient(params):
        objective = lambda s, rng, y: ANNEALED[name](s, rng, y, v)
        loss = annealed_at(objective, network_of(params), RNG, z, x, sigma=sigma)
        return jnp.mean(loss)

    value, gradient = value_and_gradient(params)
    assert_close(value, arrays[f"out64/{name}"], 1e-8)
    assert_close(
        np.concatenate([np.ravel(leaf) for leaf in gradient]), arrays[f"out64/{name}_grad"], 1e-8
    )
