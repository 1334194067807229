# SPDX-License-Identifier: Apache-2.0
"""FID's InceptionV3 against the PyTorch network, layer by layer, with random weights.

The golden numbers are those of torch-fidelity 0.4.0 with weights and images that follow from seeds;
at 75 pixels, the smallest image that reaches every layer.
"""

import jax
import numpy as np
import pytest

from scorejax.interop.networks import inception as weights
from scorejax.models.inception import BLOCKS, Inception, resized
from tests.published_files import safetensors


def random_state(shapes):
    """Weights under which activations keep their size, by the names of the published file."""
    rng = np.random.default_rng(0)

    def draw(name, shape):
        if name.endswith("running_var"):
            return rng.uniform(0.5, 2.0, shape)
        if name.endswith("bn.weight"):
            return rng.uniform(0.5, 1.5, shape)
        if name.endswith(("bn.bias", "running_mean")):
            return 0.2 * rng.normal(size=shape)
        return rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:]))

    return {name: draw(name, shapes[name]).astype(np.float32) for name in sorted(shapes)}


def official_shapes():
    return weights.correspondence().shapes


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "inception.safetensors"
    path.write_bytes(safetensors(random_state(official_shapes())))
    return path


@pytest.mark.deep
def test_every_block_gives_the_official_output(golden, path):
    file = golden("inception")
    network, variables = weights.load_inception(path)
    images = np.random.default_rng(1).random((2, 75, 75, 3)).astype(np.float32)
    found, state = network.apply(
        variables, images, resize=False, capture_intermediates=True, mutable=["intermediates"]
    )
    for name, _, _ in BLOCKS:
        expected = file[name]
        (value,) = state["intermediates"][name]["__call__"]
        # Single precision on both sides, through up to 94 layers.
        np.testing.assert_allclose(value[:, 0, 0], expected, atol=1e-4 * np.abs(expected).max())
    for name, value in found._asdict().items():
        np.testing.assert_allclose(value, file[name], atol=1e-4 * np.abs(file[name]).max())


def test_images_are_resized_as_pytorch_does(golden):
    small = np.random.default_rng(2).random((1, 5, 4, 3)).astype(np.float32)
    value = resized(small)[:, ::23, ::29]
    np.testing.assert_allclose(value, golden("inception")["resized"], atol=1e-5)  # of at most 1


def test_it_has_the_size_of_the_published_network():
    # As counted by PyTorch for the published file, with its running statistics, without fc.bias.
    image = jax.ShapeDtypeStruct((1, 299, 299, 3), "float32")
    shapes = jax.eval_shape(Inception().init, jax.random.key(0), image)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 23_884_384


def test_weights_that_do_not_fit_are_named_in_one_line(tmp_path):
    ones = lambda *shape: np.ones(shape, np.float32)
    cases = {
        "471 missing, first .*; 1 surplus, first head": {"head": ones(3)},
        "470 missing, first .*; 1 misshapen, first fc.weight": {"fc.weight": ones(2, 2)},
    }
    for message, content in cases.items():
        path = tmp_path / "weights.safetensors"
        path.write_bytes(safetensors(content))
        with pytest.raises(ValueError, match=message) as raised:
            weights.load_inception(path)
        assert "\n" not in str(raised.value)
    with pytest.raises(FileNotFoundError, match="is not there: get the weights of FID"):
        weights.load_inception(tmp_path / "nowhere.pth")


def test_grey_images_are_refused():
    with pytest.raises(ValueError, match=r"colour images \(b, h, w, 3\); got \(1, 8, 8, 1\)"):
        jax.eval_shape(Inception().init, jax.random.key(0), np.ones((1, 8, 8, 1), np.float32))
