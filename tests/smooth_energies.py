# SPDX-License-Identifier: Apache-2.0
"""Energies that every difference can be compared on: their derivatives are known by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np


def quadratic(dim=5):
    generator = np.random.default_rng(0)
    matrix, slope = generator.normal(size=(dim, dim)), generator.normal(size=dim)
    precision = matrix @ matrix.T / dim
    energy = lambda x: jnp.sum((x @ precision) * x, axis=-1) / 2 + x @ slope
    return energy, generator.normal(size=(7, dim))


def log_cosh(dim=4, hidden=6):
    """An energy sum_j log cosh(w_j . x + b_j), its data, and l's derivatives along u by hand."""
    weight, bias, x = log_cosh_numbers(dim, hidden)

    def energy(x):
        # In the form that does not overflow, and in the precision of x.
        a = x @ jnp.asarray(weight.T, x.dtype) + jnp.asarray(bias, x.dtype)[None]
        return jnp.sum(jnp.logaddexp(a, -a) - math.log(2), axis=-1)

    def derivatives(x, u):
        rates, v = tanh_and_its_derivatives(x @ weight.T + bias), u @ weight.T
        return [-np.sum(rate * v ** (k + 1), axis=-1) for k, rate in enumerate(rates)]

    return energy, x, derivatives


def log_cosh_score(x, u, dim=4, hidden=6):
    """The score of that energy at x, and its first three derivatives along u, (b, d) each."""
    weight, bias, _ = log_cosh_numbers(dim, hidden)
    rates, v = tanh_and_its_derivatives(x @ weight.T + bias), u @ weight.T
    return [-(rate * v**k) @ weight for k, rate in enumerate(rates)]


def log_cosh_numbers(dim, hidden):
    generator = np.random.default_rng(0)
    shapes = (hidden, dim), hidden, (1, dim)
    return [generator.normal(size=shape) for shape in shapes]


def tanh_and_its_derivatives(a):
    t = np.tanh(a)
    s = 1 - t**2
    return t, s, -2 * t * s, s * (6 * t**2 - 2)


def mlp(params, x, product=jnp.matmul):
    """A smooth two-layer energy with a quadratic tail, of parameters ((h, d), (h,), (h,))."""
    inner, bias, outer = params
    h = jax.nn.softplus(product(x, inner.T) + bias[None])
    return product(h, outer) + 0.15 * jnp.sum(x**2, axis=-1)


def bfloat16_product(a, b):
    """Of operands in bfloat16, accumulated in float32, as accelerators do it."""
    a, b = a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)


def mlp_params(dim, hidden, dtype):
    generator = np.random.default_rng(0)
    inner = generator.normal(size=(hidden, dim)) / math.sqrt(dim) * 2
    outer = generator.normal(size=hidden) / math.sqrt(hidden) * 2
    return [jnp.asarray(p, dtype) for p in (inner, generator.normal(size=hidden), outer)]
