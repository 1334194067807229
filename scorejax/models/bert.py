# SPDX-License-Identifier: Apache-2.0
"""BERT: a transformer encoder of token ids, with which published text encoders are made.

Each layer normalises after it adds: h = norm(h + attention(h)), then h = norm(h + mlp(h)).
Source: Devlin et al. 2019, arXiv:1810.04805; layers after Vaswani et al. 2017, arXiv:1706.03762.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from scorejax.choices import require
from scorejax.models.layers import Dtype
from scorejax.models.transformer import EncoderLayer, Mask


class Bert(nn.Module):
    """Hidden states of tokens: (token_ids (b, t), mask (b, t), type_ids (b, t)) -> (b, t, d).

    Padding, where the mask is False, changes no state of a token. Without `type_ids` all tokens
    have type 0. The defaults are those of BERT-base. There is no dropout, and no pooler: the states
    are those of the last layer.

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
                self.num_heads, self.hidden, self.epsilon, dtype=self.dtype, name=f"layer_{i}"
            )
            h = layer(h, mask)
        return h
