# SPDX-License-Identifier: Apache-2.0
"""The energy network of diffusion recovery likelihood against the official code's numbers.

The files hold what the TensorFlow code computed, in single and in double precision. Single
precision is held to each file's tolerances, ten times the rounding error; double precision to 1e-8
of the largest entry of each example.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorejax import interop
from scorejax.models.layers import sinusoidal_embedding
from scorejax.models.mlp import LevelPerceptron
from scorejax.models.recovery_resnet import CH_MULT, RecoveryResNet
from scorejax.models.spectral_norm import advance
from tests.random_variables import random_variables
from tests.slow import deep_where, slow_where

NAME = "recovery_likelihood/net_res_temb2"
PUBLISHED = {
    "act": "lrelu", "final_act": "relu", "use_attention": False, "resamp_with_conv": False,
    "spec_norm": True, "res_conv_shortcut": True, "res_use_scale": True, "dropout": 0.0,
    "normalize": None, "num_diffusion_timesteps": 6, "image_size": 16, "num_channels": 3,
    "attn_resolutions": [16],
}  # fmt: skip
NETWORKS = {
    "j_net_t6": PUBLISHED | {"ch": 16, "ch_mult": [1, 2, 2, 2], "num_res_blocks": 2},
    "j_net_attn": PUBLISHED
    | {"ch": 16, "ch_mult": [1, 2], "num_res_blocks": 2, "use_attention": True}
    | {"attn_resolutions": [8]},
    "j_net_options": PUBLISHED
    | {"act": "swish", "final_act": "swish", "resamp_with_conv": True, "use_attention": True}
    | {"res_conv_shortcut": False, "res_use_scale": False, "attn_resolutions": [8, 4]}
    | {"ch": 12, "ch_mult": [1, 2, 2], "num_res_blocks": 1},
}


def entries(file, prefix):
    return {key.removeprefix(prefix): file[key] for key in file if key.startswith(prefix)}


def assert_golden(value, file, name, precision):
    expected, tolerance = file[f"out64/{name}"], file[f"tol/{name}"]
    if precision == "float64":
        tolerance = 1e-8 * np.abs(expected).max(axis=tuple(range(1, expected.ndim)), keepdims=True)
    assert value.shape == expected.shape
    excess = np.abs(np.asarray(value, np.float64) - expected) / tolerance
    assert excess.max() <= 1, f"{name} is off by {excess.max():.3g} tolerances"


def compiled(module):
    """(variables, x, t) -> F, its gradient in x, the embedding, the vectors u after one call."""

    def total(x, variables, t):
        value, state = module.apply(
            variables, x, t, capture_intermediates=lambda layer, _: layer.name == "temb_1"
        )
        return jnp.sum(value), (value, state["intermediates"]["temb_1"]["__call__"][0])

    def call(variables, x, t):
        grad, (value, temb) = jax.grad(total, has_aux=True)(x, variables, t)
        return value, grad, temb, advance(variables["params"], variables.get("spectral", {}))

    return jax.jit(call)


def inputs(file):
    return jnp.asarray(file["in/x"], float), jnp.asarray(file["in/t"], jnp.int32)


@pytest.mark.parametrize("name", deep_where(lambda name: name != "j_net_t6", NETWORKS))
@pytest.mark.deep
def test_successive_calls_are_the_official_ones(golden, precision, name):
    file, hyper = golden(name), NETWORKS[name]
    params = entries(file, "params/")
    module, variables = interop.load_tensorflow(NAME, params, **hyper)
    call, (x, t) = compiled(module), inputs(file)
    for after, suffix in (("u1", ""), ("u2", "_second")):
        value, grad, temb, spectral = call(variables, x, t)
        if not suffix:
            assert_golden(temb, file, "temb", precision)
        assert_golden(value, file, f"F{suffix}", precision)
        assert_golden(grad, file, f"grad_x{suffix}", precision)
        # The importer is the way back from the official names: it puts each golden u in its place.
        moved = params | {
            key: file[f"out64/{after}/{key}"] for key in entries(file, f"tol/{after}/")
        }
        expected = interop.load_tensorflow(NAME, moved, **hyper)[1]["spectral"]
        # Unit vectors of at most 64 entries: rounding of 1e-8 and 1e-5 of the largest.
        atol = 1e-8 if precision == "float64" else 1e-5
        jax.tree.map(functools.partial(np.testing.assert_allclose, atol=atol), spectral, expected)
        variables = variables | {"spectral": spectral}
    converged = params | entries(file, "in/u_converged/")
    variables = interop.load_tensorflow(NAME, converged, **hyper)[1]
    value, grad, _, spectral = call(variables, x, t)
    assert_golden(value, file, "F_converged", precision)
    assert_golden(grad, file, "grad_x_converged", precision)
    if precision == "float64":
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, atol=1e-8),
            spectral,
            variables["spectral"],
        )


def without_norm(params):
    """The official names of the same weights where there is no spectral normalisation."""
    rename = lambda name: f"{name[:-1]}W" if name.endswith("/w") else name.replace("/layer/", "/")
    return {rename(name): params[name] for name in params if not name.endswith("sn_u")}


@pytest.mark.parametrize("name", slow_where(lambda name: name != "j_net_attn", NETWORKS))
def test_without_spectral_normalisation_too(golden, precision, name):
    file = golden(name)
    params = without_norm(entries(file, "params/"))
    module, variables = interop.load_tensorflow(
        NAME, params, **NETWORKS[name] | {"spec_norm": False}
    )
    value, grad, _, spectral = compiled(module)(variables, *inputs(file))
    assert_golden(value, file, "F_nosn", precision)
    assert_golden(grad, file, "grad_x_nosn", precision)
    assert not spectral


@pytest.mark.parametrize("dim", [8, 16, 17, 128])
def test_the_level_is_embedded_as_published(golden, precision, dim):
    file = golden("j_embedding")
    value = sinusoidal_embedding(jnp.asarray(file["in/t"], float), dim)
    assert_golden(value, file, f"width{dim}", precision)


def kernel_sizes(px, num_blocks, nf=128):
    """(kernel entries, biases, gains) of the layers of the published network, by hand.

    The last number of each row says whether the layer is spectrally normalised.
    """
    conv = lambda a, b, gain=0, size=9: (size * a * b, b, gain, True)
    yield from (conv(nf, 4 * nf, size=1), conv(4 * nf, 4 * nf, size=1), conv(3, nf))
    width = nf
    for wider in (nf * multiplier for multiplier in CH_MULT[px]):
        for _ in range(num_blocks):
            yield from (conv(width, wider), conv(wider, wider, wider), conv(4 * nf, wider, size=1))
            if width != wider:
                yield conv(width, wider)
            width = wider
    yield (4 * nf * width, width, 0, False)


@pytest.mark.parametrize(
    ("px", "num_blocks", "count"),
    [
        (32, 8, 34_833_408),
        pytest.param(32, 6, 26_241_024, marks=pytest.mark.slow),
        (64, 2, 19_153_664),
        pytest.param(128, 2, 29_119_232, marks=pytest.mark.slow),
        pytest.param(128, 5, 71_904_512, marks=pytest.mark.slow),
        pytest.param(256, 2, None, marks=pytest.mark.slow),
    ],
)
def test_the_published_networks_have_their_number_of_parameters(px, num_blocks, count):
    network = RecoveryResNet(ch_mult=CH_MULT[px], num_res_blocks=num_blocks)
    image, label = jax.ShapeDtypeStruct((1, px, px, 3), "float32"), jnp.zeros(1, int)
    shapes = jax.eval_shape(network.init, jax.random.key(0), image, label)
    sizes = {k: sum(leaf.size for leaf in jax.tree.leaves(shapes[k])) for k in shapes}
    layers = [*kernel_sizes(px, num_blocks)]
    assert sizes["params"] == sum(sum(layer[:3]) for layer in layers)
    assert sizes["spectral"] == sum(layer[1] for layer in layers if layer[3])
    assert count in (None, sizes["params"])
    if (px, num_blocks) == (32, 8):
        assert sizes["spectral"] == 22_912


TINY = RecoveryResNet(nf=4, ch_mult=(1, 2), num_res_blocks=1)
LABELS = jnp.arange(3)


def tiny_variables(seed, **changes):
    x = np.random.default_rng(seed).normal(size=(3, 4, 4, 1)).astype(np.float32)
    network = TINY.clone(**changes)
    return network, random_variables(network, x, LABELS, seed=seed, mean=0.0, std=0.5), x


def test_a_row_depends_on_its_image_and_level_alone():
    network, variables, x = tiny_variables(0, attn_resolutions=(2,))
    apply = jax.jit(network.apply)
    together = apply(variables, x, LABELS)
    for i in range(3):
        alone = apply(variables, np.stack([x[i]] * 3), jnp.full(3, i))
        # The sums are the same, perhaps in another order.
        np.testing.assert_allclose(alone, [together[i]] * 3, rtol=1e-5)
    assert len(np.unique(apply(variables, np.stack([x[0]] * 3), LABELS))) == 3


def test_a_network_reads_its_vectors_and_never_writes_them():
    network, variables, x = tiny_variables(1)
    apply = jax.jit(functools.partial(network.apply, mutable=["spectral"]))
    value, state = apply(variables, x, LABELS)
    jax.tree.map(np.testing.assert_array_equal, state["spectral"], variables["spectral"])
    moved = variables | {"spectral": advance(**variables)}
    assert (value != apply(moved, x, LABELS)[0]).all()
    with pytest.raises(Exception, match="spectral"):
        network.apply({"params": variables["params"]}, x, LABELS)


@pytest.mark.deep
def test_recomputing_blocks_changes_nothing_but_memory():
    network, variables, x = tiny_variables(2)
    loss = lambda net, p: jnp.sum(net.apply(variables | {"params": p}, x, LABELS) ** 2)
    grads = [
        jax.jit(jax.grad(functools.partial(loss, net)))(variables["params"])
        for net in (network, network.clone(remat=True))
    ]
    same = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(a).max())
    jax.tree.map(same, *grads)


def test_in_bfloat16_the_sum_over_pixels_keeps_single_precision():
    network, variables, _ = tiny_variables(3)
    x = jnp.asarray(np.random.default_rng(3).normal(size=(3, 64, 64, 1)), jnp.float32)
    value = jax.jit(network.apply)(variables, x, LABELS)
    half = jax.jit(network.clone(dtype=jnp.bfloat16).apply)(variables, x, LABELS)
    assert half.dtype == jnp.float32
    # 1024 features per channel carry errors of 2^-8, which partly cancel; a sum in bfloat16 would
    # stop growing at 256 times its terms.
    np.testing.assert_allclose(half, value, rtol=0.02)


@pytest.mark.deep
def test_a_fresh_network_is_its_shortcuts():
    x = np.random.default_rng(0).normal(size=(3, 4, 4, 1)).astype(np.float32)
    network = TINY.clone(ch_mult=(1, 1), attn_resolutions=(2,))
    variables = jax.jit(network.init)(jax.random.key(0), x, LABELS)
    # The last layers of blocks and of attention start at 1e-5 of the others.
    params = dict(variables["params"])
    for name in [name for name in params if "level" in name]:
        last = "conv_1" if "block" in name else "out"
        params[name] = params[name] | {last: jax.tree.map(jnp.zeros_like, params[name][last])}
    apply = jax.jit(network.apply)
    bare = apply(variables | {"params": params}, x, LABELS)
    np.testing.assert_allclose(apply(variables, x, LABELS), bare, rtol=1e-3, atol=1e-6)


def test_all_convolutions_have_derivatives_that_are_fast_in_loops():
    network, variables, x = tiny_variables(4, resamp_with_conv=True)
    slope = jax.grad(lambda x: jnp.sum(network.apply(variables, x, LABELS)))
    names = {str(e.primitive) for e in equations(jax.make_jaxpr(slope)(x).jaxpr)}
    assert "conv_nhwc" in names and "conv_general_dilated" not in names


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": "leaky"}, "unknown activation 'leaky': did you mean 'leaky_relu'"),
        ({"final_activation": "relo"}, "unknown final activation 'relo': did you mean 'relu'"),
        ({"nf": 2}, "nf, also the embedding's width, needs to be at least 4; got 2"),
    ],
)
def test_an_impossible_network_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        TINY.clone(**change)


def test_an_image_that_cannot_be_halved_is_refused():
    with pytest.raises(ValueError, match="multiple of 2; got 5 x 5"):
        jax.eval_shape(TINY.init, jax.random.key(0), jnp.zeros((1, 5, 5, 1)), jnp.zeros(1, int))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("spectral_norm, num_frequencies", [(False, 3), (True, 0)])
def test_the_perceptron_is_the_formula(spectral_norm, num_frequencies):
    network = LevelPerceptron(
        hidden=6, num_hidden=2, embedding_features=4, spectral_norm=spectral_norm,
        input_scale=3.0, num_frequencies=num_frequencies, frequency=0.7,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(3, 2)), np.array([0, 2, 5])
    variables = random_variables(network, x, jnp.asarray(t), seed=1, mean=0.0, std=1.0)
    spectral = variables.get("spectral", {})

    def layer(name, h):
        kernel, bias = (variables["params"][name][leaf] for leaf in ("kernel", "bias"))
        if name in spectral:
            v = kernel @ spectral[name]["u"]
            v /= np.linalg.norm(v)
            kernel = kernel / np.linalg.norm(v @ kernel)
        return h @ kernel + bias

    swish = lambda h: h / (1 + np.exp(-h))
    angles = t[:, None] * np.array([1, 1e-4])
    temb = swish(layer("temb", np.concatenate([np.sin(angles), np.cos(angles)], 1)))
    phase = 2 * np.pi * 0.7 * x @ np.random.default_rng(0).normal(size=(2, num_frequencies))
    h = np.concatenate([3 * x, np.sin(phase), np.cos(phase)], axis=1)
    for i in range(2):
        h = swish(layer(f"hidden_{i}", h) + layer(f"level_{i}", temb))
    value = network.apply(variables, x, jnp.asarray(t))
    np.testing.assert_allclose(value, layer("out", h)[:, 0], rtol=1e-12)
    assert bool(spectral) == spectral_norm


def test_an_impossible_perceptron_is_refused():
    with pytest.raises(ValueError, match="unknown activation 'relu'"):
        LevelPerceptron(activation="relu")
    with pytest.raises(ValueError, match="embedding_features needs to be at least 4; got 3"):
        LevelPerceptron(embedding_features=3)
    with pytest.raises(ValueError, match="input_scale needs to be a positive number; got 0"):
        LevelPerceptron(input_scale=0)
    with pytest.raises(ValueError, match="num_frequencies needs to be 0 or more; got -1"):
        LevelPerceptron(num_frequencies=-1)
