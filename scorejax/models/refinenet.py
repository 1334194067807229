# SPDX-License-Identifier: Apache-2.0
"""The RefineNets of NCSN and NCSNv2, on images (b, h, w, c), with ELU activations.

They differ in their stages, normalisation and pooling. Blocks take the normalisation and the
pooling as functions. A normalisation is called as (x, label); only that of NCSN uses the label.

Sources: Lin et al. 2017, arXiv:1611.06612; Song & Ermon 2019, arXiv:1907.05600, Appendix A; Song &
Ermon 2020, arXiv:2006.09011, Appendix B.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from scorejax.models import layers
from scorejax.models.fir import mean_downsample
from scorejax.models.instance_norm import (
    ConditionalInstanceNormPlus,
    InstanceNormPlus,
    Norm,
    no_norm,
)

# PyTorch draws weights of variance 1 / (3 fan_in), which this equals where fan_in = fan_out.
Conv = functools.partial(layers.Conv, init_scale=1 / 3)


class ResidualConvUnit(nn.Module):
    """`num_blocks` residual branches in sequence, each of `num_stages` x (ELU, convolution)."""

    num_blocks: int = 2
    num_stages: int = 2
    norm: Norm = no_norm
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], label: Array | None = None) -> Array:
        conv = functools.partial(Conv, x.shape[-1], use_bias=False, dtype=self.dtype)
        for i in range(self.num_blocks):
            h = x
            for j in range(self.num_stages):
                h = nn.elu(self.norm(name=f"block_{i}_norm_{j}")(h, label))
                h = conv(name=f"block_{i}_conv_{j}")(h)
            x = x + h
        return x


def max_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Maximum over 5 x 5 pixels."""
    return nn.max_pool(x, (5, 5), padding="SAME")


def mean_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Mean over 5 x 5 pixels, where pixels outside the image count as zero."""
    return nn.avg_pool(x, (5, 5), padding="SAME")


class ChainedResidualPooling(nn.Module):
    """Adds to ELU(x) the outputs of a chain of 5x5 poolings and convolutions."""

    num_stages: int = 2
    pool: Callable[[Array], Array] = max_pool
    norm: Norm = no_norm
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], label: Array | None = None) -> Array:
        x = path = nn.elu(x)
        for i in range(self.num_stages):
            path = self.pool(self.norm(name=f"norm_{i}")(path, label))
            path = Conv(x.shape[-1], use_bias=False, dtype=self.dtype, name=f"conv_{i}")(path)
            x = x + path
        return x


class MultiResolutionFusion(nn.Module):
    """Convolves feature maps of several sizes, resizes them to `size` (h, w) and adds them."""

    features: int
    size: tuple[int, int]
    norm: Norm = no_norm
    dtype: Any = None

    @nn.compact
    def __call__(
        self, images: Sequence[Float[Array, "b _h _w _c"]], label: Array | None = None
    ) -> Float[Array, "b h w d"]:
        total = 0.0
        for i, image in enumerate(images):
            h = self.norm(name=f"norm_{i}")(image, label)
            h = Conv(self.features, dtype=self.dtype, name=f"conv_{i}")(h)
            total = total + resize_bilinear(h, self.size)
        return total


def resize_bilinear(x: Float[Array, "b h w c"], size: tuple[int, int]) -> Array:
    """Resizes bilinearly to `size`; the corner pixels of input and output coincide."""
    if x.shape[1:3] == tuple(size):
        return x
    rows, columns = (
        jnp.asarray(_interpolation(length, new), x.dtype)
        for length, new in zip(x.shape[1:3], size, strict=True)
    )
    return jnp.einsum("ph,qw,bhwc->bpqc", rows, columns, x)


def _interpolation(length: int, new: int) -> np.ndarray:
    """Matrix (new, length) of linear interpolation with aligned end points."""
    position = np.linspace(0, length - 1, new)[:, None]
    return np.maximum(0, 1 - np.abs(position - np.arange(length)))


class RefineNetResidualBlock(nn.Module):
    """Residual block of two normalised convolutions, which may halve the size.

    `down` averages 2 x 2 pixels after the second convolution, unless `dilation` is above 1: then
    the size is kept and the kernels are dilated instead.
    """

    features: int
    down: bool = False
    dilation: int = 1
    norm: Norm = InstanceNormPlus
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], label: Array | None = None
    ) -> Float[Array, "b _h _w d"]:
        shrink = mean_downsample if self.down and self.dilation == 1 else lambda h: h
        options = {"dilation": self.dilation, "dtype": self.dtype}
        h = nn.elu(self.norm(name="norm_0")(x, label))
        h = Conv(x.shape[-1], name="conv_0", **options)(h)
        h = nn.elu(self.norm(name="norm_1")(h, label))
        h = shrink(Conv(self.features, name="conv_1", **options)(h))
        if self.down or x.shape[-1] != self.features:
            size = 3 if self.dilation > 1 else 1
            x = shrink(Conv(self.features, size, name="shortcut", **options)(x))
        return x + h


class RefineBlock(nn.Module):
    """Merges feature maps at the size of the first: residual units, fusion, chained pooling.

    `remat` recomputes each part in the backward pass, one at a time.
    """

    features: int
    num_output_units: int = 1
    pool: Callable[[Array], Array] = max_pool
    norm: Norm = no_norm
    dtype: Any = None
    remat: bool = False

    @nn.compact
    def __call__(
        self, images: Sequence[Float[Array, "b _h _w _c"]], label: Array | None = None
    ) -> Float[Array, "b h w d"]:
        options = {"norm": self.norm, "dtype": self.dtype}
        unit, fusion, pooling = ResidualConvUnit, MultiResolutionFusion, ChainedResidualPooling
        if self.remat:
            unit, fusion, pooling = nn.remat(unit), nn.remat(fusion), nn.remat(pooling)
        adapted = [
            unit(2, name=f"adapt_{i}", **options)(image, label) for i, image in enumerate(images)
        ]
        h, size = adapted[0], images[0].shape[1:3]
        if len(images) > 1:
            h = fusion(self.features, size, name="fusion", **options)(adapted, label)
        h = pooling(2, self.pool, name="pooling", **options)(h, label)
        return unit(self.num_output_units, name="output", **options)(h, label)


class Stage(NamedTuple):
    """Two residual blocks of `width` times the network's features; `down` applies to the first."""

    width: int
    down: bool = True
    dilation: int = 1


NCSNV2 = (Stage(1, down=False), Stage(2), Stage(2, dilation=2), Stage(2, dilation=4))
NCSNV2_DEEPER = (
    Stage(1, down=False), Stage(2), Stage(2), Stage(4, dilation=2), Stage(4, dilation=4),
)  # fmt: skip
NCSNV2_DEEPEST = (
    Stage(1, down=False), Stage(2), Stage(2), Stage(2), Stage(4, dilation=2), Stage(4, dilation=4),
)  # fmt: skip


class NCSNv2(nn.Module):
    """Unconditional RefineNet (x, label) -> output; the caller divides the output by sigma.

    With `centered` images need to lie in [-1, 1]; otherwise images in [0, 1] are mapped there
    first. The label is ignored. `dtype` is the type of the arithmetic in the body. `remat`
    recomputes the blocks in the backward pass, one at a time, instead of storing their activations.

    Source: Song & Ermon 2020, arXiv:2006.09011, Appendix B, and technique 3.
    """

    features: int = 128
    stages: tuple[Stage, ...] = NCSNV2
    centered: bool = False
    dtype: Any = None
    remat: bool = False

    @property
    def parts(self) -> tuple[Norm, Norm, Callable[[Array], Array]]:
        """Normalisation of the body, and normalisation and pooling of the RefineNet blocks."""
        return InstanceNormPlus, no_norm, max_pool

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], label: Array, *, dropout_rng: Any = None
    ) -> Float[Array, "b h w c"]:
        norm, refine_norm, pool = self.parts
        block = nn.remat(RefineNetResidualBlock) if self.remat else RefineNetResidualBlock
        h = x if self.centered else 2 * x - 1
        h = Conv(self.features, name="conv_in", dtype=self.dtype)(h)
        skips = []
        for i, (width, down, dilation) in enumerate(self.stages):
            options = {"dilation": dilation, "norm": norm, "dtype": self.dtype}
            for j, down_here in enumerate((down, False)):
                name = f"stage_{i}_block_{j}"
                h = block(width * self.features, down_here, name=name, **options)(h, label)
            skips.append(h)
        options = {"pool": pool, "norm": refine_norm, "dtype": self.dtype, "remat": self.remat}
        for i in reversed(range(len(self.stages))):
            images = [skips[i]] if i + 1 == len(self.stages) else [skips[i], h]
            width, units = self.stages[max(i - 1, 0)].width * self.features, 1 if i else 3
            h = RefineBlock(width, units, name=f"refine_{i}", **options)(images, label)
        h = nn.elu(norm(name="norm_out")(h, label)).astype(x.dtype)
        return Conv(x.shape[-1], name="conv_out")(h)


class NCSN(NCSNv2):
    """The first NCSN: conditional normalisation throughout, mean pooling; the output is the score.

    The label is the index of the noise level, 0 being the noisiest of `num_scales`.
    Source: Song & Ermon 2019, arXiv:1907.05600, Appendix A.
    """

    num_scales: int = 10

    @property
    def parts(self) -> tuple[Norm, Norm, Callable[[Array], Array]]:
        norm = functools.partial(ConditionalInstanceNormPlus, self.num_scales)
        return norm, norm, mean_pool
