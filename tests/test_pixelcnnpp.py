# SPDX-License-Identifier: Apache-2.0
"""PixelCNN++: causality, caching that is exact and cheap, and initialisation from data."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax import lax

from scorejax.models.pixelcnnpp import PixelCNNPP
from scorejax.models.weight_norm import WeightNormConv, WeightNormSpread, lengths
from scorejax.random import row_keys
from tests.operations import multiplications
from tests.random_variables import random_variables

SMALL = {"num_filters": 3, "num_blocks": 1, "features": 2}
# Its bits take a tenth of the time to compile.
RNG = jax.random.key(0, impl="rbg")


def images(shape, b=2, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(b, *shape)))


def network(num_resolutions, shape, *inputs, **options):
    net = PixelCNNPP(shape, num_resolutions=num_resolutions, **SMALL | options)
    x = jnp.zeros((1, *shape))
    return net, random_variables(net, x, *inputs, seed=1, mean=0.1, std=0.5)


def advance_through(net, variables, x, condition=None):
    """Contexts of all positions, from one `advance` each."""

    def step(cache, position):
        # What comes later is large noise.
        later = jnp.arange(x[0].size).reshape(x.shape[1:]) >= position
        seen = jnp.where(later[None], 1e3 * jnp.cos(99 * x), x)
        return net.apply(variables, cache, seen, position, condition, method="advance")

    cache = net.apply(variables, x, method="empty")
    c = lax.scan(step, cache, jnp.arange(math.prod(x.shape[1:])))[1]
    return jnp.moveaxis(c, 0, 1).reshape(*x.shape, -1)


def test_a_missing_condition_is_refused():
    net, variables = network(1, (2, 2, 1), images((2,))[:1])
    x = images((2, 2, 1))
    cache = net.apply(variables, x, method="empty")
    with pytest.raises(ValueError, match="condition needs an array"):
        net.apply(variables, x)
    with pytest.raises(ValueError, match="condition needs an array"):
        net.apply(variables, cache, x, 0, method="advance")


@pytest.mark.deep
@pytest.mark.parametrize(
    ("num_resolutions", "shape"),
    [
        pytest.param(1, (3, 5, 1), marks=pytest.mark.slow),
        pytest.param(2, (4, 6, 1), marks=pytest.mark.slow),
        (3, (8, 4, 3)),
    ],
)
def test_the_cache_is_exact_and_contexts_are_causal(x64, num_resolutions, shape):
    # In double precision; the contexts are of order 1 to 10, the sums of some hundred terms.
    condition = images((2,), seed=2)
    net, variables = network(num_resolutions, shape, condition[:1])
    x, size = images(shape), math.prod(shape)

    @jax.jit
    def run(x, condition):
        contexts = lambda x: net.apply(variables, x, condition)
        along = lambda direction: jax.jvp(contexts, (x,), (direction,))
        unit = jnp.broadcast_to(jnp.eye(size).reshape(size, 1, *shape), (size, *x.shape))
        both = jax.vmap(along, out_axes=(None, 0))(unit)
        return *both, advance_through(net, variables, x, condition)

    c, derivatives, advanced = run(x, condition)
    assert c.shape == (*x.shape, net.features)
    np.testing.assert_allclose(advanced, c, rtol=1e-11, atol=1e-11)
    # These images lie within reach of one block: a context sees every earlier value, and of its own
    # and of later ones exactly nothing.
    depends = np.any(np.reshape(derivatives, (size, len(x), size, -1)) != 0, axis=(1, 3))
    np.testing.assert_array_equal(depends, np.triu(np.ones((size, size)), 1))


def test_sampling_all_pixels_costs_one_pass():
    shape, batch = (4, 4, 2), 2
    net, variables = network(2, shape)
    x = jax.ShapeDtypeStruct((batch, *shape), float)
    cache = jax.eval_shape(lambda v, x: net.apply(v, x, method="empty"), variables, x)
    advance = lambda v, cache, x, position: net.apply(v, cache, x, position, method="advance")
    program = jax.make_jaxpr(advance)(variables, cache, x, jnp.int32(0))
    unknown = [None] * (len(program.in_avals) - 1)
    count = lambda position: multiplications(program, [*unknown, jnp.int32(position)])
    advanced = sum(count(position) for position in range(math.prod(net.shape)))

    def whole(net):
        x = jax.ShapeDtypeStruct((batch, *net.shape), float)
        program = jax.make_jaxpr(net.apply)(variables, x)
        return multiplications(program, [None] * len(program.in_avals))

    # The same sums, but for the map of a pixel's channels, which runs once per channel.
    one_pass, channels, pixels = whole(net), shape[2], batch * shape[0] * shape[1]
    assert advanced - one_pass == pixels * (channels - 1) * channels**2 * net.features
    assert advanced < 1.05 * one_pass
    # And these grow with the number of pixels.
    assert whole(net.clone(shape=(8, 12, 2))) == 6 * one_pass


@pytest.mark.deep
def test_layers_start_standardized_on_the_batch_of_init():
    net, x = PixelCNNPP((3, 4, 3), num_resolutions=1, **SMALL), images((3, 4, 3), b=4)
    x = x.at[..., 1].multiply(30.0) + 5.0
    init = jax.jit(net.init)
    layers = lambda module, name: isinstance(module, WeightNormConv) and name == "__call__"
    outputs = jax.jit(lambda v, x: net.apply(v, x, capture_intermediates=layers)[1])
    variables = init(RNG, x)
    captured = flatten_dict(outputs(variables, x)["intermediates"])
    gains = [path for path in flatten_dict(variables["params"]) if path[-1] == "gain"]
    assert len(captured) == len(gains) == 15
    for path, (y,) in captured.items():
        # Sums of 48 terms in float32, where the mean may be ten times the standard deviation.
        scale = 0.1 if path[-2] == "conv_1" else 1
        y = np.asarray(y).reshape(-1, y.shape[-1]) / scale
        np.testing.assert_allclose(y.mean(0), 0, atol=1e-4, err_msg=str(path))
        np.testing.assert_allclose(y.std(0), 1, rtol=1e-3, err_msg=str(path))
    # On constant images only the borders vary: data of size 30 still give features of that order.
    variables = init(RNG, jnp.ones_like(x))
    y = flatten_dict(outputs(variables, x)["intermediates"])[("context", "__call__")][0]
    assert np.std(y) < 100


@pytest.mark.parametrize("layer", [WeightNormConv(5, (2, 2), 2), WeightNormSpread(5, (2, 3))])
def test_a_layer_starts_standardized_and_a_constant_channel_as_it_is(layer):
    y, _ = layer.init_with_output(RNG, 3 * images((4, 4, 3)) + 7)
    # Sums of some hundred terms in float32, around means of about 10.
    np.testing.assert_allclose(np.mean(y, (0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(np.std(y, (0, 1, 2)), 1, rtol=1e-4)
    # Of ones a spread would give an output that varies, since its border receives fewer terms.
    constant = jnp.ones if type(layer) is WeightNormConv else jnp.zeros
    params = layer.init(RNG, constant((1, 4, 4, 3)))["params"]
    np.testing.assert_array_equal(params["gain"], np.ones(5))
    np.testing.assert_array_equal(params["bias"], np.zeros(5))


@pytest.mark.parametrize("stride", [1, 2])
def test_a_kernel_has_the_length_of_its_gain(x64, stride):
    layer, x = WeightNormConv(5, (2, 3), stride), images((5, 6, 4))
    variables = random_variables(layer, x, seed=1, mean=0.5, std=1.0)
    params = variables["params"]
    plain = nn.Conv(5, (2, 3), stride, padding="VALID", param_dtype=float)
    kernel = params["gain"] * params["kernel"]
    kernel = kernel / np.sqrt(np.sum(params["kernel"] ** 2, axis=(0, 1, 2)))
    expected = plain.apply({"params": {"kernel": kernel, "bias": params["bias"]}}, x)
    np.testing.assert_allclose(layer.apply(variables, x), expected, rtol=1e-12, atol=1e-12)
    beforehand = variables | {"lengths": lengths(params)}
    np.testing.assert_array_equal(layer.apply(beforehand, x), layer.apply(variables, x))


@pytest.mark.parametrize("size", [(2, 2), (2, 3)])
def test_a_spread_is_the_transposed_convolution(x64, size):
    # Of a kernel of three columns the first output column lies left of the image, and is cut off.
    layer, x = WeightNormSpread(5, size), images((3, 4, 2))
    variables = random_variables(layer, x, seed=1, mean=0.5, std=1.0)
    params = variables["params"]
    expected = np.zeros((2, 6, 4 * 2 + 1, 5))
    for i, j, row, column in np.ndindex(3, 4, *size):
        expected[:, 2 * i + row, 2 * j + column] += x[:, i, j] @ params["kernel"][row, column]
    expected = expected[:, :, size[1] - 2 :][:, :, :8]
    expected *= params["gain"] / np.sqrt(np.sum(params["kernel"] ** 2, axis=(0, 1, 2)))
    expected += params["bias"]
    np.testing.assert_allclose(layer.apply(variables, x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.deep
def test_dropout_is_each_examples_own_and_bfloat16_rounds():
    shape = (3, 4, 1)
    net, variables = network(1, shape)
    x, rngs = images(shape).astype(jnp.float32), row_keys(jax.random.key(3), 2)
    low = net.clone(dtype=jnp.bfloat16)
    dropped = lambda x, rngs: net.apply(variables, x, dropout_rng=rngs)

    @jax.jit
    def run(x, rngs):
        advanced = advance_through(low, variables, x)
        return net.apply(variables, x), dropped(x, rngs), low.apply(variables, x), advanced

    c, noisy, rounded, advanced = run(x, rngs)
    assert np.all(np.any(noisy != c, axis=-1))
    swapped = run(x[::-1], rngs[::-1])[1]
    np.testing.assert_array_equal(noisy, swapped[::-1])
    # Ten layers round to 8 bits each; some of their errors grow on the way.
    assert rounded.dtype == jnp.float32
    np.testing.assert_allclose(rounded, c, atol=0.1 * np.abs(c).max())
    np.testing.assert_allclose(advanced, rounded, atol=0.02 * np.abs(c).max())
    assert np.any(rounded != c)


@pytest.mark.slow
def test_the_published_network_has_its_53_million_parameters():
    net = PixelCNNPP((32, 32, 3))
    x = jax.ShapeDtypeStruct((2, *net.shape), jnp.float32)
    variables = jax.eval_shape(net.init, jax.random.key(0), x)
    c = jax.eval_shape(net.apply, variables, x)
    assert c.shape == (2, 32, 32, 3, 64)
    params = dict(variables["params"])
    del params["context"], params["earlier"]
    # A layer has a kernel, gains and biases; a block two convolutions and a map of its short-cut.
    layer = lambda taps, inputs, outputs: taps * inputs * outputs + 2 * outputs
    block = lambda taps, shortcuts: (
        layer(taps, 320, 160) + layer(taps, 320, 320) + (shortcuts and layer(1, shortcuts, 160))
    )
    down = 15 * (block(6, 0) + block(4, 320))
    up = 17 * (block(6, 320) + block(4, 640))
    between = 4 * (layer(6, 160, 160) + layer(4, 160, 160))
    first = layer(6, 4, 160) + layer(3, 4, 160) + layer(2, 4, 160)
    trunk = down + up + between + first
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == trunk
    # The published head makes 100 numbers of a pixel's features.
    assert trunk + layer(1, 160, 100) == 53_659_080


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"shape": (28, 30, 1), "num_resolutions": 3},
            "multiples of 4; got 28 x 30. Nearest are 28 x 32, or num_resolutions=2",
        ),
        ({"shape": (5, 1, 3), "num_resolutions": 2}, "got 5 x 1. Nearest are 4 x 2, or num_res"),
        ({"shape": (8, 8, 1), "num_blocks": 0}, "num_blocks needs to be at least 1; got 0"),
        ({"shape": (8, 8, 1), "dropout": 1.0}, r"dropout needs to lie in \[0, 1\); got 1.0"),
    ],
)
def test_bad_sizes_are_refused(options, message):
    with pytest.raises(ValueError, match=message) as error:
        PixelCNNPP(**options)
    assert "\n" not in str(error.value)


def test_images_of_another_shape_are_refused():
    net = PixelCNNPP((4, 4, 1), num_resolutions=1, **SMALL)
    for method in ("contexts", "empty"):
        with pytest.raises(ValueError, match=r"shape \(4, 4, 1\); got \(4, 5, 1\)"):
            net.init(RNG, jnp.zeros((2, 4, 5, 1)), method=method)
