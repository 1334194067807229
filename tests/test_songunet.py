# SPDX-License-Identifier: Apache-2.0
"""EDM's networks: official numbers, sizes, labels, precision, and the loading of weights.

Single precision is held to the tolerance in the file, ten times the official rounding error;
double precision to 1e-8 of the largest entry of each example.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorejax import interop
from scorejax.models.dhariwal import DhariwalUNet, MultiHeadAttention, cosine_sine_embedding
from scorejax.models.songunet import SongUNet
from tests.random_variables import random_variables
from tests.slow import SINGLE_AND_DOUBLE, slow_where
from tests.trees import assert_equal

SONG = {
    "model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [8],
    "embedding_type": "fourier", "encoder_type": "residual", "decoder_type": "standard",
    "channel_mult_noise": 2, "resample_filter": [1, 3, 3, 1], "img_resolution": 16,
    "in_channels": 3, "out_channels": 3, "label_dim": 0, "augment_dim": 0,
}  # fmt: skip
DDPMPP = {
    "embedding_type": "positional", "encoder_type": "standard", "channel_mult_noise": 1,
    "resample_filter": [1, 1],
}  # fmt: skip
ADM = {
    "model_channels": 32, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [8],
    "img_resolution": 16, "in_channels": 3, "out_channels": 3, "label_dim": 4, "augment_dim": 0,
}  # fmt: skip
NETWORKS = {
    "i_net_ddpmpp": ("edm/song_unet", SONG | DDPMPP),
    "i_net_ncsnpp": ("edm/song_unet", SONG),
    "i_net_ncsnpp_cond": ("edm/song_unet", SONG | {"label_dim": 5, "augment_dim": 9}),
    "i_net_skip": ("edm/song_unet", SONG | {"encoder_type": "skip", "decoder_type": "skip"}),
    "i_net_adm": ("edm/dhariwal_unet", ADM),
}
INPUTS = ("x", "noise_labels", "class_labels", "augment_labels")


def nhwc(a):
    return np.moveaxis(a, 1, -1) if a.ndim == 4 else a


def state_of(file):
    return {key.removeprefix("params/"): file[key] for key in file if key.startswith("params/")}


@pytest.mark.deep
@pytest.mark.parametrize("precision", SINGLE_AND_DOUBLE)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_gives_the_official_output(golden, name, precision):
    file, (architecture, hyper) = golden(name), NETWORKS[name]
    with jax.enable_x64(precision == "float64"):
        module, variables = interop.load_torch(architecture, state_of(file), **hyper)
        inputs = [jnp.asarray(nhwc(file[f"in/{k}"]), float) for k in INPUTS if f"in/{k}" in file]
        value = np.asarray(jax.jit(module.apply)(variables, *inputs))
    expected, tolerance = nhwc(file["out64/y"]), nhwc(file["tol/y"])
    if precision == "float64":
        tolerance = 1e-8 * np.abs(expected).max(axis=(1, 2, 3), keepdims=True)
    assert value.dtype == precision and value.shape == expected.shape
    assert np.all(np.abs(value - expected) <= tolerance)


@pytest.mark.parametrize("name", NETWORKS)
def test_an_official_network_is_exported_as_it_was(golden, name):
    state, (architecture, hyper) = state_of(golden(name)), NETWORKS[name]
    variables = interop.load_torch(architecture, state, **hyper)[1]
    exported = interop.export_torch(architecture, variables, **hyper)
    assert exported.keys() == state.keys()
    for key, tensor in state.items():
        assert exported[key].dtype == tensor.dtype
        np.testing.assert_array_equal(exported[key], tensor)


def block_size(c_in, c_out, emb, *, modulations=1, shortcut=True):
    """Parameters of a residual block: two normalisations, two 3x3 convolutions, label, shortcut."""
    convolutions = 9 * c_in * c_out + c_out + 9 * c_out * c_out + c_out
    size = 2 * c_in + convolutions + modulations * (emb + 1) * c_out + 2 * c_out
    return size + (c_in + 1) * c_out * shortcut


def attention_size(c):
    return 2 * c + 4 * (c + 1) * c


def body_size(nf, mult, blocks, has_attention, *, first, attend_all, channels=3, **adm):
    """Parameters of encoder, middle, decoder and head, by the recipe of the paper."""
    emb, last = 4 * nf, nf * mult[-1]
    block = functools.partial(block_size, emb=emb, **adm)
    joined = lambda a, b: block(a, b, shortcut=a != b)
    size, c, skips = (9 * channels + 1) * first, first, [first]
    for level, m in enumerate(mult):
        if level:
            size += block(c, c, shortcut=not adm)
            skips.append(c)
        for _ in range(blocks):
            size += joined(c, nf * m) + attention_size(nf * m) * has_attention(level)
            c = nf * m
            skips.append(c)
    size += 2 * block(last, last, shortcut=False) + attention_size(last)
    for level in reversed(range(len(mult))):
        for _ in range(blocks + 1):
            size += joined(c + skips.pop(), nf * mult[level])
            c = nf * mult[level]
        size += attention_size(c) * has_attention(level) * (blocks + 1 if attend_all else 1)
        size += block(c, c, shortcut=not adm) * (level > 0)
    return size + 2 * c + (9 * c + 1) * channels


NCSNPP_FIELDS = {
    "embedding_type": "fourier", "channel_mult_noise": 2, "fir_kernel": (1, 3, 3, 1),
    "progressive_input": "residual",
}  # fmt: skip
PUBLISHED = {  # fields, size, labels
    "cifar10 ddpmpp": ({"ch_mult": (2, 2, 2), "augment_dim": 9}, 32, 0),
    "cifar10 ddpmpp conditional": (
        {"ch_mult": (2, 2, 2), "augment_dim": 9, "label_dim": 10}, 32, 10,
    ),
    "cifar10 ncsnpp": (NCSNPP_FIELDS | {"ch_mult": (2, 2, 2), "augment_dim": 9}, 32, 0),
    "ffhq and afhqv2 ddpmpp": ({"augment_dim": 9}, 64, 0),
    "ffhq and afhqv2 ncsnpp": (NCSNPP_FIELDS | {"augment_dim": 9}, 64, 0),
}  # fmt: skip


def shapes_of(network, size, labels):
    image, one = jax.ShapeDtypeStruct((2, size, size, 3), "float32"), jnp.ones(2)
    arguments = (image, one, jnp.ones((2, labels)) if labels else None)
    out, variables = jax.eval_shape(network.init_with_output, jax.random.key(0), *arguments)
    assert out.shape == image.shape
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables))


# By default one of each kind, of which one has labels.
@pytest.mark.deep
@pytest.mark.parametrize(
    "name",
    slow_where(
        lambda name: name not in ("cifar10 ddpmpp conditional", "ffhq and afhqv2 ncsnpp"), PUBLISHED
    ),
)
def test_full_size_networks_have_their_number_of_parameters(name):
    fields, size, labels = PUBLISHED[name]
    network = SongUNet(**fields)
    mult, nf = network.ch_mult, 128
    noise = nf * network.channel_mult_noise
    expected = (noise + 1) * 4 * nf + (4 * nf + 1) * 4 * nf + 9 * noise + (labels > 0) * noise
    expected += labels * noise
    expected += body_size(
        nf, mult, 4, lambda level: size >> level == 16, first=nf, attend_all=False
    )
    if "ncsnpp" in name:  # the frequencies, and the residual pyramid of the input
        widths = [3, *(nf * m for m in mult)]
        expected += nf + sum((9 * a + 1) * b for a, b in itertools.pairwise(widths[:-1]))
    assert shapes_of(network, size, labels) == expected


@pytest.mark.deep
def test_the_imagenet_network_has_its_number_of_parameters():
    nf, labels, mult = 192, 1000, (1, 2, 3, 4)
    expected = (nf + 1) * 4 * nf + (4 * nf + 1) * 4 * nf + labels * 4 * nf
    expected += body_size(
        nf, mult, 3, lambda level: level > 0, first=nf, attend_all=True, modulations=2
    )
    value = shapes_of(DhariwalUNet(label_dim=labels), 64, labels)
    # The paper's Table 3 rounds it to 296 million.
    assert value == expected and round(value / 1e6) == 296


def tiny(kind, **fields):
    options = {"nf": 8, "ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": (4,)}
    return kind(**options | fields)


def initialised(network):
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    noise = jnp.array([-0.5, 1.5])
    return x, noise, random_variables(network, x, noise, seed=2, mean=0.2, std=0.3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [SongUNet, DhariwalUNet])
def test_a_network_begins_at_zero(kind):
    x = jnp.ones((1, 8, 8, 3))
    out, _ = tiny(kind).init_with_output(jax.random.key(0), x, jnp.ones(1))
    # SongUNet's last weights have a standard deviation of 1e-5 / sqrt(fan).
    assert jnp.abs(out).max() < 1e-4


@pytest.mark.deep
@pytest.mark.parametrize("kind", [SongUNet, pytest.param(DhariwalUNet, marks=pytest.mark.slow)])
def test_labels_act_and_missing_ones_are_zeros(kind):
    network = tiny(kind, label_dim=3, augment_dim=2)
    x, noise, variables = initialised(network)
    apply = functools.partial(network.apply, variables, x, noise)
    zeros = (jnp.zeros((2, 3)), jnp.zeros((2, 2)))
    plain = apply()
    np.testing.assert_array_equal(apply(*zeros), plain)
    classes, augmented = jnp.eye(3)[:2], jnp.eye(2)
    for labels in ((classes,), (None, augmented)):
        assert jnp.abs(apply(*labels) - plain).max() > 1e-3
    with pytest.raises(ValueError, match="class_labels need 3 entries"):
        apply(jnp.zeros((2, 4)))


@pytest.mark.parametrize("kind", [SongUNet, pytest.param(DhariwalUNet, marks=pytest.mark.slow)])
def test_a_class_is_withheld_in_training_only(kind):
    network = tiny(kind, label_dim=3, label_dropout=1.0, dropout=0.0)
    x, noise, variables = initialised(network)
    apply = functools.partial(network.apply, variables, x, noise)
    classes = jnp.eye(3)[:2]
    trained = apply(classes, dropout_rng=jax.random.split(jax.random.key(3), 2))
    np.testing.assert_array_equal(trained, apply())
    # Outputs are of size one: this is a hundred roundings.
    assert jnp.abs(apply(classes) - trained).max() > 1e-4


@pytest.mark.deep
@pytest.mark.parametrize("kind", [SongUNet, pytest.param(DhariwalUNet, marks=pytest.mark.slow)])
def test_bfloat16_and_remat_keep_names_and_nearly_the_values(kind):
    network = tiny(kind)
    x, noise, variables = initialised(network)
    expected = jax.jit(network.apply)(variables, x, noise)
    value = jax.jit(network.clone(dtype=jnp.bfloat16, remat=True).apply)(variables, x, noise)
    assert value.dtype == jnp.float32
    # bfloat16 rounds to 2^-9 = 0.2 %; some 30 roundings of random sign lie on the way: 1 %.
    error = jnp.linalg.norm(value - expected) / jnp.linalg.norm(expected)
    assert 1e-5 < error < 0.05


@pytest.mark.deep
def test_other_options_keep_the_size_of_the_image():
    x = jax.ShapeDtypeStruct((1, 32, 32, 2), "float32")
    for encoder in ("none", "input_skip", "residual"):
        for decoder in ("none", "output_skip"):
            network = SongUNet(
                nf=12, ch_mult=(1, 1, 2), num_res_blocks=2, attn_resolutions=(), out_channels=5,
                progressive_input=encoder, progressive=decoder, channel_mult_emb=2,
            )  # fmt: skip
            out, _ = jax.eval_shape(network.init_with_output, jax.random.key(0), x, jnp.ones(1))
            assert out.shape == (1, 32, 32, 5)


@pytest.mark.deep
def test_heads_of_attention_do_not_see_each_other():
    # With the value of one head alone not zero, only the outputs that read that head can move.
    x = jax.random.normal(jax.random.key(0), (2, 3, 3, 128))
    layer = MultiHeadAttention()
    variables = layer.init(jax.random.key(1), x)["params"]
    variables["out"]["kernel"] = jnp.eye(128)
    shifted = dict(variables, value={**variables["value"]})
    half = jnp.where(jnp.arange(128) < 64, 1.0, 0.0)
    shifted["value"]["kernel"] = variables["value"]["kernel"] * (1 + half)[None]
    change = layer.apply({"params": shifted}, x) - layer.apply({"params": variables}, x)
    assert jnp.abs(change[..., :64]).min() > 0 and jnp.abs(change[..., 64:]).max() == 0


def test_the_embedding_is_a_slowing_clock(x64):
    label = jnp.array([0.0, 1.7, 900.0])
    value = cosine_sine_embedding(label, 8)
    angles = np.outer(label, 10_000.0 ** (-np.arange(4) / 4))
    np.testing.assert_allclose(value, np.hstack([np.cos(angles), np.sin(angles)]), atol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_block": 2}, "did you mean 'num_blocks'"),
        ({"encoder_type": "residul"}, "did you mean 'residual'"),
        ({"resample_filter": [1, 3, 3, 1]}, "is not the setting resample_filter"),
        ({"num_blocks": 2}, r"\d+ missing, first enc.16x16_block1"),
    ],
)
def test_settings_and_tensors_that_do_not_fit_are_named_in_one_line(golden, change, message):
    hyper = SONG | DDPMPP | change
    with pytest.raises(ValueError, match=message) as raised:
        interop.load_torch("edm/song_unet", state_of(golden("i_net_ddpmpp")), **hyper)
    assert "\n" not in str(raised.value)


def test_settings_of_the_other_network_and_unknown_architectures_are_refused(golden):
    state = state_of(golden("i_net_adm"))
    with pytest.raises(ValueError, match="unknown setting 'encoder_type'"):
        interop.load_torch("edm/dhariwal_unet", state, **ADM, encoder_type="standard")
    with pytest.raises(ValueError, match="did you mean 'edm/song_unet'"):
        interop.load_torch("edm/songunet", state, **ADM)
    with pytest.raises(ValueError, match="img_resolution"):
        interop.load_torch("edm/dhariwal_unet", state, model_channels=32)


def test_prefixes_and_settings_of_the_preconditioner_change_nothing(golden):
    state = {f"model.{k}": v for k, v in state_of(golden("i_net_ddpmpp")).items()}
    hyper = SONG | DDPMPP | {"sigma_data": 0.5, "use_fp16": False, "model_type": "SongUNet"}
    _, variables = interop.load_torch("edm/song_unet", state, **hyper)
    _, again = interop.load_torch(
        "edm/song_unet", state_of(golden("i_net_ddpmpp")), **SONG | DDPMPP
    )
    assert_equal(variables, again)
