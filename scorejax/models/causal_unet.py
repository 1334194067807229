# SPDX-License-Identifier: Apache-2.0
"""Gated residual blocks of causal convolutions, as a U-Net for any region of an image.

Source: Salimans et al. 2017, arXiv:1701.05517, Sections 2.3-2.4.
"""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from scorejax.models.layers import Dropout, Dtype
from scorejax.models.line_buffer import WholeImage, update_if
from scorejax.models.weight_norm import WeightNormConv, WeightNormSpread
from scorejax.random import Rng

Conditioning = tuple[Float[Array, "b e"] | None, Rng | None]
"""(condition, dropout_rng), which go to every block."""


def concat_elu(x: Float[Array, "*b c"]) -> Float[Array, "*b 2*c"]:
    """ELU of x and of -x."""
    return nn.elu(jnp.concatenate([x, -x], axis=-1))


class GatedBlock(nn.Module):
    """Residual block x + a sigmoid(g), where a and g come from two convolutions.

    A linear map of the activated `shortcut` is added between the convolutions, one of the condition
    after the second.
    """

    size: tuple[int, int]
    dropout: float
    dtype: Dtype = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w n"],
        shortcut: Float[Array, "b h w m"] | None,
        region: WholeImage,
        conditioning: Conditioning,
    ) -> Float[Array, "b h w n"]:
        filters, (condition, rng) = x.shape[-1], conditioning
        window = region.window(f"{self.name}/conv_0", self.size, concat_elu(x))
        h = WeightNormConv(filters, self.size, dtype=self.dtype, name="conv_0")(window)
        if shortcut is not None:
            layer = WeightNormConv(filters, dtype=self.dtype, name="shortcut")
            h = h + layer(concat_elu(shortcut))
        h = Dropout(self.dropout, name="dropout")(concat_elu(h), rng)
        window = region.window(f"{self.name}/conv_1", self.size, h)
        layer = WeightNormConv(
            2 * filters, self.size, init_scale=0.1, dtype=self.dtype, name="conv_1"
        )
        h = layer(window)
        if condition is not None:
            init = nn.initializers.normal(0.05)
            layer = nn.Dense(
                2 * filters, use_bias=False, kernel_init=init, dtype=self.dtype, name="condition"
            )
            h = h + layer(condition)[:, None, None]
        value, gate = jnp.split(h, 2, axis=-1)
        return x + value * nn.sigmoid(gate)


class CausalUNet(nn.Module):
    """U-Net of one stream at `num_resolutions` resolutions; the lower ones are `below`.

    Without `above` the region keeps the outputs of all blocks. With `above`, the buffers of another
    stream's region, each block has a short-cut from the other stream's block of the same name.
    """

    size: tuple[int, int]
    num_blocks: int
    num_resolutions: int
    dropout: float
    dtype: Dtype = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w n"],
        region: WholeImage,
        conditioning: Conditioning,
        above: dict[str, Any] | None = None,
    ) -> Float[Array, "b h w n"]:
        block = functools.partial(self._block, region, conditioning, above)
        nodes = [x]
        for i in range(self.num_blocks):
            nodes.append(block(f"encoder_{i}", nodes[-1]))
        if self.num_resolutions > 1:
            lower = None if above is None else above["below"]
            h = self._below(nodes[-1], region, conditioning, lower)
        else:
            h = nodes.pop()
        for i, skip in enumerate(reversed(nodes)):
            h = block(f"decoder_{i}", h, skip)
        return h

    def _block(
        self,
        region: WholeImage,
        conditioning: Conditioning,
        above: dict[str, Any] | None,
        name: str,
        x: Array,
        *skips: Array,
    ) -> Array:
        shortcuts = skips if above is None else (region.read(above[name]), *skips)
        shortcut = jnp.concatenate(shortcuts, axis=-1) if shortcuts else None
        block = GatedBlock(self.size, self.dropout, self.dtype, name=name)
        h = block(x, shortcut, region, conditioning)
        if above is None:
            region.keep(name, h)
        return h

    def _below(
        self,
        x: Array,
        region: WholeImage,
        conditioning: Conditioning,
        above: dict[str, Any] | None,
    ) -> Array:
        """Features from the lower resolutions, computed once per 2 x 2 pixels."""
        filters, window = x.shape[-1], region.window("down", self.size, x)

        def update(stream: "CausalUNet", state: dict[str, Any]) -> dict[str, Any]:
            layer = WeightNormConv(filters, self.size, stride=2, dtype=self.dtype, name="down")
            half = region.halved(dict(state.get("below", {})))
            lower = CausalUNet(
                self.size, self.num_blocks, self.num_resolutions - 1, self.dropout, self.dtype,
                name="below",
            )  # fmt: skip
            h = lower(layer(window), half, conditioning, above)
            h = WeightNormSpread(filters, self.size, dtype=self.dtype, name="up")(h)
            return {"below": half.buffers, "up": region.write_block(state.get("up"), h)}

        state = {key: region.buffers[key] for key in ("below", "up") if key in region.buffers}
        state = update_if(region.starts_block, update, self, state)
        region.buffers.update(state)
        return region.read_block(state["up"])
