# SPDX-License-Identifier: Apache-2.0
"""NCSN++ and DDPM++, the U-Nets of the score SDE paper, as one module.

DDPM++ is `fir=False, embedding_type="positional"`. NCSN++ is `fir=True,
progressive_input="residual"`, with `embedding_type="fourier"` if trained in continuous time on the
VE SDE. Networks for 256 pixels and more use `input_skip` and `output_skip` pyramids.
Source: Song et al. 2021, arXiv:2011.13456, Appendix H.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from scorejax.choices import require_known
from scorejax.models.fir import ConvDownsample, ConvUpsample, downsample, upsample
from scorejax.models.layers import (
    Attention,
    Combine,
    Conv,
    Dropout,
    FourierEmbedding,
    GroupNorm,
    TimeEmbedding,
    dense,
    nin,
    residual_sum,
    sinusoidal_embedding,
)
from scorejax.random import Rng

Dtype = Any

_CHOICES = {
    "embedding_type": ("fourier", "positional"),
    "resblock_type": ("biggan", "ddpm"),
    "progressive": ("none", "output_skip", "residual"),
    "progressive_input": ("none", "input_skip", "residual"),
    "progressive_combine": ("cat", "sum"),
}


class ResidualBlock(nn.Module):
    """Base of both residual blocks: their fields and their second half.

    `temb` (b, d) is the embedding of the label, or None in an unconditional network. `rng` is the
    key or keys of dropout, or None.
    """

    features: int
    dropout: float = 0.0
    init_scale: float = 0.0
    rescale: bool = False
    num_groups: int | None = None
    dtype: Dtype = None

    def transform(self, h: Array, temb: Array | None, rng: Rng | None) -> Array:
        """Convolution, label, normalisation, activation, dropout, convolution."""
        h = Conv(self.features, use_bias=False, dtype=self.dtype, name="conv_0")(h)
        # Bias and label only shift channels that are normalised next, so GroupNorm takes them.
        shift = self.param("conv_0_bias", nn.initializers.zeros, (self.features,))
        if temb is not None:
            shift = shift[None] + dense(self.features, name="temb")(nn.silu(temb))
        h = nn.silu(GroupNorm(self.num_groups, name="norm_1")(h, shift))
        h = Dropout(self.dropout, name="dropout")(h, rng)
        return Conv(self.features, init_scale=self.init_scale, dtype=self.dtype, name="conv_1")(h)


class DDPMBlock(ResidualBlock):
    """Residual block of DDPM. Source: Ho et al. 2020, arXiv:2006.11239, Appendix B.

    Where the number of channels changes, the shortcut is a 1x1 or, with `conv_shortcut`, a 3x3
    convolution.
    """

    conv_shortcut: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], temb: Array | None, rng: Rng | None) -> Array:
        h = nn.silu(GroupNorm(self.num_groups, name="norm_0")(x))
        h = self.transform(h, temb, rng)
        if x.shape[-1] != self.features:
            layer = Conv if self.conv_shortcut else nin
            x = layer(self.features, dtype=self.dtype, name="shortcut")(x)
        return residual_sum(x, h, rescale=self.rescale)


class BigGANBlock(ResidualBlock):
    """Residual block of BigGAN, which may resample. Source: Brock et al. 2019, arXiv:1809.11096.

    `resample` acts on the activations before the first convolution, and on the shortcut.
    """

    resample: Callable[[Array], Array] | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], temb: Array | None, rng: Rng | None) -> Array:
        h = nn.silu(GroupNorm(self.num_groups, name="norm_0")(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self.transform(h, temb, rng)
        if self.resample is not None or x.shape[-1] != self.features:
            x = dense(self.features, dtype=self.dtype, name="shortcut")(x)
        return residual_sum(x, h, rescale=self.rescale)


class NCSNpp(nn.Module):
    """The score network (x (b, h, w, c), label (b,)) -> (b, h, w, c); square images.

    Level l has nf * ch_mult[l] channels and half the size of the previous level. Attention acts at
    the sizes in `attn_resolutions`, and always in the middle. `embedding_type` "positional" embeds
    the label itself; "fourier" embeds its logarithm, so the label should be the noise level sigma.
    With `centered` x needs to lie in [-1, 1]; otherwise x in [0, 1] is mapped there first. The
    output is not divided by sigma; the caller does so if training did.

    `dtype` is the type of the arithmetic in the body (bfloat16, say); parameters, normalisation,
    softmax and the head keep float32. `remat` recomputes each residual block in the backward pass
    instead of storing its activations. `dropout_rng`, one key or one per example, enables dropout.

    Raises: ValueError if an option is unknown, the image is not square or cannot be halved
    len(ch_mult) - 1 times, or a width does not divide into groups.
    Source: arXiv:2011.13456, Appendix H; options are named as in its published configs.
    """

    nf: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 2, 2)
    num_res_blocks: int = 4
    attn_resolutions: tuple[int, ...] = (16,)
    dropout: float = 0.1
    conditional: bool = True
    centered: bool = True
    embedding_type: str = "fourier"
    fourier_scale: float = 16.0
    resblock_type: str = "biggan"
    resamp_with_conv: bool = True
    fir: bool = True
    fir_kernel: tuple[float, ...] = (1, 3, 3, 1)
    progressive: str = "none"
    progressive_input: str = "none"
    progressive_combine: str = "sum"
    skip_rescale: bool = True
    init_scale: float = 0.0
    num_groups: int | None = None
    dtype: Dtype = None
    remat: bool = False

    def __post_init__(self) -> None:
        for option, choices in _CHOICES.items():
            require_known(option, getattr(self, option), choices)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], label: Array, *, dropout_rng: Rng | None = None
    ) -> Float[Array, "b h w c"]:
        require_halvings(x.shape, len(self.ch_mult) - 1)
        temb = self._embed(label) if self.conditional else None
        if not self.centered:
            x = 2 * x - 1
        h, skips = self._encode(x, temb, dropout_rng)
        h = self._middle(h, temb, dropout_rng)
        levels, pyramid = self._decode(h, skips, temb, dropout_rng, channels=x.shape[-1])
        if self.progressive == "output_skip":
            return pyramid
        return self._head(levels[0], x.shape[-1], name="out")

    def _embed(self, label: Array) -> Array:
        label = label.astype(jnp.promote_types(label.dtype, jnp.float32))
        if self.embedding_type == "fourier":
            embedding = FourierEmbedding(self.nf, self.fourier_scale, name="fourier")(
                jnp.log(label)
            )
        else:
            embedding = sinusoidal_embedding(label, self.nf)
        return TimeEmbedding(4 * self.nf, name="temb")(embedding)

    def _encode(
        self,
        x: Array,
        temb: Array | None,
        rng: Rng | None,
        join: Callable[[Array, int], Array] = lambda h, level: h,
    ) -> tuple[Array, list[Array]]:
        """Features of the coarsest level, and the skip connections for `_decode`.

        `join(h, level)` is applied to the output of the first block of each level.
        """
        pyramid = x
        h = Conv(self.nf, dtype=self.dtype, name="conv_in")(x)
        skips = [h]
        for level, width in enumerate(self._widths):
            for i in range(self.num_res_blocks):
                h = self._block(width, name=f"down_{level}_block_{i}")(h, temb, rng)
                h = join(h, level) if i == 0 else h
                h = self._attend(h, name=f"down_{level}_attn_{i}")
                skips.append(h)
            if level + 1 < len(self.ch_mult):
                h = self._resample(h, temb, rng, up=False, name=f"down_{level}_resample")
                h, pyramid = self._join_input(h, pyramid, name=f"down_{level}_pyramid")
                skips.append(h)
        return h, skips

    def _middle(self, h: Array, temb: Array | None, rng: Rng | None) -> Array:
        width = self._widths[-1]
        h = self._block(width, name="middle_block_0")(h, temb, rng)
        h = self._attention(name="middle_attn")(h)
        return self._block(width, name="middle_block_1")(h, temb, rng)

    def _decode(
        self, h: Array, skips: list[Array], temb: Array | None, rng: Rng | None, *, channels: int
    ) -> tuple[list[Array], Array | None]:
        """Features of each level, finest first, and the output pyramid or None."""
        levels, pyramid = [], None
        for level in reversed(range(len(self.ch_mult))):
            for i in range(self.num_res_blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = self._block(self._widths[level], name=f"up_{level}_block_{i}")(h, temb, rng)
            h = self._attend(h, name=f"up_{level}_attn")
            h, pyramid = self._join_output(h, pyramid, channels, name=f"up_{level}_pyramid")
            levels.insert(0, h)
            if level:
                h = self._resample(h, temb, rng, up=True, name=f"up_{level}_resample")
        return levels, pyramid

    def _join_input(self, h: Array, pyramid: Array, *, name: str) -> tuple[Array, Array]:
        """Features and input pyramid of the next, coarser level."""
        if self.progressive_input == "input_skip":
            pyramid = downsample(pyramid, self._taps)
            h = Combine(self.progressive_combine, dtype=self.dtype, name=name)(pyramid, h)
        elif self.progressive_input == "residual":
            layer = ConvDownsample(h.shape[-1], self._taps, dtype=self.dtype, name=name)
            h = pyramid = residual_sum(layer(pyramid), h, rescale=self.skip_rescale)
        return h, pyramid

    def _join_output(
        self, h: Array, pyramid: Array | None, channels: int, *, name: str
    ) -> tuple[Array, Array | None]:
        """Features and output pyramid of this level, from the `pyramid` of the coarser level."""
        if self.progressive == "output_skip":
            image = self._head(h, channels, name=name)
            pyramid = image if pyramid is None else image + upsample(pyramid, self._taps)
        elif self.progressive == "residual" and pyramid is None:
            pyramid = self._head(h, h.shape[-1], name=name, init_scale=1.0)
        elif self.progressive == "residual":
            layer = ConvUpsample(h.shape[-1], self._taps, dtype=self.dtype, name=name)
            h = pyramid = residual_sum(layer(pyramid), h, rescale=self.skip_rescale)
        return h, pyramid

    def _head(
        self, h: Array, channels: int, *, name: str, init_scale: float | None = None
    ) -> Array:
        """Normalisation, activation and 3x3 convolution, in float32."""
        h = h.astype(jnp.promote_types(h.dtype, jnp.float32))
        h = nn.silu(GroupNorm(self.num_groups, name=f"{name}_norm")(h))
        init_scale = self.init_scale if init_scale is None else init_scale
        return Conv(channels, init_scale=init_scale, name=f"{name}_conv")(h)

    def _block(self, width: int, *, name: str, **options: Any) -> nn.Module:
        kind = {"ddpm": DDPMBlock, "biggan": BigGANBlock}[self.resblock_type]
        if self.remat:
            kind = nn.remat(kind)
        return kind(
            width, dropout=self.dropout, init_scale=self.init_scale, rescale=self.skip_rescale,
            num_groups=self.num_groups, dtype=self.dtype, name=name, **options,
        )  # fmt: skip

    def _resample(
        self, h: Array, temb: Array | None, rng: Rng | None, *, up: bool, name: str
    ) -> Array:
        """Features at double or half the size, with unchanged width."""
        plain, layer = (upsample, ConvUpsample) if up else (downsample, ConvDownsample)
        if self.resblock_type == "biggan":
            resample = functools.partial(plain, taps=self._taps)
            return self._block(h.shape[-1], resample=resample, name=name)(h, temb, rng)
        if self.resamp_with_conv:
            return layer(h.shape[-1], self._taps, dtype=self.dtype, name=name)(h)
        return plain(h, self._taps)

    def _attend(self, h: Array, *, name: str) -> Array:
        return self._attention(name=name)(h) if h.shape[1] in self.attn_resolutions else h

    def _attention(self, *, name: str) -> Attention:
        return Attention(
            self.num_groups, init_scale=self.init_scale, rescale=self.skip_rescale,
            dtype=self.dtype, name=name,
        )  # fmt: skip

    @property
    def _widths(self) -> list[int]:
        return [self.nf * multiple for multiple in self.ch_mult]

    @property
    def _taps(self) -> tuple[float, ...] | None:
        return self.fir_kernel if self.fir else None


def require_halvings(shape: tuple[int, ...], halvings: int) -> None:
    """Raises ValueError unless images (b, h, w, c) are square and divisible by 2^halvings."""
    height, width = shape[1:3]
    if height != width or height % 2**halvings:
        raise ValueError(
            f"a network of {halvings + 1} levels needs square images whose size is a multiple of "
            f"{2**halvings}; got {height} x {width}. Pad or resize them, or shorten ch_mult."
        )
