# SPDX-License-Identifier: Apache-2.0
"""Relational graph convolution: node vectors from those of the neighbours, relation by relation.

A layer computes W_0 n_v + sum_r (1 / c_vr) sum_{u in N_r(v)} W_r n_u, with c_vr = |N_r(v)|, or 1
where that is 0. A node without neighbours has the self-loop W_0 alone. With a basis decomposition
W_r = sum_b a_rb V_b, relations with few edges share what others learn.

Source: Schlichtkrull et al. 2018, arXiv:1703.06103, Eqs. 2 and 3.
"""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from scorejax.models.layers import Dense, fan_avg_uniform


class Edges(flax.struct.PyTreeNode):
    """Directed edges: node `target` receives from node `source` along `relation`; int32 (e,) each.

    They are sorted by target, then by relation. Edges of the dummy node n, one past the last of n
    nodes, come last and are ignored: they pad the arrays to a fixed size.
    """

    source: Array
    target: Array
    relation: Array
    num_relations: int = flax.struct.field(pytree_node=False)


class RelationalLayer(nn.Module):
    """One layer, without an activation: (nodes (n, d), edges) -> (n, features).

    It sums vectors before it multiplies them, which takes n * num_relations * d numbers of memory.
    """

    features: int
    num_bases: int | None = None

    @nn.compact
    def __call__(self, nodes: Float[Array, "n d"], edges: Edges) -> Float[Array, "n features"]:
        kernels = self._kernels(edges.num_relations, nodes.shape[1])
        means = neighbour_means(nodes, edges)
        loop = Dense(self.features, use_bias=False, kernel_init=fan_avg_uniform(), name="self_loop")
        return loop(nodes) + jnp.einsum("nrd,rdw->nw", means, kernels)

    def _kernels(self, num_relations: int, dim: int) -> Float[Array, "r d w"]:
        each = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform", batch_axis=(0,))
        if self.num_bases is None:
            return self.param("kernels", each, (num_relations, dim, self.features))
        bases = self.param("bases", each, (self.num_bases, dim, self.features))
        # Variance 1 / num_bases keeps that of the sum.
        mix = nn.initializers.normal(self.num_bases**-0.5)
        coefficients = self.param("coefficients", mix, (num_relations, self.num_bases))
        return jnp.einsum("rb,bdw->rdw", coefficients, bases)


def neighbour_means(nodes: Float[Array, "n d"], edges: Edges) -> Float[Array, "n r d"]:
    """Mean vector of the neighbours of each node by relation; 0 where it has none."""
    num_segments = len(nodes) * edges.num_relations
    segment = edges.target * edges.num_relations + edges.relation
    total = lambda values: jax.ops.segment_sum(
        values, segment, num_segments, indices_are_sorted=True
    )  # which drops the dummy node, whose segments are past the last
    received = jnp.asarray(nodes).at[edges.source].get(mode="fill", fill_value=0)
    degree = jnp.maximum(total(jnp.ones(segment.shape, nodes.dtype)), 1)
    means = total(received) / degree[:, None]
    return means.reshape(len(nodes), edges.num_relations, -1)


class RelationalGCN(nn.Module):
    """Node vectors: a linear map of the inputs, then `num_layers` of ReLU(RelationalLayer).

    (nodes (n, d), edges) -> (n, width). A new node with edges from known ones has a vector without
    training, and changes none of theirs.

    Raises: ValueError unless width, num_layers and num_bases, where given, are at least 1.
    """

    width: int
    num_layers: int = 2
    num_bases: int | None = None

    def __post_init__(self) -> None:
        for name in ("width", "num_layers", "num_bases"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} needs to be at least 1; got {value}.")
        super().__post_init__()

    @nn.compact
    def __call__(self, nodes: Float[Array, "n d"], edges: Edges) -> Float[Array, "n width"]:
        h = Dense(self.width, use_bias=False, kernel_init=fan_avg_uniform(), name="input")(nodes)
        for i in range(self.num_layers):
            h = nn.relu(RelationalLayer(self.width, self.num_bases, name=f"layer_{i}")(h, edges))
        return h
