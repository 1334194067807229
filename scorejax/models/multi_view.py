# SPDX-License-Identifier: Apache-2.0
"""Two views of documents that share representations: their texts, and a graph that relates them.

The text view matches h~ = [h ; n] of a pair, with h the vector of a document's text and n that of
its node; the relation view matches n alone. Nodes start from a table of text vectors, which
training computes anew from time to time. Each view is a learner of its own: callers pass the other
one's vectors without gradients, see `systems.mv_con.learners`.

Documents are numbered as the nodes of the graph, see `data.matching_graph`.

Source: Bian et al. 2020 (MV-CoN), arXiv:2009.13299. The published code lacks the relation view.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from scorejax.choices import require_known
from scorejax.models.relational_gcn import Edges, RelationalGCN
from scorejax.models.text_matching import DocumentEncoder, Matcher
from scorejax.models.transformer import masked_mean
from scorejax.random import Rng

KINDS = ("resume", "job")
COSINE_SCALE = 5.0
"""First value of the factor of cosines, which lie about 0.3 apart: logits that differ by a few."""


class TextView(nn.Module):
    """An encoder for each kind of document, and a matcher of their vectors beside node vectors.

    A vector is that of the encoder, and the direction of the mean of the sentence vectors. To the
    logits of the matcher the cosine of two directions is added, times a factor that is learnt: the
    score of a frozen encoder of sentences, from which training starts. The paper trains its
    encoder of sentences instead.
    """

    encoder: DocumentEncoder
    matcher: Matcher

    def setup(self) -> None:
        self.cosine_scale = self.param("cosine_scale", nn.initializers.constant(COSINE_SCALE), ())
        self.resume, self.job = self.encoder.clone(parent=None), self.encoder.clone(parent=None)
        self.pair = self.matcher.clone(parent=None)

    def encode(
        self, kind: str, sentences: Array, mask: Array, dropout_rng: Rng | None = None
    ) -> Float[Array, "b e+d"]:
        """Vectors of documents of a kind, "resume" or "job"."""
        require_known("kind", kind, KINDS)
        encoded = getattr(self, kind)(sentences, mask, dropout_rng=dropout_rng)
        mean = masked_mean(sentences, mask)
        square = jnp.sum(mean**2, axis=1, keepdims=True)
        direction = mean * jax.lax.rsqrt(jnp.maximum(square, 1e-12))
        return jnp.concatenate([encoded, direction], axis=1)

    def __call__(
        self,
        sentences: tuple[Array, Array],
        masks: tuple[Array, Array],
        nodes: tuple[Array, Array] | None,
        dropout_rng: Rng | None = None,
    ) -> Float[Array, "b"]:
        """Logits; each argument is a pair, of the resumes and of the jobs. `nodes` may be None."""
        vectors = [
            self.encode(kind, *arrays, dropout_rng)
            for kind, *arrays in zip(KINDS, sentences, masks, strict=True)
        ]
        return self.match(*vectors, nodes)

    def match(
        self, resume: Array, job: Array, nodes: tuple[Array, Array] | None
    ) -> Float[Array, "b"]:
        """Logits of text vectors, beside which those of nodes stand unless they are None."""
        cut = self.encoder.width
        cosine = jnp.sum(resume[:, cut:] * job[:, cut:], axis=1)
        vectors = resume[:, :cut], job[:, :cut]
        if nodes is not None:
            vectors = [jnp.concatenate(both, axis=1) for both in zip(vectors, nodes, strict=True)]
        return self.pair(*vectors) + self.cosine_scale * cosine


class RelationView(nn.Module):
    """A relational graph convolution, and a matcher of its node vectors."""

    gcn: RelationalGCN
    matcher: Matcher

    def __call__(self, table: Array, edges: Edges, resume: Array, job: Array) -> Array:
        nodes = self.gcn(table, edges)
        return self.matcher(nodes[resume], nodes[job])

    def nodes(self, table: Array, edges: Edges) -> Array:
        return self.gcn(table, edges)

    def match(self, resume: Array, job: Array) -> Array:
        return self.matcher(resume, job)
