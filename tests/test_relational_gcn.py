# SPDX-License-Identifier: Apache-2.0
"""The relational graph convolution against its formula with dense matrices, and its symmetries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorejax.models.relational_gcn import Edges, RelationalGCN, RelationalLayer, neighbour_means

NODES, DIM, RELATIONS, WIDTH = 9, 5, 3, 4
RNG = np.random.default_rng(0)
X = RNG.normal(size=(NODES, DIM)).astype(np.float32)
# Random edges, without doubles; nodes 7 and 8 receive none, and node 8 sends none either.
ADJACENCY = (RNG.random((RELATIONS, NODES, NODES)) < 0.3) & (np.arange(NODES) < 8)[None, None]
ADJACENCY[:, 7:] = False


def edges_of(adjacency, padding=0):
    """Edges of matrices (relation, target, source), in the promised order."""
    relation, target, source = np.nonzero(adjacency)
    order = np.lexsort((source, relation, target))
    pad = lambda a, value: jnp.asarray(np.pad(a[order], (0, padding), constant_values=value))
    num_nodes = adjacency.shape[1]
    return Edges(pad(source, num_nodes), pad(target, num_nodes), pad(relation, 0), len(adjacency))


def dense_layer(params, adjacency, x):
    kernels = params.get("kernels")
    if kernels is None:
        kernels = sum(
            params["coefficients"][:, b, None, None] * params["bases"][b][None]
            for b in range(len(params["bases"]))
        )
    total = x @ params["self_loop"]["kernel"]
    for matrix, kernel in zip(adjacency, kernels, strict=True):
        degree = np.maximum(matrix.sum(1, keepdims=True), 1)
        total = total + (matrix / degree) @ x @ kernel
    return total


@pytest.mark.parametrize("num_bases", [None, 2])
def test_the_network_is_its_formula_with_dense_matrices(num_bases):
    # Sums of at most 9 numbers of size 1, in single precision.
    net = RelationalGCN(WIDTH, num_layers=2, num_bases=num_bases)
    edges = edges_of(ADJACENCY)
    variables = jax.jit(net.init)(jax.random.key(0), X, edges)
    found = jax.jit(net.apply)(variables, X, edges)
    params = jax.tree.map(np.asarray, variables["params"])
    expected = X @ params["input"]["kernel"]
    for i in range(2):
        expected = np.maximum(dense_layer(params[f"layer_{i}"], ADJACENCY, expected), 0)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    # Without the last ReLU, where a wrong negative would not show.
    layer = RelationalLayer(WIDTH, num_bases)
    variables = jax.jit(layer.init)(jax.random.key(1), X, edges)
    expected = dense_layer(jax.tree.map(np.asarray, variables["params"]), ADJACENCY, X)
    found = jax.jit(layer.apply)(variables, X, edges)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    loop = X[7:] @ np.asarray(variables["params"]["self_loop"]["kernel"])
    np.testing.assert_allclose(found[7:], loop, atol=1e-6)  # isolated


def test_padding_edges_change_nothing():
    means = jax.jit(neighbour_means)
    np.testing.assert_array_equal(
        means(X, edges_of(ADJACENCY, padding=13)), means(X, edges_of(ADJACENCY))
    )
    total = jax.jit(jax.grad(lambda x, edges: jnp.sum(neighbour_means(x, edges) ** 2)))
    gradient = total(X, edges_of(ADJACENCY, padding=13))
    expected = total(X, edges_of(ADJACENCY))
    np.testing.assert_allclose(gradient, expected, atol=1e-6)
    assert np.abs(expected[:7]).max() > 0 and not np.asarray(gradient[8]).any()


def test_renumbered_nodes_have_the_same_vectors():
    net, order = RelationalGCN(WIDTH), RNG.permutation(NODES)
    variables = jax.jit(net.init)(jax.random.key(0), X, edges_of(ADJACENCY))
    apply = jax.jit(net.apply)
    expected = apply(variables, X, edges_of(ADJACENCY))[order]
    renumbered = ADJACENCY[:, order][:, :, order]
    np.testing.assert_allclose(
        apply(variables, X[order], edges_of(renumbered)), expected, atol=1e-5
    )


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="num_bases needs to be at least 1; got 0"):
        RelationalGCN(WIDTH, num_bases=0)
