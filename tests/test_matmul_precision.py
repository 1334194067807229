# SPDX-License-Identifier: Apache-2.0
"""Programs of evaluations ask for products in float32, whatever JAX's default is on a device.

CPUs compute in float32 anyway, so the programs themselves are read, as they are lowered for the
compiler.
"""

import collections
import dataclasses
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.score_sde import digits
from scorejax.attacks.adaptive import nearest_of_another_class
from scorejax.bregman.scan import block_scan
from scorejax.data.features import FeaturePreparation
from scorejax.density import score_flow
from scorejax.evaluate.sample_quality import inception_features
from scorejax.failures.scores import SCORES
from scorejax.models import layers
from scorejax.models.bert import Bert
from scorejax.models.convolution import conv
from scorejax.models.inception import Inception
from scorejax.models.vector_field import VectorField
from scorejax.score_model import EvaluationOptions
from scorejax.systems import load_model
from scorejax.text.bert_encoder import sentence_vectors

ROWS = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2))
FEATURES = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
IMAGES = jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32)


def precisions(fn, *arguments):
    """Kinds of products in a program, and the precisions that each kind asks for."""
    found = collections.defaultdict(set)
    for line in jax.jit(fn).lower(*arguments).as_text().splitlines():
        kind = re.search(r"stablehlo\.(dot_general|convolution)", line)
        if kind:
            operands = re.findall(r"\b(HIGHEST|HIGH|DEFAULT)\b", line)
            found[kind[1]].update(operands or ["unset"])
    return dict(found)


class Network(nn.Module):
    """A convolution of ours, one of Flax, an attention and a linear map of the label."""

    @nn.compact
    def __call__(self, x, label, dropout_rng=None):
        h = layers.Conv(4, name="ours")(x) + nn.Dense(4)(label[:, None])[:, None, None]
        h = layers.Attention(num_groups=1, name="attention")(nn.silu(h))
        return nn.Conv(1, (3, 3))(nn.silu(h))


def make_model(precision="highest"):
    network = Network()
    options = EvaluationOptions(eval_matmul_precision=precision)
    model = load_model(digits.get_config("debug"))
    return dataclasses.replace(model, network=network, eval_options=options)


VARIABLES = jax.eval_shape(Network().init, jax.random.key(0), IMAGES, jnp.ones(2))["params"], {}


def of(name):
    return {"dot_general": {name}, "convolution": {name}}


@pytest.mark.deep
@pytest.mark.parametrize("exact", [False, True], ids=["hutchinson", "exact"])
def test_likelihood_and_divergence(exact):
    rows = {"image": IMAGES, "rng": ROWS}
    assert precisions(make_model().likelihood(exact=exact), VARIABLES, rows) == of("HIGHEST")


def test_samples_by_an_adaptive_solve():
    assert precisions(make_model().sampler("ode"), VARIABLES, ROWS) == of("HIGHEST")


@pytest.mark.slow
def test_latents_by_an_adaptive_solve():
    ends = {"start": IMAGES, "end": IMAGES}
    assert precisions(make_model().interpolation(3), VARIABLES, ends) == of("HIGHEST")


def test_the_option_reaches_the_network():
    found = precisions(make_model("default").sampler("ode"), VARIABLES, ROWS)
    # The solver's own sums over its stages are dot products, which diffrax has in float32 always.
    assert found == {"dot_general": {"DEFAULT", "HIGHEST"}, "convolution": {"DEFAULT"}}


@pytest.mark.deep
@pytest.mark.parametrize("default", ["default", "highest"])
def test_other_samplers_and_training_follow_jax(default):
    model, x = make_model(), jnp.ones((2, 8, 8, 1))
    loss = lambda params: jnp.sum(model.network.apply({"params": params}, x, jnp.ones(2)) ** 2)
    with jax.default_matmul_precision(default):
        assert precisions(model.sampler("heun"), VARIABLES, ROWS) == of(default.upper())
        assert precisions(jax.grad(loss), VARIABLES[0]) == of(default.upper())


@pytest.mark.deep
def test_features_of_samples():
    network = Inception()
    weights = jax.eval_shape(network.init, jax.random.key(0), jnp.ones((1, 32, 32, 3)))
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.uint8)
    assert precisions(inception_features(network), weights, images) == of("HIGHEST")


def test_scans_of_the_index():
    block = block_scan.Block(jnp.ones((1, 64, 3)), jnp.ones((1, 64)))
    queries = jnp.ones((8, 3)), jnp.ones(8)
    smallest = lambda *arrays: block_scan.smallest_scores(*arrays, num=2)
    only = {"dot_general": {"HIGHEST"}}
    assert precisions(smallest, block, *queries) == only
    assert precisions(block_scan.at_most, block, *queries, jnp.ones(8)) == only


@pytest.mark.parametrize(
    "name", ["mahalanobis", "relative_mahalanobis", "virtual_logit", "stored_patterns"]
)
def test_scores_of_features_and_their_gradients(name):
    labels, logits = np.arange(8) % 2, 4 * np.eye(2, dtype=np.float32)[np.arange(8) % 2]
    params = SCORES[name].fit(FEATURES, logits, labels)
    total = lambda features: jnp.sum(SCORES[name].score(params, features, logits))
    # The pattern of a class is picked by its index, without a product of matrices.
    products = {} if name == "stored_patterns" else {"dot_general": {"HIGHEST"}}
    assert precisions(jax.value_and_grad(total), FEATURES) == products


def test_targets_of_feature_matching():
    label = jnp.arange(8) % 2
    found = precisions(nearest_of_another_class, FEATURES, label, FEATURES, label)
    assert found == {"dot_general": {"HIGHEST"}}


def test_prepared_features_with_noise_of_their_atoms():
    preparation = FeaturePreparation.of(np.maximum(FEATURES, 0))
    found = precisions(lambda x: preparation(x, jax.random.key(0)), FEATURES)
    assert preparation.noise.any() and found == {"dot_general": {"HIGHEST"}}


def test_log_densities_by_a_score():
    network = VectorField(3, 8)
    variables = jax.eval_shape(network.init, jax.random.key(0), FEATURES, FEATURES[:, 0])

    def log_prob(variables, x):
        flow = score_flow.ScoreFlow(variables, jnp.zeros(()), network, score_flow.SDE)
        return score_flow.log_prob(flow, x)

    assert precisions(log_prob, variables, FEATURES) == {"dot_general": {"HIGHEST"}}


def test_vectors_of_sentences():
    network = Bert(vocab_size=5, width=4, num_layers=1, num_heads=2, hidden=4, max_length=3)
    tokens = jax.ShapeDtypeStruct((2, 3), jnp.int32)
    variables = jax.eval_shape(network.init, jax.random.key(0), tokens, tokens)
    vectors = lambda *arguments: sentence_vectors(network, *arguments)
    assert precisions(vectors, variables, tokens, tokens) == {"dot_general": {"HIGHEST"}}


def test_the_derivatives_of_a_convolution_keep_its_precision():
    # They are traced where the context of the forward pass has ended.
    def convolved(x, kernel):
        with jax.default_matmul_precision("highest"):
            return jnp.sum(conv(x, kernel) ** 2)

    kernel = jax.ShapeDtypeStruct((3, 3, 1, 1), jnp.float32)
    hessian_product = lambda x, kernel: jax.grad(
        lambda x: jnp.sum(jax.grad(convolved)(x, kernel) ** 2)
    )(x)
    only = {"convolution": {"HIGHEST"}}
    assert precisions(jax.grad(convolved, (0, 1)), IMAGES, kernel) == only
    assert precisions(hessian_product, IMAGES, kernel) == only


def test_an_unknown_precision_is_refused():
    with pytest.raises(
        ValueError, match="unknown eval_matmul_precision 'higest': did you mean 'hi"
    ):
        EvaluationOptions(eval_matmul_precision="higest")
