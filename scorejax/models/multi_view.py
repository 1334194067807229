# SPDX-License-Identifier: Apache-2.0
"""Two views of documents that share representations: their texts, and a graph that relates them.

The text view matches h~ = [h ; n] of a pair, with h the vector of a document's text and n that of
its node; the relation view matches n alone. Nodes start from a table of text vectors, which
training computes anew from time to time. The parameters of the views are the subtrees "text" and
"relation" of one tree; the logits of one view have no gradient in those of the other.

Documents are numbered as the nodes of the graph, see `data.matching_graph`.

Source: Bian et al. 2020 (MV-CoN), arXiv:2009.13299. The published code lacks the relation view.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from scorejax.choices import require_known
from scorejax.models.relational_gcn import Edges, RelationalGCN
from scorejax.models.text_matching import DocumentEncoder, Matcher
from scorejax.random import Rng
from scorejax.typing import Params

KINDS = ("resume", "job")


class TextView(nn.Module):
    """An encoder for each kind of document, and a matcher of their vectors beside node vectors."""

    encoder: DocumentEncoder
    matcher: Matcher

    def setup(self) -> None:
        self.resume, self.job = self.encoder.clone(parent=None), self.encoder.clone(parent=None)
        self.match = self.matcher.clone(parent=None)

    def encode(
        self, kind: str, sentences: Array, mask: Array, dropout_rng: Rng | None = None
    ) -> Float[Array, "b e"]:
        """Vectors of documents of a kind, "resume" or "job"."""
        require_known("kind", kind, KINDS)
        return getattr(self, kind)(sentences, mask, dropout_rng=dropout_rng)

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
        if nodes is not None:
            vectors = [jnp.concatenate(both, axis=1) for both in zip(vectors, nodes, strict=True)]
        return self.match(*vectors)


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


@dataclasses.dataclass(frozen=True)
class MultiView:
    """Both views as functions of one tree of parameters, {"text": ..., "relation": ...}.

    A step computes `node_vectors` once, for both views: the text view takes them as constants.
    """

    text: TextView
    relation: RelationView

    def init(
        self,
        rng: PRNGKeyArray,
        sentences: Float[Array, "n s d"],
        mask: Bool[Array, "n s"],
        edges: Edges,
    ) -> Params:
        """Initial parameters for documents of these shapes."""
        text_rng, relation_rng = jax.random.split(rng)
        first, one = jnp.zeros((1,), jnp.int32), jnp.zeros((1, self.relation.gcn.width))
        pair = lambda a: (a[:1], a[:1])
        text = self.text.init(text_rng, pair(sentences), pair(mask), (one, one))
        table = jnp.zeros((len(sentences), self.text.encoder.width))
        relation = self.relation.init(relation_rng, table, edges, first, first)
        return {"text": text["params"], "relation": relation["params"]}

    def document_vectors(
        self,
        params: Params,
        kind: str,
        sentences: Float[Array, "n s d"],
        mask: Bool[Array, "n s"],
        *,
        chunk: int = 256,
    ) -> Float[Array, "n e"]:
        """Text vectors of documents of a kind, "resume" or "job", without gradients or dropout.

        `chunk` documents are in memory at a time. The table of `node_vectors` is made of them, in
        the order of the nodes. Raises: ValueError for an unknown kind.
        """
        variables = {"params": jax.lax.stop_gradient(params["text"])}

        def encode(document: tuple[Array, Array]) -> Array:
            s, m = document
            return self.text.apply(variables, kind, s[None], m[None], method="encode")[0]

        return jax.lax.map(encode, (sentences, mask), batch_size=chunk)

    def node_vectors(
        self, params: Params, table: Float[Array, "n e"], edges: Edges
    ) -> Float[Array, "n w"]:
        """Node vectors from a table of text vectors, to which they carry no gradient."""
        variables = {"params": params["relation"]}
        return self.relation.apply(variables, jax.lax.stop_gradient(table), edges, method="nodes")

    def text_logits(
        self,
        params: Params,
        sentences: Float[Array, "n s d"],
        mask: Bool[Array, "n s"],
        nodes: Float[Array, "n w"],
        resume: Int[Array, "b"],
        job: Int[Array, "b"],
        *,
        dropout_rng: Rng | None = None,
    ) -> Float[Array, "b"]:
        """Logits of pairs by their texts; node vectors carry no gradient."""
        pair = lambda a: (a[resume], a[job])
        nodes = jax.lax.stop_gradient(nodes)
        variables = {"params": params["text"]}
        return self.text.apply(variables, pair(sentences), pair(mask), pair(nodes), dropout_rng)

    def relation_logits(
        self,
        params: Params,
        nodes: Float[Array, "n w"],
        resume: Int[Array, "b"],
        job: Int[Array, "b"],
    ) -> Float[Array, "b"]:
        """Logits of pairs by their node vectors."""
        variables = {"params": params["relation"]}
        return self.relation.apply(variables, nodes[resume], nodes[job], method="match")
