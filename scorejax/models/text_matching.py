# SPDX-License-Identifier: Apache-2.0
"""Matching of documents by their text: a transformer over sentence vectors, and a perceptron.

Sentence vectors come from a frozen encoder of sentences. Padding sentences are False in the mask
and change nothing.

Source: the text view of Bian et al. 2020 (MV-CoN), arXiv:2009.13299. Its published code lacks these
networks; sizes, the place of normalisations and the mean over sentences are choices of ours.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from scorejax.choices import require_known
from scorejax.models.layers import Dropout, dense
from scorejax.random import Rng

FEATURES = {
    "concat": lambda r, j: jnp.concatenate([j, r], axis=-1),
    "concat_diff": lambda r, j: jnp.concatenate([j, r, j - r], axis=-1),
    "prod": lambda r, j: r * j,
}
"""Features of a pair by name: (resume (b, e), job (b, e)) -> (b, f)."""


class TransformerLayer(nn.Module):
    """Self-attention, then two dense layers, each added and normalised (post-LN).

    x (b, s, w) with mask (b, s) -> (b, s, w). Entries outside the mask are not attended to.
    Source: Vaswani et al. 2017, arXiv:1706.03762, Section 3.1.
    """

    num_heads: int
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self, x: Float[Array, "b s w"], mask: Bool[Array, "b s"], dropout_rng: Rng | None = None
    ) -> Float[Array, "b s w"]:
        width = x.shape[-1]
        drop = lambda h, name: Dropout(self.dropout, name=name)(h, dropout_rng)
        h = dense(width, name="out")(self._attended(x, mask))
        x = nn.LayerNorm(name="norm_attention")(x + drop(h, "dropout_attention"))
        h = nn.gelu(dense(4 * width, name="hidden")(x), approximate=False)
        h = dense(width, name="back")(h)
        return nn.LayerNorm(name="norm_dense")(x + drop(h, "dropout_dense"))

    def _attended(self, x: Array, mask: Array) -> Array:
        heads = (*x.shape[:2], self.num_heads, -1)
        query, key, value = (
            dense(x.shape[-1], name=name)(x).reshape(heads) for name in ("query", "key", "value")
        )
        logits = jnp.einsum("bqhc,bkhc->bhqk", query, key) / math.sqrt(query.shape[-1])
        # Finite, so that a document without sentences has a vector.
        logits = jnp.where(mask[:, None, None], logits, jnp.finfo(logits.dtype).min)
        return jnp.einsum("bhqk,bkhc->bqhc", jax.nn.softmax(logits), value).reshape(x.shape)


class DocumentEncoder(nn.Module):
    """Vectors of documents: (sentences (b, s, d), mask (b, s)) -> (b, width).

    Adds learned positions to a linear map of the sentence vectors, runs `num_layers` transformer
    layers, and averages over the sentences of the mask; a document without any has the vector 0.
    `dropout_rng` is a key or one per document; without it there is no dropout.

    Raises: ValueError if num_heads does not divide width, or for more than max_sentences sentences.
    """

    width: int
    num_layers: int = 1
    num_heads: int = 4
    dropout: float = 0.0
    max_sentences: int = 20

    def __post_init__(self) -> None:
        if self.width < 1 or self.num_heads < 1 or self.width % self.num_heads:
            raise ValueError(
                f"width needs to be a multiple of num_heads={self.num_heads}; got {self.width}."
            )
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        sentences: Float[Array, "b s d"],
        mask: Bool[Array, "b s"],
        *,
        dropout_rng: Rng | None = None,
    ) -> Float[Array, "b width"]:
        num = sentences.shape[1]
        if num > self.max_sentences:
            raise ValueError(
                f"documents need at most max_sentences={self.max_sentences} sentences; got {num}. "
                "Cut them, or enlarge max_sentences."
            )
        init = nn.initializers.normal(0.02)
        positions = self.param("positions", init, (self.max_sentences, self.width))
        h = dense(self.width, name="input")(sentences) + positions[None, :num]
        for i in range(self.num_layers):
            layer = TransformerLayer(self.num_heads, self.dropout, name=f"layer_{i}")
            h = layer(h, mask, dropout_rng)
        return masked_mean(h, mask)


def masked_mean(x: Float[Array, "*b s w"], mask: Bool[Array, "*b s"]) -> Float[Array, "*b w"]:
    """Mean over the entries of the mask; 0 if there are none."""
    count = jnp.maximum(jnp.sum(mask, axis=-1, keepdims=True), 1)
    return jnp.sum(jnp.where(mask[..., None], x, 0), axis=-2) / count


class Matcher(nn.Module):
    """Logits of pairs: (resume (b, e), job (b, e)) -> (b,), by one hidden layer of ReLU units.

    `features` names the features of a pair, see FEATURES. Raises: ValueError if it is unknown.
    """

    hidden: int
    features: str = "concat_diff"

    def __post_init__(self) -> None:
        require_known("features", self.features, FEATURES)
        super().__post_init__()

    @nn.compact
    def __call__(self, resume: Float[Array, "b e"], job: Float[Array, "b e"]) -> Float[Array, "b"]:
        h = FEATURES[self.features](resume, job)
        return dense(1, name="out")(nn.relu(dense(self.hidden, name="hidden")(h)))[:, 0]
