# SPDX-License-Identifier: Apache-2.0
"""The score-matching objectives against losses of the authors' implementation, value and gradient.

Everything is in double precision. The files' tolerances are those of single precision; here value
and gradient are held to 1e-8 of their largest entry, and to 1e-6 at eps 0.001, where the second
difference is 1e-6 of the energy and the last digits of both sides are rounding (1e-16 / 1e-6,
some hundred times).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorejax.energies import score_of
from scorejax.objectives import denoising, exact_score_matching, sliced
from scorejax.objectives import finite_difference as fd
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
    return v / np.sqrt(np.sum(v**2, axis=tuple(range(2, v.ndim)), keepdims=True))


def normal(v):
    """The normal draws v (n, b, *d) as directions of mean square length 1."""
    return v / np.sqrt(v[0, 0].size)


def dsm(energy, x, displacement, target_sigma):
    score = score_of(energy)(x + displacement)
    return denoising.half_sum((score + displacement / target_sigma**2) ** 2)


# (energy, x, ...) -> (b,). Two directions always; where the published loss has one, it is twice the
# same, so that a program is compiled once.
OBJECTIVES = {
    "sm": lambda e, x: exact_score_matching(e, RNG, x),
    "ssm": lambda e, x, u: sliced.sliced_along(e, u, x),
    "ssm_vr": lambda e, x, u: sliced.score_sliced_vr_along(score_of(e), u, x),
    "fd_ssm": lambda e, x, u, eps: fd.fd_sliced_along(e, u, x, eps=eps),
    "fd_ssm_vr": lambda e, x, u, eps: fd.fd_sliced_vr_along(score_of(e), u, x, eps=eps),
    "dsm": dsm,
    "fd_dsm": lambda e, x, u, displacement, target_sigma, eps: fd.fd_denoising_along(
        e, u, displacement, x, target_sigma=target_sigma, eps=eps
    ),
}


@functools.cache
def value_and_gradient(objective):
    def loss(params, weight, x, *arguments):
        return jnp.mean(weight * OBJECTIVES[objective](energy_of(params), x, *arguments))

    return jax.jit(jax.value_and_grad(loss))


class Published(NamedTuple):
    """A published loss: the mean of weight times our objective at x and these arguments."""

    objective: str
    arguments: tuple = ()
    weight: float | np.ndarray = 1.0


def published(g, eps):
    """By name in the files; g holds their inputs."""
    once = lambda u: np.stack([u, u])
    v, w = once(g["v"]), once(g["w"])
    pair = np.stack([g["v"], g["w"]])
    noise, levels = SIGMA * g["v"], g["sigmas"] * g["v"]
    per_level = 1 / g["sigmas"][:, 0] ** 2
    return {
        "exact_sm": Published("sm"),
        "ssm_rademacher": Published("ssm", (unit(np.sign(v)),), D),
        "ssm_sphere": Published("ssm", (unit(v),), D),
        "ssm_gaussian": Published("ssm", (normal(v),), D),
        "ebm_ssm": Published("ssm", (normal(v),), D),
        "ssm_2particles": Published("ssm", (unit(pair),)),
        "sse_2particles": Published("ssm", (unit(pair),)),
        "ssmvr_rademacher": Published("ssm_vr", (unit(np.sign(v)),)),
        "ssmvr_gaussian": Published("ssm_vr", (normal(v),)),
        "ssmvr_2particles": Published("ssm_vr", (normal(pair),)),
        "ssevr_2particles": Published("ssm_vr", (normal(pair),)),
        "ebm_ssmvr": Published("ssm_vr", (normal(v),)),
        "fd_ssm": Published("fd_ssm", (unit(v), eps), D),
        "ebm_ssm_fd": Published("fd_ssm", (unit(v), eps)),
        "demo_ssm_fd": Published("fd_ssm", (unit(v), eps), 2.0),
        "fd_ssmvr_scorenet": Published("fd_ssm_vr", (unit(v), eps)),
        "dsm": Published("dsm", (noise, SIGMA), SIGMA**4),
        "mdsm": Published("dsm", (levels, TARGET), 2 * LOSS_COE * per_level),
        # The step of this one has the length eps sqrt(D).
        "fd_dsm": Published("fd_dsm", (unit(w), noise, SIGMA, eps * D**0.5), SIGMA**4 * D / 2),
        "mdsm_fd": Published("fd_dsm", (unit(w), levels, TARGET, eps), LOSS_COE * D * per_level),
        "mdsm_fd_nop": Published(
            "fd_dsm", (unit(w), levels, TARGET, eps), LOSS_COE * D * per_level
        ),
    }


def assert_close(actual, expected, relative):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=relative * np.abs(expected).max())


@pytest.mark.deep
@pytest.mark.parametrize(
    ("file", "relative"), [("f_fd_losses", 1e-8), ("f_fd_losses_smalleps", 1e-6)]
)
def test_energy_objectives_are_the_published_losses(golden, x64, file, relative):
    arrays = golden(file)
    params = [jnp.asarray(arrays[f"params/energy.{layer}"], jnp.float64) for layer in LAYERS]
    inputs = {name: arrays[f"in/{name}"].astype(np.float64) for name in ("x", "v", "w", "sigmas")}
    for name, (objective, arguments, weight) in published(inputs, arrays["cfg/eps"]).items():
        weight = np.broadcast_to(weight, len(inputs["x"]))
        value, gradient = value_and_gradient(objective)(params, weight, inputs["x"], *arguments)
        flat = np.concatenate([np.ravel(leaf) for leaf in gradient])
        assert_close(value, arrays[f"out64/{name}"], relative)
        assert_close(flat, arrays[f"out64/{name}_grad"], relative)
        # The files' tolerance, for single precision, is to be the looser one.
        error = np.abs(flat - arrays[f"out64/{name}_grad"])
        assert np.all(error <= arrays[f"tol/{name}_grad"]), name


def channels_last(x):
    return np.moveaxis(x, 1, -1).astype(np.float64)


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
    "anneal_ssmvr": (normal, sliced.score_sliced_vr_along),
    "anneal_fdssmvr_v2": (unit, functools.partial(fd.fd_sliced_vr_along, eps=0.1)),
}


@pytest.mark.parametrize("name", ANNEALED)
def test_annealed_objectives_are_the_published_losses(golden, x64, name):
    arrays = golden("f_anneal_losses")
    layers = ("c1.weight", "c1.bias", "c2.weight", "c2.bias")
    params = [jnp.asarray(arrays[f"params/net.{layer}"], jnp.float64) for layer in layers]
    direction, along = ANNEALED[name]
    x, z, v = (channels_last(arrays[f"in/{key}"]) for key in ("x", "z", "v"))
    x, z, u = (jnp.asarray(array) for array in (x, z, direction(v[None])))
    sigma = jnp.asarray(arrays["in/sigmas"], jnp.float64)[arrays["in/labels"]]

    @jax.jit
    @jax.value_and_grad
    def value_and_gradient(params):
        objective = lambda score, rng, y: along(score, u, y)
        loss = annealed_at(objective, network_of(params), RNG, z, x, sigma=sigma)
        return jnp.mean(loss)

    value, gradient = value_and_gradient(params)
    assert_close(value, arrays[f"out64/{name}"], 1e-8)
    flat = np.concatenate([np.ravel(leaf) for leaf in gradient])
    assert_close(flat, arrays[f"out64/{name}_grad"], 1e-8)
