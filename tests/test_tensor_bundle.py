# SPDX-License-Identifier: Apache-2.0
"""TensorFlow's checkpoints are read without TensorFlow: one that it wrote, and ones written here.

goldens/j_checkpoint.* was written by TensorFlow 2.15.1 from the official network (commit 79aaadf)
of 4 channels and levels (1, 1) with random weights, its average, and Keras' Adam after one update;
goldens/j_checkpoint.npz holds what both networks computed.
"""

import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorejax import interop
from scorejax.interop import published
from scorejax.interop.networks.recovery_likelihood import build
from scorejax.interop.readers.crc32c import crc32c
from scorejax.interop.readers.tensor_bundle import read_bundle
from scorejax.models.mlp import LevelPerceptron
from scorejax.models.recovery_resnet import FINAL_ACTIVATIONS
from tests import tensorflow_files as writer

NAME = "recovery_likelihood/net_res_temb2"
HYPER = {"ch": 4, "ch_mult": [1, 1], "num_res_blocks": 1, "image_size": 8}
GOLDENS = pathlib.Path(__file__).parent / "goldens"
INDEX = GOLDENS / "j_checkpoint.index"
SHARD = "j_checkpoint.data-00000-of-00001"


@pytest.mark.parametrize("averaged", [True, False])
def test_a_file_of_tensorflow_computes_the_official_numbers(golden, averaged):
    file = golden("j_checkpoint")
    module, variables = interop.load_checkpoint(NAME, INDEX, averaged=averaged, **HYPER)
    value = jax.jit(module.apply)(variables, file["in/x"], jnp.asarray(file["in/t"]))
    expected = file["out/F_averaged" if averaged else "out/F_raw"]
    # Both in single precision, which rounds the features, of order one, to 1e-6 of them.
    np.testing.assert_allclose(value, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["j_checkpoint.index", "j_checkpoint", SHARD])
def test_a_checkpoint_has_three_names(name):
    checkpoint = interop.read_checkpoint(GOLDENS / name)
    assert checkpoint.layout == "tensorflow" and checkpoint.step == 35_000
    # Nine spectral layers with kernel, bias and vector, two of them with gains; one plain layer.
    assert len(checkpoint.raw) == 9 * 3 + 2 + 2
    assert checkpoint.raw.keys() == checkpoint.averaged.keys()
    assert not any("OPTIMIZER" in name or name.endswith("layer/W") for name in checkpoint.raw)


def test_weights_become_parameters_and_vectors_of_a_run():
    checkpoint = interop.read_checkpoint(INDEX)
    net, raw = interop.load_tensorflow(NAME, checkpoint.raw, **HYPER)
    averaged = interop.load_tensorflow(NAME, checkpoint.averaged, **HYPER)[1]
    config = {
        "nf": 4, "ch_mult": (1, 1), "num_res_blocks": 1, "attn_resolutions": (), "image_size": 8,
        "num_channels": 3, "activation": "leaky_relu", "final_activation": "relu", "gain": True,
        "spectral_norm": True, "conv_shortcut": True, "resamp_with_conv": False,
    }  # fmt: skip
    imported = published.variables_for(net.clone(remat=True), NAME, checkpoint, config)
    same = lambda a, b: jax.tree.map(np.testing.assert_array_equal, a, b)
    same(imported.params, raw["params"])
    same(imported.averaged, averaged["params"])
    same(imported.model_state, {"spectral": averaged["spectral"]})
    with pytest.raises(ValueError, match="has gain=False; the config has True"):
        published.variables_for(net, NAME, checkpoint, config | {"gain": False})
    with pytest.raises(ValueError, match="of class RecoveryResNet; the config's is LevelPerc"):
        published.variables_for(LevelPerceptron(), NAME, checkpoint, {"num_channels": 1})


MISTAKES = {
    "unknown": ({"chh": 4}, "unknown setting 'chh': did you mean 'ch'"),
    "activation": ({"act": "relu"}, "unknown act 'relu': .*known: lrelu, swish"),
    "normalised": ({"normalize": "group_norm"}, "without normalisation .* normalize='group_norm'"),
    "width": ({"ch": 8}, "misshapen, first conv2d_in/conv/w"),
    "no norm": ({"spec_norm": False}, "missing, first conv2d_in/conv/W"),
    "no gain": ({"res_use_scale": False}, "2 surplus, first res_levels/0/0/conv2d_2/conv/layer/g"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_settings_that_do_not_fit_are_one_line(name):
    change, message = MISTAKES[name]
    with pytest.raises(ValueError, match=message) as raised:
        interop.load_checkpoint(NAME, INDEX, **HYPER | change)
    assert "\n" not in str(raised.value)


def test_the_size_of_images_is_needed():
    hyper = {key: HYPER[key] for key in HYPER if key != "image_size"}
    with pytest.raises(ValueError, match="needs the setting image_size"):
        interop.load_checkpoint(NAME, INDEX, **hyper)


def test_a_final_leaky_relu_is_none_as_in_the_published_code():
    module = build(NAME, HYPER | {"final_act": "lrelu"})
    features = jnp.array([-1.0, 2.0])
    np.testing.assert_array_equal(FINAL_ACTIVATIONS[module.final_activation](features), features)


def test_the_dead_kernels_are_never_read():
    weights = interop.read_checkpoint(INDEX).raw
    kernels = {name: weights[name] for name in weights if name.endswith("/w")}
    dead = {f"{name.removesuffix('w')}layer/W": np.nan * kernels[name] for name in kernels}
    loaded = [interop.load_tensorflow(NAME, w, **HYPER)[1] for w in (weights, weights | dead)]
    for leaf, other in zip(*map(jax.tree.leaves, loaded), strict=True):
        np.testing.assert_array_equal(leaf, other)


def test_checksums_are_those_of_the_standard():
    # RFC 3720, B.4, and a computation bit by bit around the lengths where the parts change.
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    data = np.random.default_rng(0).integers(0, 256, 4099, np.uint8).tobytes()
    for length in (0, 1, 511, 512, 513, 1023, 1024, 1025, 4099):
        assert crc32c(data[:length]) == writer.crc32c(data[:length])


RNG = np.random.default_rng(0)
TENSORS = {
    "model/net/a/w": RNG.normal(size=(3, 3, 2, 4)).astype("f4"),
    "model/net/a/b": RNG.normal(size=4),
    "model/net/scalar": np.array(7, "i8"),
    "model/net/none": np.zeros((0, 3), "f4"),
    "model/net/ünïcode": RNG.normal(size=5).astype("f2"),
    **{f"model/net/many/{i}": RNG.normal(size=2).astype("f4") for i in range(30)},
}


@pytest.mark.parametrize(("shards", "per_block"), [(1, 100), (3, 4)])
def test_what_is_written_is_read(tmp_path, shards, per_block):
    index = writer.write_bundle(tmp_path / "ckpt-1", TENSORS, shards=shards, per_block=per_block)
    arrays = read_bundle(index, lambda name: "net/many" not in name)
    assert arrays.keys() == {name for name in TENSORS if "net/many" not in name}
    for name, array in arrays.items():
        assert array.dtype == TENSORS[name].dtype and array.shape == TENSORS[name].shape
        np.testing.assert_array_equal(array, TENSORS[name])
    assert len(read_bundle(index, lambda name: True)) == len(TENSORS)


ARRAY = np.arange(6, dtype="f4").reshape(2, 3)
KEY = b"model/net/w/.ATTRIBUTES/VARIABLE_VALUE"


def index_of(*values, head=None, key=KEY, kind=0, offset=0, **changes):
    """An index with the description of one tensor, or with `values` in its place."""
    values = values or (writer.entry(ARRAY, offset, **changes),)
    items = [(b"", head or writer.header(1)), *((key, value) for value in values)]
    return writer.table([writer.block(items, kind=kind)], [key])


def with_footer(offset, size):
    whole = index_of()
    footer = writer.varint(0) * 2 + writer.varint(offset) + writer.varint(size)
    return whole[:-48] + footer.ljust(40, b"\0") + whole[-8:]


def flipped(data, at):
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


SLICES = writer.entry(ARRAY, 0) + writer.field(7, b"")
LONG = writer.field(1, 1) + writer.varint(2 << 3 | 2) + writer.varint(2**40)
BAD_INDICES = {
    "damaged": (flipped(index_of(), 10), "the checksum of a block differs"),
    "truncated": (index_of()[:-9] + index_of()[-8:], "the checksum of a block differs"),
    "cut": (index_of()[:-3], "not a checkpoint of a known kind"),
    "compressed": (index_of(kind=1), "compressed blocks"),
    "of a big-endian machine": (index_of(head=writer.header(1, 1)), "big-endian"),
    "of no shards": (index_of(head=writer.field(3, b"")), "0 shards"),
    "of shards that are bytes": (index_of(head=writer.field(1, b"1")), "a damaged index"),
    "a block beyond the end": (with_footer(5, 2**50), "a block lies outside the file"),
    "an endless number": (index_of()[:-48] + b"\xff" * 40 + index_of()[-8:], "more than 64 bits"),
    "a long name": (index_of(key=b"model/net/" + b"a" * 5000), "longer than its block"),
    "a long field": (index_of(LONG), "a field is longer than its message"),
    "text": (index_of(dtype=7), "of type 7, which is not one of numbers"),
    "in slices": (index_of(SLICES), "in slices"),
    "huge": (index_of(shape=(2**40, 3)), "24 bytes where 3298534883328 numbers"),
    "negative": (index_of(shape=(2**64 - 1,)), "impossible shape"),
    "of many axes": (index_of(shape=(1,) * 9), "impossible shape"),
    "larger than its shard": (
        index_of(size=2**45),
        "larger than w.data-00000-of-00001, which has 24",
    ),
    "beyond its shard": (index_of(offset=2**62), "lies outside w.data-00000-of-00001"),
    "another checksum": (index_of(checksum=b"abcd"), "its checksum differs"),
    "no variables": (index_of(key=b"model/other"), "without variables model/net/..."),
}


@pytest.mark.parametrize("name", BAD_INDICES)
def test_a_bad_index_is_one_line(tmp_path, name):
    data, message = BAD_INDICES[name]
    (tmp_path / "w.index").write_bytes(data)
    (tmp_path / "w.data-00000-of-00001").write_bytes(ARRAY.tobytes())
    with pytest.raises(ValueError, match=message) as raised:
        interop.read_checkpoint(tmp_path / "w.index")
    assert "\n" not in str(raised.value) and "w.index" in str(raised.value)


def test_shards_that_are_missing_or_damaged_are_named(tmp_path):
    shutil.copy(INDEX, tmp_path)
    with pytest.raises(FileNotFoundError, match=f"no file .*{SHARD}, which"):
        interop.read_checkpoint(tmp_path / INDEX.name)
    data = (GOLDENS / SHARD).read_bytes()
    checkpoint = interop.read_checkpoint(INDEX)
    arrays = [*checkpoint.raw.values(), *checkpoint.averaged.values()]
    # As long as what is read from it, but the optimiser's tensors lie between.
    (tmp_path / SHARD).write_bytes(data[: 8 + sum(array.nbytes for array in arrays)])
    with pytest.raises(ValueError, match=f"tensor .* lies outside {SHARD}, which may be truncated"):
        interop.read_checkpoint(tmp_path / INDEX.name)
    (tmp_path / SHARD).write_bytes(data[:100])
    with pytest.raises(ValueError, match=f"larger than {SHARD}, which has 100 bytes"):
        interop.read_checkpoint(tmp_path / INDEX.name)
    (tmp_path / SHARD).write_bytes(bytes(len(data)))
    with pytest.raises(ValueError, match=r"tensor .* is damaged: its checksum differs"):
        interop.read_checkpoint(tmp_path / INDEX.name)
    (tmp_path / "w.index").write_bytes(index_of(writer.entry(ARRAY, 0, shard=3)))
    with pytest.raises(FileNotFoundError, match=r"no file .*w\.data-00003-of-00001"):
        interop.read_checkpoint(tmp_path / "w.index")


def test_random_descriptions_of_tensors_are_refused_or_read(tmp_path):
    # Right checksums and random contents: whatever they say, it ends in an array or in one line.
    rng, outcomes = np.random.default_rng(1), set()
    (tmp_path / "w.data-00000-of-00001").write_bytes(ARRAY.tobytes())
    good = writer.entry(ARRAY, 0)
    for i in range(200):
        value = bytearray(good)
        for _ in range(rng.integers(1, 4)):
            value[rng.integers(len(value))] = rng.integers(256)
        (tmp_path / "w.index").write_bytes(index_of(bytes(value)))
        try:
            interop.read_checkpoint(tmp_path / "w.index")
            outcomes.add("read")
        except (ValueError, FileNotFoundError) as error:
            assert "\n" not in str(error), i
            outcomes.add(type(error).__name__)
    assert "ValueError" in outcomes
