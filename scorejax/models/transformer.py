# SPDX-License-Identifier: Apache-2.0
"""The transformer's encoder: layers over sequences with padding, and means over their entries.

Source: Vaswani et al. 2017, arXiv:1706.03762, Section 3.1; normalisation after each sum.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from scorejax.models.layers import Dense, Dropout, Dtype
from scorejax.random import Rng

Mask = Bool[Array, "b t"]
"""True for entries, False for padding."""


class EncoderLayer(nn.Module):
    """A layer of the transformer's encoder, normalised after each sum: (h (b, t, d), mask) -> h.

    Entries outside the mask are not attended to. `dropout_rng` is a key or one per row; without it
    there is no dropout.
    """

    num_heads: int
    hidden: int
    epsilon: float = 1e-12
    dropout: float = 0.0
    dtype: Dtype = None

    @nn.compact
    def __call__(
        self, h: Float[Array, "b t d"], mask: Mask, dropout_rng: Rng | None = None
    ) -> Float[Array, "b t d"]:
        init, width = nn.initializers.normal(0.02), h.shape[-1]
        dense = lambda features, name: Dense(
            features, kernel_init=init, dtype=self.dtype, name=name
        )
        norm = lambda name: nn.LayerNorm(
            self.epsilon, self.dtype, use_fast_variance=False, name=name
        )
        query, key, value = (dense(width, name)(h) for name in ("query", "key", "value"))
        drop = lambda h, name: Dropout(self.dropout, name=name)(h, dropout_rng)
        attended = masked_attention(query, key, value, mask, num_heads=self.num_heads)
        h = norm("attention_norm")(h + drop(dense(width, "out")(attended), "attention_dropout"))
        inner = nn.gelu(dense(self.hidden, "mlp_0")(h), approximate=False)
        return norm("mlp_norm")(h + drop(dense(width, "mlp_1")(inner), "mlp_dropout"))


def masked_attention(
    query: Float[Array, "b q d"],
    key: Float[Array, "b t d"],
    value: Float[Array, "b t d"],
    mask: Mask,
    *,
    num_heads: int,
) -> Float[Array, "b q d"]:
    """Averages values by several heads with weights softmax(query . key / sqrt(d / num_heads)).

    Keys outside the mask have weight zero; where all are, the average is over all of them.
    The softmax is computed in at least float32.
    """
    split = lambda a: a.reshape(*a.shape[:2], num_heads, -1)
    query, key, value = split(query), split(key), split(value)
    wide = jnp.promote_types(query.dtype, jnp.float32)
    logits = jnp.einsum("bqhc,bkhc->bhqk", query, key, preferred_element_type=wide)
    logits = logits / math.sqrt(query.shape[-1])
    # Added, as published; infinities would make a row without any token not a number.
    lowest = jnp.where(mask, 0, jnp.finfo(wide).min).astype(wide)
    weights = jax.nn.softmax(logits + lowest[:, None, None], axis=-1).astype(value.dtype)
    mixed = jnp.einsum("bhqk,bkhc->bqhc", weights, value)
    return mixed.reshape(*mixed.shape[:2], -1)


def masked_mean(x: Float[Array, "*b t d"], mask: Bool[Array, "*b t"]) -> Float[Array, "*b d"]:
    """Mean over the entries of the mask; 0 if there are none."""
    count = jnp.maximum(jnp.sum(mask, axis=-1, keepdims=True), 1)
    return jnp.sum(jnp.where(mask[..., None], x, 0), axis=-2) / count
