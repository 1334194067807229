# SPDX-License-Identifier: Apache-2.0
"""The energy network of diffusion recovery likelihood: a spectrally normalised residual network.

Its output F is the log-density of a noise level times the squared Langevin step of that level, see
`parameterize.recovery_energy`. There is no normalisation of activations, so F of an image does not
depend on the batch; the group, instance and batch normalisation that the published code offers, and
that no published model uses, are left out, and so is dropout.
Source: Gao et al. 2021, arXiv:2012.08125, Appendix B, and the network `net_res_temb2` of its code.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from scorejax.choices import choose
from scorejax.models import energy_resnet
from scorejax.models.energy_resnet import Activation
from scorejax.models.fir import mean_downsample
from scorejax.models.layers import Attention, Dtype, dense, residual_sum, sinusoidal_embedding
from scorejax.models.ncsnpp import require_halvings
from scorejax.models.spectral_norm import SpectralConv, SpectralDense, to_at_most_unit, to_unit

CH_MULT = {
    32: (1, 2, 2, 2),
    64: (1, 2, 2, 2, 4),
    128: (1, 2, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 2, 4, 4),
}
"""Image size -> published width of each level, in multiples of `nf`."""


def leaky_relu(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """max(x, 0.2 x), with slope 0.2 at 0, where TensorFlow and PyTorch have it but JAX has 1."""
    return jnp.where(x > 0, x, 0.2 * x)


ACTIVATIONS: dict[str, Activation] = energy_resnet.ACTIVATIONS | {"leaky_relu": leaky_relu}
FINAL_ACTIVATIONS: dict[str, Activation] = {
    "relu": nn.relu,
    "swish": nn.swish,
    "none": lambda h: h,
}


class RecoveryBlock(nn.Module):
    """Residual block of two (activation, 3x3 convolution) pairs, with the level added between.

    `temb` (b, e) is the activated embedding of the level. The first convolution changes the width,
    and so does one of 3x3, or of 1x1 without `conv_shortcut`, in the shortcut. The second one
    starts at zero, and spectral normalisation only ever shrinks it. The factors of its channels
    (`gain`) come after, so the block as a whole is not 1-Lipschitz.
    """

    features: int
    activation: Activation
    spectral_norm: bool = True
    conv_shortcut: bool = True
    gain: bool = True
    dtype: Dtype = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], temb: Float[Array, "b e"]) -> Array:
        unit, at_most_unit = (to_unit, to_at_most_unit) if self.spectral_norm else (None, None)
        options = {"rescale": unit, "dtype": self.dtype}
        h = SpectralConv(self.features, name="conv_0", **options)(self.activation(x))
        h = h + SpectralDense(self.features, name="temb", **options)(temb)[:, None, None]
        last = SpectralConv(
            self.features, init_scale=0.0, rescale=at_most_unit, dtype=self.dtype, name="conv_1"
        )
        h = last(self.activation(h))
        if self.gain:
            gain = self.param("gain", nn.initializers.ones, (self.features,))
            h = h * gain.astype(h.dtype)[None, None, None]
        if x.shape[-1] != self.features:
            layer = SpectralConv if self.conv_shortcut else SpectralDense
            x = layer(self.features, name="shortcut", **options)(x)
        return residual_sum(x, h, rescale=False)


class RecoveryResNet(nn.Module):
    """F (x (b, h, w, c), label (b,)) -> (b,) of square images; labels are noise levels 0, 1, ...

    Level l of the network has nf * ch_mult[l] channels and half the size of the previous one, by
    averaging 2 x 2 pixels or, with `resamp_with_conv`, by a strided convolution. Attention acts
    after each block at the sizes in `attn_resolutions`. F is the inner product of the features,
    summed over the pixels after `final_activation`, with a linear map of the embedded level.

    With `spectral_norm` the kernels of all layers but attention and this last map are divided by
    their largest singular values, see `spectral_norm`. Defaults are those for CIFAR-10; `CH_MULT`
    holds the widths for other sizes.

    `dtype` is the type of the arithmetic in the body (bfloat16, say); parameters, singular values,
    the embedding, the sum over pixels and F keep float32. `remat` recomputes each residual block in
    the backward pass. `dropout_rng` is ignored.

    Raises: ValueError if an activation is unknown, nf < 4, or the image is not square or cannot be
    halved len(ch_mult) - 1 times.
    """

    nf: int = 128
    ch_mult: tuple[int, ...] = CH_MULT[32]
    num_res_blocks: int = 8
    attn_resolutions: tuple[int, ...] = ()
    spectral_norm: bool = True
    activation: str = "leaky_relu"
    final_activation: str = "relu"
    resamp_with_conv: bool = False
    conv_shortcut: bool = True
    gain: bool = True
    dtype: Dtype = None
    remat: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        choose("activation", self.activation, ACTIVATIONS)
        choose("final activation", self.final_activation, FINAL_ACTIVATIONS)
        if self.nf < 4:
            raise ValueError(
                f"nf, also the embedding's width, needs to be at least 4; got {self.nf}"
            )

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], label: Int[Array, "b"], *, dropout_rng: Any = None
    ) -> Float[Array, "b"]:
        last = len(self.ch_mult) - 1
        require_halvings(x.shape, last)
        temb = ACTIVATIONS[self.activation](self._embed(label))
        h = SpectralConv(self.nf, name="conv_in", **self._options())(x)
        for level, multiplier in enumerate(self.ch_mult):
            for i in range(self.num_res_blocks):
                h = self._block(multiplier * self.nf, f"level_{level}_block_{i}")(h, temb)
                if h.shape[1] in self.attn_resolutions:
                    h = self._attention(f"level_{level}_attn_{i}")(h)
            if level < last:
                h = self._halve(h, f"level_{level}_down")
        # In bfloat16 a sum over a thousand pixels would have three digits.
        h = h.astype(jnp.promote_types(h.dtype, jnp.float32))
        summed = jnp.sum(FINAL_ACTIVATIONS[self.final_activation](h), axis=(1, 2))
        return jnp.sum(summed * dense(h.shape[-1], name="readout")(temb), axis=-1)

    def _embed(self, label: Int[Array, "b"]) -> Float[Array, "b e"]:
        options = {"rescale": self._options()["rescale"]}
        h = sinusoidal_embedding(label.astype(jnp.result_type(float)), self.nf)
        h = SpectralDense(4 * self.nf, name="temb_0", **options)(h)
        return SpectralDense(4 * self.nf, name="temb_1", **options)(ACTIVATIONS[self.activation](h))

    def _options(self) -> dict[str, Any]:
        return {"rescale": to_unit if self.spectral_norm else None, "dtype": self.dtype}

    def _block(self, features: int, name: str) -> nn.Module:
        kind = nn.remat(RecoveryBlock) if self.remat else RecoveryBlock
        return kind(
            features, ACTIVATIONS[self.activation], self.spectral_norm, self.conv_shortcut,
            self.gain, self.dtype, name=name,
        )  # fmt: skip

    def _attention(self, name: str) -> nn.Module:
        return Attention(normalize=False, input_scale=1.0, dtype=self.dtype, name=name)

    def _halve(self, h: Array, name: str) -> Array:
        if self.resamp_with_conv:
            return SpectralConv(h.shape[-1], down=True, name=name, **self._options())(h)
        return mean_downsample(h)
