# SPDX-License-Identifier: Apache-2.0
"""Matching of documents by their text: a transformer over sentence vectors, and a perceptron.

Sentence vectors come from a frozen encoder of sentences. Padding sentences are False in the mask
and change nothing.

Source: the text view of Bian et al. 2020 (MV-CoN), arXiv:2009.13299. Its published code lacks these
networks; sizes, the place of normalisations and the mean over sentences are choices of ours.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from scorejax.choices import require_known
from scorejax.models.layers import dense
from scorejax.models.transformer import EncoderLayer, masked_mean
from scorejax.random import Rng

FEATURES = {
    "concat": lambda r, j: jnp.concatenate([j, r], axis=-1),
    "concat_diff": lambda r, j: jnp.concatenate([j, r, j - r], axis=-1),
    "prod": lambda r, j: r * j,
    "concat_prod": lambda r, j: jnp.concatenate([j, r, r * j], axis=-1),
}
"""Features of a pair by name: (resume (b, e), job (b, e)) -> (b, f)."""


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
            layer = EncoderLayer(
                self.num_heads, 4 * self.width, dropout=self.dropout, name=f"layer_{i}"
            )
            h = layer(h, mask, dropout_rng)
        return masked_mean(h, mask)


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
