# SPDX-License-Identifier: Apache-2.0
"""Layers against Flax's, brute force and closed forms."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorejax.models import layers


def data(shape=(3, 4, 4, 24), seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def norm_variables(channels=24):
    rng = np.random.default_rng(0)
    names = ("scale", "bias")
    return {"params": {name: jnp.asarray(rng.normal(size=channels)) for name in names}}


def weighted(module, variables, x):
    return jnp.sum(jnp.cos(jnp.arange(x.size).reshape(x.shape)) * module.apply(variables, x) ** 3)


@pytest.mark.deep
@pytest.mark.parametrize("num_groups", [1, 6, 24])
def test_group_norm_is_that_of_flax(x64, num_groups):
    # The same function in another order of sums: float64 leaves 1e-16 times a few hundred terms.
    ours = layers.GroupNorm(num_groups)
    flax = nn.GroupNorm(num_groups, epsilon=1e-6, use_fast_variance=False)
    x, variables = data() + 2.0, norm_variables()
    np.testing.assert_allclose(ours.apply(variables, x), flax.apply(variables, x), rtol=1e-11)
    gradient = lambda m: jax.jit(jax.grad(functools.partial(weighted, m), (0, 1)))(variables, x)
    second = lambda m: jax.jit(
        jax.grad(lambda x: jnp.sum(jax.grad(weighted, 2)(m, variables, x) ** 2))
    )(x)
    forward = lambda m: jax.jit(
        lambda x: jax.jvp(jax.grad(functools.partial(weighted, m, variables)), (x,), (x**2,))[1]
    )(x)
    for derivative in (gradient, second, forward):
        for a, b in zip(*map(jax.tree.leaves, map(derivative, (ours, flax))), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10 * np.abs(b).max())


def test_group_norm_shift_is_an_addition_before_it(x64):
    module, variables, x = layers.GroupNorm(6), norm_variables(), data()
    shift = 3 * data((3, 24), seed=1)
    shifted = lambda s: module.apply(variables, x, s)
    added = lambda s: module.apply(variables, x + s[:, None, None])
    np.testing.assert_allclose(shifted(shift), added(shift), atol=1e-12)
    gradients = [jax.grad(lambda s, f=f: jnp.sum(f(s) ** 3))(shift) for f in (shifted, added)]
    np.testing.assert_allclose(*gradients, atol=1e-9)
    np.testing.assert_allclose(shifted(shift[0]), added(jnp.stack([shift[0]] * 3)), atol=1e-12)


def test_group_norm_survives_a_large_mean():
    # mean / std = 1e4: the difference E x^2 - (E x)^2 would lose 8 of 7 digits. The data carry an
    # error of 1e4 * 6e-8 = 6e-4 std from their own rounding; both precisions see the same data.
    x = data() + 1e4
    value = layers.GroupNorm(6).apply(norm_variables(), x)
    with jax.enable_x64(True):
        x64 = jnp.asarray(np.asarray(x), jnp.float64)
        expected = layers.GroupNorm(6).apply(norm_variables(), x64)
    # The offset mean / std = 1e4 is subtracted from a product as large: 1e4 * 6e-8 * a few.
    np.testing.assert_allclose(value, expected, atol=5e-3)


def test_group_norm_keeps_statistics_in_float32():
    x = data((2, 32, 32, 8)).astype(jnp.bfloat16)
    variables = norm_variables(8)
    value = layers.GroupNorm(2).apply(variables, x)
    assert value.dtype == jnp.bfloat16
    expected = layers.GroupNorm(2).apply(variables, x.astype(jnp.float32))
    # Only the result is rounded, to 8 bits; a sum of 2048 terms in bfloat16 would be wrong by 1.
    np.testing.assert_allclose(value.astype(jnp.float32), expected, rtol=2**-8)


@pytest.mark.parametrize("channels", [2, 50, 132])
def test_group_norm_refuses_channels_that_it_cannot_divide(channels):
    with pytest.raises(ValueError, match=rf"got {channels} channels"):
        layers.GroupNorm().init(jax.random.key(0), data((1, 2, 2, channels)))


def test_group_count():
    assert [layers.group_count(c) for c in (4, 32, 128, 256)] == [1, 8, 32, 32]


def test_attention_is_a_weighted_mean_over_pixels(x64):
    query, key, value = (data((2, 9, 5), seed) for seed in range(3))
    weights = np.exp(np.einsum("bqc,bkc->bqk", query, key) / np.sqrt(5))
    expected = np.einsum("bqk,bkd->bqd", weights / weights.sum(-1, keepdims=True), value)
    np.testing.assert_allclose(layers.attend(query, key, value), expected, rtol=1e-12)


def test_attention_does_not_depend_on_the_order_of_pixels(x64):
    module, x = layers.Attention(init_scale=1.0), data((1, 4, 4, 8))
    variables = module.init(jax.random.key(1), x)
    order = np.random.default_rng(0).permutation(16)
    shuffled = x.reshape(1, 16, 8)[:, order].reshape(x.shape)
    expected = module.apply(variables, x).reshape(1, 16, 8)[:, order].reshape(x.shape)
    np.testing.assert_allclose(module.apply(variables, shuffled), expected, rtol=1e-10)


@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_weights_are_uniform_with_the_variance_of_fan_average(scale):
    # Variance of 184,320 uniform draws: standard error 0.9 sqrt(1 / n) = 0.2 %; five of them.
    kernel = layers.fan_avg_uniform(scale)(jax.random.key(0), (3, 3, 64, 320))
    expected = scale / (9 * (64 + 320) / 2)
    np.testing.assert_allclose(kernel.var(), expected, rtol=0.01)
    np.testing.assert_allclose(jnp.abs(kernel).max(), np.sqrt(3 * expected), rtol=1e-3)


def test_scale_zero_means_almost_zero():
    kernel = layers.fan_avg_uniform(0.0)(jax.random.key(0), (3, 3, 8, 8))
    assert 0 < jnp.abs(kernel).max() < np.sqrt(3 * 1e-10 / 72) * 1.001


def test_fourier_frequencies_are_drawn_with_their_scale_and_not_trained():
    module = layers.FourierEmbedding(20_000, scale=16.0)
    x = jnp.asarray([0.3])
    variables = module.init(jax.random.key(0), x)
    # Standard error of the std of n normal draws is 1 / sqrt(2 n) = 0.5 %; four of them.
    np.testing.assert_allclose(variables["params"]["frequencies"].std(), 16.0, rtol=0.02)
    gradient = jax.grad(lambda v: jnp.sum(module.apply(v, x) ** 3))(variables)
    assert not np.any(gradient["params"]["frequencies"])


def test_softplus_and_its_first_three_derivatives_are_the_closed_forms(x64):
    x = jnp.asarray([-700.0, -40.0, -3.0, -0.5, 0.0, 0.5, 3.0, 40.0, 700.0])
    s = 1 / (1 + np.exp(-np.asarray(x)))
    curvature = s / (1 + np.exp(np.asarray(x)))
    forward = lambda f: lambda x: jax.jvp(f, (x,), (jnp.ones_like(x),))[1]
    reverse = lambda f: jax.grad(lambda x: jnp.sum(f(x)))
    f = layers.softplus
    # Some roundings of numbers up to 1; the value and the slope keep their digits in the tail.
    np.testing.assert_allclose(f(x), np.logaddexp(0, x), rtol=1e-14)
    for first in (forward(f), reverse(f)):
        np.testing.assert_allclose(first(x), s, rtol=1e-14)
        for second in (forward(first), reverse(first)):
            np.testing.assert_allclose(second(x), curvature, rtol=0, atol=1e-15)
            third = reverse(second)(x)
            np.testing.assert_allclose(third, curvature * (1 - 2 * s), rtol=0, atol=1e-15)
