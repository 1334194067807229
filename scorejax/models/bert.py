# SPDX-License-Identifier: Apache-2.0
"""BERT: a transformer encoder of token ids, with which published text encoders are made.

Each layer normalises after it adds: h = norm(h + attention(h)), then h = norm(h + mlp(h)).
Source: Devlin et al. 2019, arXiv:1810.04805; layers after Vaswani et al. 2017, arXiv:1706.03762.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from scorejax.choices import require
from scorejax.models.layers import Dense, Dtype

Mask = Bool[Array, "b t"] | Int[Array, "b t"] | Float[Array, "b t"]
"""Nonzero for tokens, zero for padding."""


class Bert(nn.Module):
    """Hidden states of tokens: (token_ids (b, t), mask (b, t), type_ids (b, t)) -> (b, t, d).

    Padding, where the mask is zero, changes no state of a token. Without `type_ids` all tokens have
    type 0. The defaults are those of BERT-base. There is no dropout, and no pooler: the states are
    those of the last layer.

    Raises: ValueError if a size is below 1, if `num_heads` does not divide `width`, or for more
    than `max_length` tokens.
    """

    vocab_size: int = 30_522
    width: int = 768
    num_layers: int = 12
    num_heads: int = 12
    hidden: int = 3072
    max_length: int = 512
    num_types: int = 2
    epsilon: float = 1e-12
    dtype: Dtype = None

    def __post_init__(self) -> None:
        super().__post_init__()
        names = (
            "vocab_size", "width", "num_layers", "num_heads", "hidden", "max_length", "num_types",
        )  # fmt: skip
        require(vars(self), names, lambda v: v >= 1, "to be at least 1")
        if self.width % self.num_heads:
            raise ValueError(
                f"num_heads needs to divide width={self.width}; got num_heads={self.num_heads}"
            )

    @nn.compact
    def __call__(
        self, token_ids: Int[Array, "b t"], mask: Mask, type_ids: Int[Array, "b t"] | None = None
    ) -> Float[Array, "b t d"]:
        num_tokens = token_ids.shape[1]
        if num_tokens > self.max_length:
            raise ValueError(f"Bert takes at most {self.max_length} tokens; got {num_tokens}")
        embed = lambda size, name: nn.Embed(
            size, self.width, embedding_init=nn.initializers.normal(0.02), dtype=self.dtype,
            name=name,
        )  # fmt: skip
        types = jnp.zeros_like(token_ids) if type_ids is None else type_ids
        h = embed(self.vocab_size, "words")(token_ids) + embed(self.num_types, "types")(types)
        h = h + embed(self.max_length, "positions")(jnp.arange(num_tokens))[None]
        h = nn.LayerNorm(self.epsilon, self.dtype, use_fast_variance=False, name="norm")(h)
        for i in range(self.num_layers):
            layer = EncoderLayer(
                self.num_heads, self.hidden, self.epsilon, self.dtype, name=f"layer_{i}"
            )
            h = layer(h, mask)
        return h


class EncoderLayer(nn.Module):
    """A layer of the transformer's encoder, normalised after each sum: (h (b, t, d), mask) -> h."""

    num_heads: int
    hidden: int
    epsilon: float = 1e-12
    dtype: Dtype = None

    @nn.compact
    def __call__(self, h: Float[Array, "b t d"], mask: Mask) -> Float[Array, "b t d"]:
        init, width = nn.initializers.normal(0.02), h.shape[-1]
        dense = lambda features, name: Dense(
            features, kernel_init=init, dtype=self.dtype, name=name
        )
        norm = lambda name: nn.LayerNorm(
            self.epsilon, self.dtype, use_fast_variance=False, name=name
        )
        query, key, value = (dense(width, name)(h) for name in ("query", "key", "value"))
        attended = masked_attention(query, key, value, mask, num_heads=self.num_heads)
        h = norm("attention_norm")(h + dense(width, "out")(attended))
        inner = nn.gelu(dense(self.hidden, "mlp_0")(h), approximate=False)
        return norm("mlp_norm")(h + dense(width, "mlp_1")(inner))


def masked_attention(
    query: Float[Array, "b q d"],
    key: Float[Array, "b t d"],
    value: Float[Array, "b t d"],
    mask: Mask,
    *,
    num_heads: int,
) -> Float[Array, "b q d"]:
    """Averages values by several heads with weights softmax(query . key / sqrt(d / num_heads)).

    Keys where the mask is zero have weight zero; where all are, the average is over all of them.
    The softmax is computed in at least float32.
    """
    split = lambda a: a.reshape(*a.shape[:2], num_heads, -1)
    query, key, value = split(query), split(key), split(value)
    wide = jnp.promote_types(query.dtype, jnp.float32)
    logits = jnp.einsum("bqhc,bkhc->bhqk", query, key, preferred_element_type=wide)
    logits = logits / math.sqrt(query.shape[-1])
    # Added, as published; infinities would make a row without any token not a number.
    lowest = jnp.where(mask != 0, 0, jnp.finfo(wide).min).astype(wide)
    weights = jax.nn.softmax(logits + lowest[:, None, None], axis=-1).astype(value.dtype)
    mixed = jnp.einsum("bhqk,bkhc->bqhc", weights, value)
    return mixed.reshape(*mixed.shape[:2], -1)


def mean_pool(hidden: Float[Array, "b t d"], mask: Mask) -> Float[Array, "b d"]:
    """The mean over tokens of their states; zero for a row without any."""
    present = (mask != 0).astype(hidden.dtype)
    count = jnp.maximum(present.sum(axis=1), 1)
    return jnp.einsum("btd,bt->bd", hidden, present) / count[:, None]
