# SPDX-License-Identifier: Apache-2.0
"""A score U-Net that runs several passes and feeds decoded features back to its encoder.

This applies the idea of BiO-Net (arXiv:2007.00243) to a score network. All passes share weights. At
each encoder level the output of the first block is concatenated with the features that the previous
pass decoded at that level, and mapped linearly to its own width; the first pass concatenates it
with itself, as in BiO-Net. Passes have no separate normalisations: group normalisation keeps no
statistics, and batch statistics would mix noise levels. Instead, an embedding of the number of the
pass is added to that of the noise level. The parameter count does not depend on the number of
passes.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from scorejax.models.layers import dense, sinusoidal_embedding
from scorejax.models.ncsnpp import NCSNpp, require_halvings
from scorejax.random import Rng

Levels = list[Array]
"""Decoded features of each level, finest first."""


class RecurrentPass(NCSNpp):
    """One pass of a conditional NCSN++: returns its output and its decoded features.

    `backward` holds the decoded features of the previous pass, or None in the first; `number`
    counts passes from 0. Raises: as NCSNpp; and ValueError unless conditional=True and
    progressive="none".
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.conditional or self.progressive != "none":
            raise ValueError(
                "a recurrent NCSN++ needs conditional=True and progressive='none'; got "
                f"conditional={self.conditional}, progressive={self.progressive!r}"
            )

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        label: Array,
        backward: Levels | None,
        number: int,
        *,
        dropout_rng: Rng | None = None,
    ) -> tuple[Float[Array, "b h w c"], Levels]:
        require_halvings(x.shape, len(self.ch_mult) - 1)
        temb = self._embed(label) + self._embed_number(number)
        if not self.centered:
            x = 2 * x - 1

        def join(h: Array, level: int) -> Array:
            both = jnp.concatenate([h, h if backward is None else backward[level]], axis=-1)
            return dense(h.shape[-1], dtype=self.dtype, name=f"down_{level}_join")(both)

        h, skips = self._encode(x, temb, dropout_rng, join)
        h = self._middle(h, temb, dropout_rng)
        levels, _ = self._decode(h, skips, temb, dropout_rng, channels=x.shape[-1])
        return self._head(levels[0], x.shape[-1], name="out"), levels

    def _embed_number(self, number: int) -> Float[Array, "1 e"]:
        embedding = sinusoidal_embedding(jnp.full(1, number, jnp.float32), self.nf)
        return dense(4 * self.nf, name="pass")(embedding)


class Recurrent(nn.Module):
    """The score network (x (b, h, w, c), label (b,)) -> (b, h, w, c), the output of the last pass.

    `recurrence` is the number of passes. Raises: ValueError if it is below 1.
    """

    network: RecurrentPass
    recurrence: int = 2

    def __post_init__(self) -> None:
        if self.recurrence < 1:
            raise ValueError(f"recurrence needs to be at least 1 pass; got {self.recurrence}")
        super().__post_init__()

    def __call__(
        self, x: Float[Array, "b h w c"], label: Array, *, dropout_rng: Rng | None = None
    ) -> Float[Array, "b h w c"]:
        backward = None
        for number in range(self.recurrence):
            output, backward = self.network(x, label, backward, number, dropout_rng=dropout_rng)
        return output
