# SPDX-License-Identifier: Apache-2.0
"""Our convolution is lax's, to the last bit, under every transformation; but not in its program.

Exactness is what is asked: both compile to the same sums, only the order of the axes differs.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from scorejax.models.convolution import Window, conv, same_window

WINDOWS = {
    "same": same_window((3, 3)),
    "dilated kernel": same_window((3, 3), dilation=2),
    "stride": Window(((0, 1), (0, 1)), stride=(2, 2)),
    "dilated image": Window(((2, 2), (2, 2)), image_dilation=(2, 2)),
    "all, uneven": Window(((-1, 2), (3, -1)), (2, 1), (1, 3), (2, 1)),
}


def lax_conv(x, kernel, window):
    return lax.conv_general_dilated(
        x, kernel, window.stride, window.padding, window.image_dilation, window.kernel_dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip


def arrays(dtype=jnp.float32):
    shapes = [(4, 8, 8, 5), (3, 3, 5, 6)] * 2
    keys = jax.random.split(jax.random.key(0), 4)
    return [jax.random.normal(k, s).astype(dtype) for k, s in zip(keys, shapes, strict=True)]


def loss(f, x, kernel):
    return jnp.sum(jnp.sin(f(x, kernel)))


def gradient(f):
    return jax.grad(functools.partial(loss, f), (0, 1))


def second_derivative(f, x, kernel, dx, dk):
    """Along (dx, dk), by forward over forward mode: a function of (x, kernel)."""
    along = lambda g, x, k: jax.jvp(g, (x, k), (dx, dk))[1]
    return along(lambda x, k: along(functools.partial(loss, f), x, k), x, kernel)


def scanned_gradient(f, x, kernel):
    def step(carry, _):
        dx, dk = gradient(f)(*carry)
        return (carry[0] + dx, carry[1] + dk), None

    return lax.scan(step, (x, kernel), length=3)[0]


TRANSFORMS = {
    "eager": lambda f, x, k, dx, dk: f(x, k),
    "grad": lambda f, x, k, dx, dk: gradient(f)(x, k),
    "jvp": lambda f, x, k, dx, dk: jax.jvp(f, (x, k), (dx, dk)),
    "jvp of grad": lambda f, x, k, dx, dk: jax.jvp(gradient(f), (x, k), (dx, dk)),
    "grad of jvp of jvp": lambda f, x, k, dx, dk: jax.grad(
        lambda x, k: second_derivative(f, x, k, dx, dk), (0, 1)
    )(x, k),
    "grad of grad": lambda f, x, k, dx, dk: jax.grad(
        lambda x, k: sum(jnp.sum(g**2) for g in gradient(f)(x, k)), (0, 1)
    )(x, k),
    "jit of remat": lambda f, x, k, dx, dk: jax.jit(gradient(jax.remat(f)))(x, k),
    "vmap of images": lambda f, x, k, dx, dk: jax.vmap(gradient(f), (1, None), 2)(
        jnp.stack([x, dx], 1), k
    ),
    "vmap of kernels": lambda f, x, k, dx, dk: jax.vmap(gradient(f), (None, 2))(
        x, jnp.stack([k, dk], 2)
    ),
    "vmap of both": lambda f, x, k, dx, dk: jax.vmap(gradient(f), (0, 3))(
        jnp.stack([x, dx]), jnp.stack([k, dk], 3)
    ),
    "vmap of vmap": lambda f, x, k, dx, dk: jax.vmap(
        lambda k: jax.vmap(lambda x: f(x, k))(jnp.stack([x, dx]))
    )(jnp.stack([k, dk, k + dk])),
    "pmap": lambda f, x, k, dx, dk: jax.pmap(gradient(f), in_axes=(0, None))(jnp.stack([x, dx]), k),
}


def assert_equals_lax(transform, window, dtype=jnp.float32):
    ours, theirs = (
        jax.tree.leaves(TRANSFORMS[transform](functools.partial(f, window=window), *arrays(dtype)))
        for f in (conv, lax_conv)
    )
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == dtype
        np.testing.assert_array_equal(np.asarray(a, np.float64), np.asarray(b, np.float64))


@pytest.mark.deep
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_equals_lax_to_the_last_bit(transform):
    assert_equals_lax(transform, WINDOWS["same"])


@pytest.mark.deep
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("transform", ["grad", "grad of jvp of jvp", "vmap of both"])
def test_equals_lax_for_every_window(transform, window):
    assert_equals_lax(transform, WINDOWS[window])


@pytest.mark.parametrize("transform", ["grad", "jvp of grad"])
def test_equals_lax_in_bfloat16(transform):
    assert_equals_lax(transform, WINDOWS["same"], jnp.bfloat16)


@pytest.mark.parametrize("transform", ["grad", "jvp of grad"])
def test_equals_lax_in_float64(x64, transform):
    assert_equals_lax(transform, WINDOWS["same"], jnp.float64)


def test_equals_lax_inside_a_loop(x64):
    # There the two take different paths of the compiler, which sum in other orders: 1e-12 is 5000
    # roundings, and three steps of a nonlinear recursion lie between them.
    x, kernel, *_ = arrays(jnp.float64)
    ours, theirs = (
        scanned_gradient(functools.partial(f, window=WINDOWS["same"]), x, kernel)
        for f in (conv, lax_conv)
    )
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-11)


def test_runs_inside_shard_map():
    mesh = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,))
    x, kernel, *_ = arrays()
    sharded = jax.shard_map(
        lambda x, k: gradient(conv)(x, k)[0],
        mesh=mesh, in_specs=(P("d"), P()), out_specs=P("d"), check_vma=False,
    )  # fmt: skip
    np.testing.assert_array_equal(jax.jit(sharded)(x, kernel), gradient(conv)(x, kernel)[0])


def layouts(program):
    """Dimension numbers of every convolution in the lowered text."""
    lines = [line for line in program.splitlines() if "stablehlo.convolution" in line]
    return {line.split("dim_numbers = ")[1].split("->")[0] for line in lines}


def test_no_slow_convolution_is_left_in_a_loop():
    # NHWC by HWIO is what XLA's CPU compiler runs fast in a loop; lax's own gradients show that
    # the test sees others.
    fast = {"[b, 0, 1, f]x[0, 1, i, o]"}
    x, kernel, *_ = arrays()
    lowered = lambda f: (
        jax.jit(functools.partial(scanned_gradient, functools.partial(f, window=WINDOWS["same"])))
        .lower(x, kernel)
        .as_text()
    )
    assert layouts(lowered(conv)) == fast
    assert layouts(lowered(lax_conv)) > fast
    likelihood = lambda x: lax.fori_loop(
        0, 3, lambda _, y: y + jax.vjp(lambda x: conv(x, kernel[..., :5]), y)[1](y)[0], x
    )
    assert layouts(jax.jit(likelihood).lower(x).as_text()) == fast
