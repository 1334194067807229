# SPDX-License-Identifier: Apache-2.0
"""The text view's networks against NumPy, and under masks."""

import jax
import numpy as np
import pytest
from scipy.special import erf, softmax

from scorejax.models.text_matching import DocumentEncoder, Matcher

RNG = np.random.default_rng(0)
NUM, SENTENCES, DIM, WIDTH, HEADS = 5, 6, 3, 8, 2
X = RNG.normal(size=(NUM, SENTENCES, DIM)).astype(np.float32)
MASK = np.arange(SENTENCES)[None] < np.array([6, 4, 1, 3, 0])[:, None]
ENCODER = DocumentEncoder(WIDTH, num_layers=2, num_heads=HEADS, dropout=0.2, max_sentences=9)


@pytest.fixture(scope="module")
def encoder():
    variables = jax.jit(ENCODER.init)(jax.random.key(0), X, MASK)
    # Positions and biases start near 0, where errors would not show.
    leaves, tree = jax.tree.flatten(variables)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [a + 0.3 * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, noisy), jax.jit(ENCODER.apply)


def reference(params, sentences):
    """The vector of one document (s, d) without padding, head by head."""
    linear = lambda p, x: x @ p["kernel"] + p["bias"]

    def normalized(p, x):
        centred = x - x.mean(1, keepdims=True)
        return (
            p["scale"] * centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-6) + p["bias"]
        )

    x = linear(params["input"], sentences) + params["positions"][: len(sentences)]
    for i in range(2):
        p, heads = params[f"layer_{i}"], []
        q, k, v = (linear(p[name], x) for name in ("query", "key", "value"))
        for part in np.split(np.arange(WIDTH), HEADS):
            weights = softmax(q[:, part] @ k[:, part].T / np.sqrt(len(part)), axis=1)
            heads.append(weights @ v[:, part])
        x = normalized(p["attention_norm"], x + linear(p["out"], np.concatenate(heads, axis=1)))
        h = linear(p["mlp_0"], x)
        h = h * (1 + erf(h / np.sqrt(2))) / 2
        x = normalized(p["mlp_norm"], x + linear(p["mlp_1"], h))
    return x.mean(0)


@pytest.mark.deep
def test_a_document_is_encoded_as_by_numpy(encoder):
    # Two layers of sums of at most 32 numbers of size 1, in single precision.
    variables, apply = encoder
    params = jax.tree.map(lambda a: np.asarray(a, float), variables["params"])
    found = apply(variables, X, MASK)
    for i in range(NUM - 1):
        expected = reference(params, X[i, MASK[i]].astype(float))
        np.testing.assert_allclose(found[i], expected, atol=1e-5)
    assert not np.asarray(found[-1]).any()  # no sentences


def test_padding_changes_no_vector(encoder):
    variables, apply = encoder
    expected = apply(variables, X, MASK)
    rubbish = np.where(MASK[..., None], X, 1e3).astype(np.float32)
    np.testing.assert_array_equal(apply(variables, rubbish, MASK), expected)
    more = np.pad(X, ((0, 0), (0, 3), (0, 0))), np.pad(MASK, ((0, 0), (0, 3)))
    np.testing.assert_allclose(apply(variables, *more), expected, atol=1e-6)


def test_dropout_draws_for_each_document_from_its_key(encoder):
    variables, apply = encoder
    keys = jax.random.split(jax.random.key(2), NUM)
    dropped = apply(variables, X, MASK, dropout_rng=keys)
    alone = jax.jit(ENCODER.apply)(variables, X[1:2], MASK[1:2], dropout_rng=keys[1:2])
    np.testing.assert_allclose(dropped[1:2], alone, atol=1e-5)
    assert np.abs(dropped - apply(variables, X, MASK))[0].max() > 1e-2


def test_a_matcher_reads_the_features_it_is_named_for():
    resume, job = RNG.normal(size=(2, 4, 3)).astype(np.float32)
    expected = {
        "concat": np.concatenate([job, resume], 1),
        "concat_diff": np.concatenate([job, resume, job - resume], 1),
        "prod": job * resume,
    }
    for name, features in expected.items():
        net = Matcher(7, name)
        variables = jax.jit(net.init)(jax.random.key(0), resume, job)
        p = jax.tree.map(np.asarray, variables["params"])
        hidden = np.maximum(features @ p["hidden"]["kernel"] + p["hidden"]["bias"], 0)
        logits = (hidden @ p["out"]["kernel"] + p["out"]["bias"])[:, 0]
        found = jax.jit(net.apply)(variables, resume, job)
        np.testing.assert_allclose(found, logits, atol=1e-5)


def test_impossible_networks_are_refused():
    with pytest.raises(ValueError, match="multiple of num_heads=3; got 8"):
        DocumentEncoder(8, num_heads=3)
    with pytest.raises(ValueError, match="did you mean 'concat_diff'"):
        Matcher(8, "concat_dif")
    with pytest.raises(ValueError, match="max_sentences=2 sentences; got 6"):
        DocumentEncoder(8, max_sentences=2).init(jax.random.key(0), X, MASK)
