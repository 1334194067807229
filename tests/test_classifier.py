# SPDX-License-Identifier: Apache-2.0
"""Classifiers that return features, and features of any network by the names of its layers."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from scorejax.models.captured import capture_layers, layer_shapes, make_classified_fn
from scorejax.models.classifier import ConvClassifier, WideClassifier
from scorejax.models.wide_resnet import WideResNet, standardised
from tests.random_variables import random_variables

X = np.random.default_rng(0).uniform(size=(3, 8, 8, 1)).astype(np.float32)
CONV = ConvClassifier(num_classes=3, widths=(4, 8), features=6)
TINY = {"num_classes": 3, "width": 4, "widen_factor": 2, "num_blocks": 1, "num_stages": 2}
WIDE = WideClassifier(**TINY)


def variables_of(network, *inputs):
    return random_variables(network, *(inputs or (X[:1],)), seed=0, mean=0.0, std=0.5)


def test_wrn_28_10_without_noise_levels_has_its_number_of_parameters():
    # By the recipe: 3x3 convolutions without bias, a normalisation before each, shortcuts without
    # parameters, and a dense layer.
    size, c = 9 * 3 * 16, 16
    for features in (160, 320, 640):
        for _ in range(4):
            size += 2 * c + 9 * c * features + 2 * features + 9 * features**2
            c = features
    size += 2 * 640 + 641 * 10
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
    shapes = jax.eval_shape(WideClassifier().init, jax.random.key(0), image)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == size


def test_the_wide_classifier_is_the_noisy_one_whose_blocks_ignore_the_level():
    noisy, sigma = WideResNet(**TINY), jnp.ones(len(X))
    params = variables_of(noisy, X[:1], sigma[:1])["params"]
    without = flatten_dict(jax.eval_shape(WIDE.init, jax.random.key(0), X[:1])["params"])
    numbers = flatten_dict(params)
    assert without.keys() < numbers.keys()
    level = lambda path: 0.0 if path[1] == "temb" else 1.0
    ignoring = unflatten_dict({path: level(path) * leaf for path, leaf in numbers.items()})
    same = unflatten_dict({path: numbers[path] for path in without})
    expected = jax.jit(noisy.apply)({"params": ignoring}, X, sigma)
    value = jax.jit(WIDE.apply)({"params": same}, X).logits
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("network", [CONV, WIDE], ids=["conv", "wide"])
def test_the_classification_of_an_image_is_its_own(network):
    variables = variables_of(network)
    # Alone, XLA may add products in another order: a few units in the last place.
    apply = jax.jit(network.apply)
    together, alone = apply(variables, X), apply(variables, X[1:2])
    for batch, single in zip(together, alone, strict=True):
        scale = np.abs(batch).max()
        np.testing.assert_allclose(batch[1:2], single, rtol=1e-5, atol=1e-5 * scale)
    # Bit for bit, if its neighbours are exchanged.
    exchanged = apply(variables, np.stack([X[2], X[1], X[2]]))
    for batch, other in zip(together, exchanged, strict=True):
        np.testing.assert_array_equal(batch[1], other[1])


@pytest.mark.parametrize("network", [CONV, WIDE], ids=["conv", "wide"])
def test_logits_are_a_linear_map_of_the_features(network):
    variables = variables_of(network)
    value = jax.jit(network.apply)(variables, X)
    head = variables["params"]["out"]
    expected = value.features @ head["kernel"] + head["bias"][None]
    np.testing.assert_allclose(value.logits, expected, rtol=1e-5, atol=1e-5)
    if network is CONV:
        np.testing.assert_array_equal(value.features, np.maximum(value.pre_activations, 0))
        assert np.any(value.features == 0) and np.any(value.features > 0)
    else:
        # The mean of a ReLU is at least the ReLU of the mean; 1e-6 is rounding.
        assert np.all(value.features >= np.maximum(value.pre_activations, 0) - 1e-6)


def test_the_gradient_at_a_constant_image_is_finite():
    # The standard deviation, by which the wide network divides, has no derivative there.
    gradient = jax.grad(lambda x: standardised(x)[0, 0, 0, 0])(jnp.full((1, 4, 4, 1), 0.5))
    assert np.all(np.isfinite(gradient)) and np.any(gradient != 0)


class Body(nn.Module):
    """Two layers inside another."""

    @nn.compact
    def __call__(self, x):
        return nn.Conv(5, (1, 1), name="last")(nn.relu(nn.Conv(4, (1, 1), name="first")(x)))


class Nested(nn.Module):
    """A network whose parts have paths, one of which runs twice; returns more than logits."""

    @nn.compact
    def __call__(self, x):
        h = nn.Conv(4, (3, 3), name="stem")(x)
        h = Body(name="body")(h)
        twice = nn.Dense(5, name="twice")
        logits = nn.Dense(3, name="out")(twice(nn.relu(twice(h.mean(axis=(1, 2))))))
        return {"logits": logits, "loss": jnp.zeros(())}


def test_layers_are_captured_by_their_paths():
    network = Nested()
    variables = variables_of(network)
    assert layer_shapes(network, variables, X) == {
        "body": (3, 8, 8, 5),
        "body/first": (3, 8, 8, 4),
        "body/last": (3, 8, 8, 5),
        "out": (3, 3),
        "stem": (3, 8, 8, 4),
        "twice": (3, 5),
    }
    layers = ("stem", "body/last", "twice", "out")
    output, captured = capture_layers(network, variables, X, layers=layers)
    assert captured.keys() == set(layers)
    params = variables["params"]
    stem = nn.Conv(4, (3, 3)).apply({"params": params["stem"]}, X)
    np.testing.assert_allclose(captured["stem"], stem, rtol=1e-6)
    np.testing.assert_array_equal(captured["out"], output["logits"])
    _, inputs = capture_layers(network, variables, X, layers=("twice", "out"), side="input")
    np.testing.assert_array_equal(inputs["out"], captured["twice"])  # of its last run
    dense = lambda h, name: h @ params[name]["kernel"] + params[name]["bias"][None]
    pooled = np.mean(captured["body/last"], axis=(1, 2))
    np.testing.assert_allclose(
        inputs["twice"], np.maximum(dense(pooled, "twice"), 0), rtol=1e-5, atol=1e-6
    )


def test_any_network_classifies_by_the_name_of_a_layer():
    network = Nested()
    variables = variables_of(network)
    classify = make_classified_fn(network, "stem", logits="out")
    value = jax.jit(classify)(variables, X)
    output, captured = capture_layers(network, variables, X, layers=("stem",))
    np.testing.assert_allclose(value.logits, output["logits"], rtol=1e-5)
    np.testing.assert_allclose(value.features, np.mean(captured["stem"], axis=(1, 2)), rtol=1e-5)
    # Logits that are no single array need a name; our own classifiers need none of this.
    with pytest.raises(ValueError, match=r"one array \(b, k\); got .*Name their layer"):
        make_classified_fn(network, "stem")(variables, X)


def test_an_unknown_layer_is_answered_with_the_nearest():
    variables = variables_of(CONV)
    with pytest.raises(ValueError, match="unknown layer 'feature': did you mean 'features'"):
        capture_layers(CONV, variables, X, layers=("feature",))
    with pytest.raises(ValueError, match="unknown side 'inputs': did you mean 'input'"):
        capture_layers(CONV, variables, X, layers=("features",), side="inputs")


def test_captured_features_of_our_own_classifier_are_those_it_returns():
    variables = variables_of(CONV)
    value, captured = capture_layers(CONV, variables, X, layers=("features",))
    np.testing.assert_array_equal(captured["features"], value.pre_activations)
    _, inputs = capture_layers(CONV, variables, X, layers=("out",), side="input")
    np.testing.assert_array_equal(inputs["out"], value.features)
