# SPDX-License-Identifier: Apache-2.0
"""The networks of NCSN and NCSNv2, and their published weights, against the official numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorejax import interop
from scorejax.interop import published
from scorejax.interop.networks import refinenet as refinenet_weights
from scorejax.models import refinenet
from scorejax.models.build import build_refinenet
from tests.published_files import Stored, torch_zip

SETTINGS = {"ngf": 8, "num_classes": 10, "image_size": 8, "num_channels": 3}


def to_images(a):
    return jnp.asarray(np.moveaxis(a, 1, -1), float)


def assert_golden(value, file, name, precision):
    """The file's tolerance in single precision, 1e-8 of the largest entry in double."""
    expected, tolerance = file[f"out64/{name}"], file[f"tol/{name}"]
    if precision == "float64":
        tolerance = 1e-8 * np.abs(expected).max(axis=(1, 2, 3), keepdims=True)
    assert (np.abs(np.moveaxis(np.asarray(value), -1, 1) - expected) <= tolerance).all()


def state_of(file, prefix="params/"):
    return {key.removeprefix(prefix): file[key] for key in file if key.startswith(prefix)}


@pytest.mark.deep
def test_the_first_ncsn_computes_the_official_numbers(golden, precision):
    file = golden("e_net_ncsn_v1")
    hyper = SETTINGS | {"image_size": 16}
    module, variables = interop.load_torch("ncsnv2/ncsn", state_of(file), **hyper)
    x, labels = to_images(file["in/x"]), jnp.asarray(file["in/labels"])
    assert_golden(jax.jit(module.apply)(variables, x, labels), file, "y", precision)


@pytest.mark.deep
@pytest.mark.parametrize("averaged", [True, False])
def test_the_official_checkpoint_computes_the_official_numbers(
    golden, precision, tmp_path, averaged
):
    file, path = golden("e_ckpt_ncsnv2"), tmp_path / "checkpoint.pth"
    raw = {key: Stored(array) for key, array in state_of(file).items()}
    ema = {key: Stored(array) for key, array in state_of(file, "in/ema/").items()}
    path.write_bytes(torch_zip([raw, {"lr": 1e-4}, 3, 70, ema]))
    assert interop.read_checkpoint(path).step == 70
    module, variables = interop.load_checkpoint(
        "ncsnv2/ncsnv2", path, averaged=averaged, **SETTINGS
    )
    x, labels = to_images(file["in/x"]), jnp.asarray(file["in/labels"])
    value = jax.jit(module.apply)(variables, x, labels)
    assert_golden(value, file, "y_ema" if averaged else "y_model", precision)


@pytest.mark.parametrize("name", refinenet_weights.ARCHITECTURES[:4])
def test_what_was_imported_is_exported_as_it_was(name):
    hyper = SETTINGS | {"image_size": 16}
    net, rng = refinenet_weights.build(name, hyper), np.random.default_rng(0)
    table = refinenet_weights.correspondence(net, hyper)
    state = {key: rng.normal(size=shape).astype("f4") for key, shape in table.shapes.items()}
    if name != "ncsnv2/ncsn":
        state["sigmas"] = refinenet_weights.sigmas(hyper).astype("f4")
    exported = interop.export_torch(name, interop.load_torch(name, state, **hyper)[1], **hyper)
    assert exported.keys() == state.keys()
    for key, tensor in state.items():
        assert exported[key].dtype == tensor.dtype
        np.testing.assert_array_equal(exported[key], tensor)


@functools.cache
def shapes(name, size=16, **options):
    options = {
        "nf": 128,
        "centered": False,
        "num_scales": 10,
        "dtype": "float32",
        "remat": False,
    } | options
    network = build_refinenet(name, size, options)
    image, label = (
        jax.ShapeDtypeStruct((2, size, size, 3), "float32"),
        jax.ShapeDtypeStruct((2,), "float32"),
    )
    init = lambda x, label: network.init_with_output(jax.random.key(0), x, label)
    return jax.eval_shape(init, image, label)


@pytest.mark.parametrize(
    ("name", "size", "count"),
    [
        ("ncsnv2", 32, 29_694_083),
        ("ncsnv2_deeper", 128, 83_445_379),
        ("ncsnv2_deepest", 256, 94_132_611),
    ],
)
def test_the_published_sizes(name, size, count):
    output, variables = shapes(name, size)
    assert output.shape == (2, size, size, 3)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == count


SMALL = {
    kind: kind(features=4, stages=refinenet.NCSNV2[:2])
    for kind in (refinenet.NCSNv2, refinenet.NCSN)
}
X = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype(np.float32)


@pytest.mark.deep
@pytest.mark.parametrize(
    "kind", [refinenet.NCSNv2, pytest.param(refinenet.NCSN, marks=pytest.mark.slow)]
)
def test_recomputed_blocks_have_the_same_gradients(kind):
    # The same operations in another order of memory: rounding only.
    label, gradients = jnp.asarray([0.0, 3.0]), []
    variables = jax.jit(SMALL[kind].init)(jax.random.key(1), X, label)
    for remat in (False, True):
        network = SMALL[kind].clone(remat=remat)
        loss = lambda v, network=network: jnp.mean(network.apply(v, X, label) ** 2)
        gradients.append(jax.jit(jax.grad(loss))(variables))
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradients[0]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * scale), *gradients)


@pytest.mark.deep
@pytest.mark.parametrize("kind", SMALL)
def test_only_the_first_ncsn_sees_its_label(kind):
    variables = jax.jit(SMALL[kind].init)(jax.random.key(1), X, jnp.zeros(2))
    apply = jax.jit(SMALL[kind].apply)
    first, other = (apply(variables, X, jnp.full(2, k)) for k in (0.0, 7.0))
    assert (np.abs(first - other).max() > 1e-3) == (kind is refinenet.NCSN)


def test_resizing_keeps_the_corners_and_linear_functions():
    # Linear interpolation of a linear function is exact; coordinates of the outer points agree.
    rows, columns = np.meshgrid(np.linspace(0, 1, 4), np.linspace(0, 1, 6), indexing="ij")
    x = jnp.asarray((2 * rows - 3 * columns)[None, :, :, None], jnp.float32)
    rows, columns = np.meshgrid(np.linspace(0, 1, 7), np.linspace(0, 1, 11), indexing="ij")
    y = refinenet.resize_bilinear(x, (7, 11))[0, :, :, 0]
    np.testing.assert_allclose(y, 2 * rows - 3 * columns, atol=1e-6)
    assert refinenet.resize_bilinear(x, (4, 6)) is x


class TestRefusals:
    @pytest.fixture(scope="class")
    def state(self, golden):
        return state_of(golden("e_ckpt_ncsnv2"), "params/module.")

    @pytest.mark.parametrize(
        ("architecture", "hyper", "message"),
        [
            ("ncsnv2/ncsnv2_deeper", {}, "46 missing, first res3.0.*50 misshapen"),
            ("ncsnv2/ncsnv2_deepest", {}, "84 missing, first res3.0"),
            ("ncsnv2/ncsnv2", {"ngf": 16}, "misshapen, first sigmas|misshapen, first begin_conv"),
            (
                "ncsnv2/ncsnv2",
                {"num_classes": 12},
                r"1 misshapen, first sigmas \(10,\) for \(12,\)",
            ),
            ("ncsnv2/ncsn", {}, "missing, first normalizer.embed.weight"),
            ("ncsnv2/ncsnv3", {}, "did you mean 'ncsnv2/ncsnv2'"),
            ("ncsnv2/ncsnv2", {"nfg": 8}, "unknown setting 'nfg': did you mean 'nf'"),
        ],
    )
    def test_weights_of_another_network(self, state, architecture, hyper, message):
        with pytest.raises(ValueError, match=message) as error:
            interop.load_torch(architecture, state, **SETTINGS | hyper)
        assert "\n" not in str(error.value)

    def test_a_network_of_another_depth(self):
        options = {"nf": 8, "centered": False, "num_scales": 10, "dtype": "float32", "remat": False}
        ours = build_refinenet("ncsnv2", 8, options)
        theirs = refinenet_weights.build("ncsnv2/ncsnv2_deeper", SETTINGS)
        with pytest.raises(ValueError, match="ncsnv2_deeper has stages=5; the config has 4"):
            published.require_same_network("ncsnv2/ncsnv2_deeper", theirs, ours)

    @pytest.mark.parametrize(
        ("name", "size", "change", "message"),
        [
            ("ncsnv3", 8, {}, "unknown model 'ncsnv3': did you mean 'ncsnv2'"),
            ("ncsnv2", 9, {}, "multiple of 2; got 9 x 9"),
            ("ncsnv2_deepest", 12, {}, "multiple of 8; got 12 x 12"),
            ("ncsnv2", 8, {"nf": 1}, "nf needs to be at least 2; got 1"),
            ("ncsnv2", 8, {"dtype": "float16"}, "did you mean 'bfloat16'"),
        ],
    )
    def test_networks_that_cannot_be(self, name, size, change, message):
        options = {"nf": 8, "centered": False, "num_scales": 10, "dtype": "float32", "remat": False}
        with pytest.raises(ValueError, match=message):
            build_refinenet(name, size, options | change)
