# SPDX-License-Identifier: Apache-2.0
"""The NCSN++ family: sizes, options, precision, and the loading of weights."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorejax import interop
from scorejax.models.ddpm import DDPM
from scorejax.models.ncsnpp import NCSNpp
from tests.random_variables import random_variables
from tests.slow import slow_where
from tests.trees import assert_equal

TINY = {
    "nf": 8, "ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": (4,), "fir": False,
    "embedding_type": "positional", "init_scale": 1.0, "dropout": 0.0,
}  # fmt: skip


def inputs(size=8, channels=1, batch=2):
    x = jax.random.normal(jax.random.key(0), (batch, size, size, channels))
    return x, jnp.linspace(0.5, 800.0, batch)


def some_variables(network):
    return random_variables(network, *inputs(), seed=1, mean=0.1, std=0.2)


def num_parameters(network, size):
    image, label = jax.ShapeDtypeStruct((1, size, size, 3), "float32"), jnp.ones(1)
    shapes = jax.eval_shape(network.init, jax.random.key(0), image, label)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


PYRAMIDS = {"progressive": "output_skip", "progressive_input": "input_skip"}
DDPMPP = {"fir": False, "embedding_type": "positional"}
PUBLISHED = {
    "DDPM++": (DDPMPP, 32, 61_804_419),
    "DDPM++ deep": (DDPMPP | {"num_res_blocks": 8}, 32, 106_632_579),
    "NCSN++": ({"progressive_input": "residual", "embedding_type": "positional"}, 32, 62_693_251),
    "NCSN++ cont.": ({"progressive_input": "residual"}, 32, 62_758_915),
    "NCSN++ cont. deep": (
        {"progressive_input": "residual", "num_res_blocks": 8}, 32, 107_587_075,
    ),
    "256 pixels": (PYRAMIDS | {"ch_mult": (1, 1, 2, 2, 2, 2, 2), "num_res_blocks": 2}, 256,
                   65_574_549),
    "1024 pixels": (
        PYRAMIDS | {"nf": 16, "ch_mult": (1, 2, 4, 8, 16, 32, 32, 32), "num_res_blocks": 1}, 1024,
        105_785_896,
    ),
}  # fmt: skip


# The deep ones repeat the blocks of the others.
@pytest.mark.parametrize("name", slow_where(lambda name: "deep" in name, PUBLISHED))
def test_published_networks_have_their_number_of_parameters(name):
    options, size, expected = PUBLISHED[name]
    assert num_parameters(NCSNpp(**options), size) == expected


def test_ddpm_has_its_number_of_parameters():
    # 527,360 fewer than Ho et al. count: they have an attention after every decoder block.
    assert num_parameters(DDPM(), 32) == 35_746_307 - 527_360


@pytest.mark.slow
def test_bfloat16_is_close_to_float32_and_keeps_the_parameters():
    x, label = inputs(batch=4)
    full, half = NCSNpp(**TINY), NCSNpp(**TINY, dtype=jnp.bfloat16)
    variables = some_variables(half)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    expected, value = (net.apply(variables, x, label) for net in (full, half))
    assert value.dtype == jnp.float32
    # bfloat16 rounds to 2^-9 = 0.2 %; some 30 roundings of random sign lie on the way: 1 %.
    error = jnp.linalg.norm(value - expected) / jnp.linalg.norm(expected)
    assert 1e-5 < error < 0.03


@pytest.mark.deep
@pytest.mark.parametrize("resblock_type", ["biggan", "ddpm"])
def test_remat_changes_neither_names_nor_values(resblock_type):
    x, label = inputs()
    options = TINY | {"resblock_type": resblock_type, "dropout": 0.3, "ch_mult": (1,)}
    plain, remat = NCSNpp(**options), NCSNpp(**options, remat=True)
    variables = some_variables(plain)

    def value_and_grad(net):
        rng = jax.random.key(2)
        loss = lambda v: jnp.sum(net.apply(v, x, label, dropout_rng=rng) ** 2)
        return jax.jit(jax.value_and_grad(loss))(variables)

    (expected, gradient), (value, regradient) = map(value_and_grad, (plain, remat))
    # The same sums; the compiler may fuse, and so round, the recomputed ones differently.
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for a, b in zip(*map(jax.tree.leaves, (gradient, regradient)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(a).max() + 1e-6)


@pytest.mark.deep
def test_dropout_acts_in_training_only():
    x, label = inputs()
    net = NCSNpp(**TINY | {"dropout": 0.5})
    run = jax.jit(functools.partial(net.apply, some_variables(net), x, label))
    first, second = (run(dropout_rng=jax.random.key(seed)) for seed in (2, 3))
    assert jnp.abs(first - second).max() > 1e-3
    np.testing.assert_array_equal(run(), run())


def test_an_unconditional_network_ignores_the_label():
    x, label = inputs()
    net = NCSNpp(**TINY, conditional=False)
    run = functools.partial(net.apply, some_variables(net), x)
    np.testing.assert_array_equal(run(label), run(2 * label))


def test_centring_is_the_only_thing_that_centred_changes():
    x, label = inputs()
    variables = some_variables(NCSNpp(**TINY))
    expected = NCSNpp(**TINY).apply(variables, 2 * x - 1, label)
    value = NCSNpp(**TINY, centered=False).apply(variables, x, label)
    np.testing.assert_array_equal(value, expected)


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        ({}, (1, 7, 7, 1), "multiple of 2; got 7 x 7"),
        ({"ch_mult": (1, 1, 1)}, (1, 8, 10, 1), "square images .* got 8 x 10"),
        ({"nf": 6}, (1, 8, 8, 1), "18 channels in 4 groups"),
        ({"nf": 44, "ch_mult": (1, 3)}, (1, 8, 8, 1), "132 channels in 32 groups"),
    ],
)
def test_impossible_sizes_are_refused_with_one_line(options, shape, message):
    net = NCSNpp(**TINY | options)
    with pytest.raises(ValueError, match=message) as raised:
        jax.eval_shape(net.init, jax.random.key(0), jnp.ones(shape), jnp.ones(1))
    assert "\n" not in str(raised.value)


def test_an_unknown_option_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'residual'"):
        NCSNpp(progressive="residal")


def official(golden):
    file = golden("a_net_ddpmpp_vp")
    state = {key[7:]: file[key] for key in file if key.startswith("params/")}
    hyper = {
        "nf": 16, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [8], "fir": False,
        "embedding_type": "positional", "image_size": 16, "num_channels": 3, "ema_rate": 0.9999,
    }  # fmt: skip
    return state, hyper


def test_a_prefix_of_every_name_is_dropped(golden):
    state, hyper = official(golden)
    prefixed = {f"module.{name}": tensor for name, tensor in state.items()}
    _, variables = interop.load_torch("score_sde/ncsnpp", state, **hyper)
    _, again = interop.load_torch("score_sde/ncsnpp", prefixed, **hyper)
    assert_equal(variables, again)


def spoil(state, how):
    name = "all_modules.3.Conv_0.weight"
    if how == "missing":
        del state[name]
    elif how == "surplus":
        state["all_modules.99.weight"] = np.zeros(3)
    elif how == "failed":
        state[name] = np.full_like(state[name], np.nan)
    else:
        state[name] = np.zeros((16, 16, 1, 1))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "1 missing, first all_modules.3.Conv_0.weight"),
        ("surplus", "1 surplus, first all_modules.99.weight"),
        ("failed", r"1 with numbers that are not finite, first all_modules.3.Conv_0.weight"),
        ("misshapen", r"1 misshapen, first \S+ \(16, 16, 1, 1\) for \(16, 16, 3, 3\)"),
    ],
)
def test_tensors_that_do_not_fit_are_named_in_one_line(golden, how, message):
    state, hyper = official(golden)
    spoil(state, how)
    with pytest.raises(ValueError, match=message) as raised:
        interop.load_torch("score_sde/ncsnpp", state, **hyper)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("architecture", "change", "message"),
    [
        ("score_sde/ncsnp", {}, "did you mean 'score_sde/ncsnpp'"),
        ("score_sde/ncsnpp", {"num_res_block": 2}, "did you mean 'num_res_blocks'"),
        ("score_sde/ncsnpp", {"nonlinearity": "elu"}, "nonlinearity='swish' only; got 'elu'"),
    ],
)
def test_unknown_architectures_and_settings_are_refused(golden, architecture, change, message):
    state, hyper = official(golden)
    with pytest.raises(ValueError, match=message):
        interop.load_torch(architecture, state, **hyper | change)
