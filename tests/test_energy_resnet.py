# SPDX-License-Identifier: Apache-2.0
"""The energy network: its size by the recipe, its head by the formula, smooth, row by row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorejax.models.energy_resnet import (
    ACTIVATIONS,
    EnergyResNet,
    QuadraticEnergy,
    ResidualBlock,
    centred_softplus,
)
from tests.random_variables import random_variables

TINY = EnergyResNet(features=2, multipliers=(1, 2), num_blocks=1)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_published_network_has_its_number_of_parameters(channels):
    # By hand: 3x3 convolutions with bias. A block that halves keeps its width in the first and
    # changes it in the second, with one of 1x1 beside it; two more blocks keep it. Three linear
    # forms of the 4 x 4 x 1024 last features.
    conv = lambda a, b, size=9: size * a * b + b
    count, width = conv(channels, 128), 128
    for wider in (256, 512, 1024):
        count += conv(width, width) + conv(width, wider) + conv(width, wider, 1)
        count += 4 * conv(wider, wider)
        width = wider
    count += 3 * (4 * 4 * 1024 + 1)
    image = jax.ShapeDtypeStruct((2, 32, 32, channels), "float32")
    energy, variables = jax.eval_shape(EnergyResNet().init_with_output, jax.random.key(0), image)
    assert energy.shape == (2,)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == count


def test_the_head_is_the_quadratic_form_that_it_says():
    h = np.random.default_rng(0).normal(size=(3, 2, 2, 2)).astype(np.float32)
    head = QuadraticEnergy()
    variables = random_variables(head, h, seed=1, mean=0.1, std=0.5)
    w = {n: (p["kernel"][:, 0], p["bias"][0]) for n, p in variables["params"].items()}
    flat = h.reshape(3, -1)
    affine = lambda name, rows: rows @ w[name][0] + w[name][1]
    expected = affine("linear_0", flat) * affine("linear_1", flat) + affine("square", flat**2)
    np.testing.assert_allclose(head.apply(variables, h), expected, rtol=1e-5, atol=1e-5)


def test_a_block_whose_branch_is_zero_is_its_shortcut():
    x = np.random.default_rng(0).normal(size=(1, 4, 4, 3)).astype(np.float32)
    means = x.reshape(1, 2, 2, 2, 2, 3).mean((2, 4))
    for features, down in ((3, False), (3, True), (5, True)):
        block = ResidualBlock(features, down)
        variables = random_variables(block, x, seed=2, mean=0.0, std=0.5)
        p = variables["params"]
        p["conv_1"] = jax.tree.map(np.zeros_like, p["conv_1"])
        shortcut = means if down else x
        if features != 3:
            shortcut = shortcut @ p["shortcut"]["kernel"][0, 0] + p["shortcut"]["bias"]
        np.testing.assert_allclose(block.apply(variables, x), shortcut, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("x64")
def test_energies_are_of_rows_alone_and_curved():
    x = np.random.default_rng(0).normal(size=(3, 4, 4, 1))
    variables = random_variables(TINY, x, seed=3, mean=0.0, std=0.3)
    energy = jax.jit(lambda x: TINY.apply(variables, x))
    together = energy(x)
    alone = [energy(jnp.stack([row] * 3))[0] for row in x]
    np.testing.assert_allclose(together, np.asarray(alone), rtol=1e-10)
    # Oracle: the second derivative along a direction by central differences of the energy, whose
    # error of h^2 d_4 / 12 and of rounding is 1e-5 of it at h = 1e-3.
    u, h = np.ones_like(x) / 4, 1e-3
    slope = lambda y: jax.jvp(lambda x: TINY.apply(variables, x), (y,), (u,))[1]
    second = jax.jit(lambda x: jax.jvp(slope, (x,), (u,))[1])(x)
    difference = (energy(x + h * u) + energy(x - h * u) - 2 * together) / h**2
    np.testing.assert_allclose(second, difference, rtol=1e-4, atol=1e-4 * np.abs(second).max())


def test_every_activation_bends_and_the_softplus_is_centred():
    assert centred_softplus(jnp.zeros(1))[0] == 0
    for activation in ACTIVATIONS.values():
        assert abs(float(jax.grad(jax.grad(activation))(-0.5))) > 0.01
    with pytest.raises(
        ValueError, match=r"unknown activation 'relu': .*known: elu, softplus, swish"
    ):
        EnergyResNet(activation="relu")


def test_an_image_that_cannot_be_halved_is_refused():
    with pytest.raises(ValueError, match="multiple of 4; got 6 x 6"):
        jax.eval_shape(TINY.init, jax.random.key(0), jnp.zeros((1, 6, 6, 1)))
