# SPDX-License-Identifier: Apache-2.0
"""InceptionV3 as the Fréchet Inception distance uses it: the TensorFlow graph of 2015.

It differs from the network of the paper in its pooling: averages exclude the padding, and the last
block takes a maximum. Layers are named as in the published PyTorch weights: the tensor
`Mixed_5b.branch1x1.conv.weight` is params["Mixed_5b"]["branch1x1"]["kernel"].

Source: Szegedy et al. 2016, arXiv:1512.00567; Heusel et al. 2017, arXiv:1706.08500.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

EPSILON = 1e-3
SIZE = 299
NUM_FEATURES, NUM_LOGITS = 2048, 1008
ONE, THREE, FIVE, ROW, COLUMN = (1, 1), (3, 3), (5, 5), (1, 7), (7, 1)

Layer = tuple[str, int, tuple[int, int]]
"""Name, features and kernel of a layer of stride 1 that keeps the size."""


class Features(NamedTuple):
    """Pooled features (b, 2048) and logits (b, 1008)."""

    pool: Array
    logits: Array


class ConvNorm(nn.Module):
    """Convolution, normalisation with fixed statistics, ReLU."""

    features: int
    kernel: tuple[int, int]
    stride: int = 1
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b oh ow d"]:
        shape = (*self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        scale, bias, mean, variance = (
            self.param(name, init, shape[-1:])
            for name, init in (("scale", ones), ("bias", zeros), ("mean", zeros), ("var", ones))
        )
        y = jax.lax.conv_general_dilated(
            x, kernel, (self.stride,) * 2, self.padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        gain = scale * jax.lax.rsqrt(variance + EPSILON)
        return nn.relu(y * gain[None, None, None] + (bias - mean * gain)[None, None, None])


def chain(x: Array, *layers: Layer) -> Array:
    """Applies layers of stride 1 in sequence."""
    for name, features, kernel in layers:
        x = ConvNorm(features, kernel, name=name)(x)
    return x


def average(x: Array) -> Array:
    """Mean over 3 x 3 pixels, padding excluded."""
    return nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)


def largest(x: Array) -> Array:
    """Maximum over 3 x 3 pixels."""
    return nn.max_pool(x, (3, 3), (1, 1), "SAME")


def halved(x: Array) -> Array:
    """Maximum over 3 x 3 pixels with stride 2."""
    return nn.max_pool(x, (3, 3), (2, 2), "VALID")


def halving(x: Array, name: str, features: int) -> Array:
    """A 3 x 3 convolution with stride 2."""
    return ConvNorm(features, THREE, 2, "VALID", name=name)(x)


def joined(*branches: Array) -> Array:
    """Concatenates branches along the channels."""
    return jnp.concatenate(branches, axis=-1)


class BlockA(nn.Module):
    """35 x 35 pixels at full size."""

    pool_features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        wide = ("branch5x5_1", 48, ONE), ("branch5x5_2", 64, FIVE)
        double = ("branch3x3dbl_1", 64, ONE), ("branch3x3dbl_2", 96, THREE)
        return joined(
            chain(x, ("branch1x1", 64, ONE)),
            chain(x, *wide),
            chain(x, *double, ("branch3x3dbl_3", 96, THREE)),
            chain(average(x), ("branch_pool", self.pool_features, ONE)),
        )


class BlockB(nn.Module):
    """From 35 x 35 to 17 x 17 pixels."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        double = chain(x, ("branch3x3dbl_1", 64, ONE), ("branch3x3dbl_2", 96, THREE))
        return joined(
            halving(x, "branch3x3", 384), halving(double, "branch3x3dbl_3", 96), halved(x)
        )


class BlockC(nn.Module):
    """17 x 17 pixels, with kernels of one row or one column."""

    narrow: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        once = (("branch7x7_1", ONE), ("branch7x7_2", ROW))
        twice = zip((1, 2, 3, 4), (ONE, COLUMN, ROW, COLUMN), strict=True)
        return joined(
            chain(x, ("branch1x1", 192, ONE)),
            chain(x, *((name, self.narrow, kernel) for name, kernel in once),
                  ("branch7x7_3", 192, COLUMN)),
            chain(x, *((f"branch7x7dbl_{n}", self.narrow, kernel) for n, kernel in twice),
                  ("branch7x7dbl_5", 192, ROW)),
            chain(average(x), ("branch_pool", 192, ONE)),
        )  # fmt: skip


class BlockD(nn.Module):
    """From 17 x 17 to 8 x 8 pixels."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        small = chain(x, ("branch3x3_1", 192, ONE))
        kernels = enumerate((ONE, ROW, COLUMN), start=1)
        large = chain(x, *((f"branch7x7x3_{n}", 192, kernel) for n, kernel in kernels))
        return joined(
            halving(small, "branch3x3_2", 320), halving(large, "branch7x7x3_4", 192), halved(x)
        )


class BlockE(nn.Module):
    """8 x 8 pixels, with branches that split again."""

    pool: Callable[[Array], Array]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        once = chain(x, ("branch3x3_1", 384, ONE))
        twice = chain(x, ("branch3x3dbl_1", 448, ONE), ("branch3x3dbl_2", 384, THREE))
        split = lambda h, name, ends: (
            chain(h, (f"{name}_{end}", 384, kernel))
            for end, kernel in zip(ends, ((1, 3), (3, 1)), strict=True)
        )
        return joined(
            chain(x, ("branch1x1", 320, ONE)),
            *split(once, "branch3x3", ("2a", "2b")),
            *split(twice, "branch3x3dbl", ("3a", "3b")),
            chain(self.pool(x), ("branch_pool", 192, ONE)),
        )


BLOCKS: Sequence[tuple[str, Callable[..., nn.Module], dict]] = (
    ("Mixed_5b", BlockA, {"pool_features": 32}),
    ("Mixed_5c", BlockA, {"pool_features": 64}),
    ("Mixed_5d", BlockA, {"pool_features": 64}),
    ("Mixed_6a", BlockB, {}),
    ("Mixed_6b", BlockC, {"narrow": 128}),
    ("Mixed_6c", BlockC, {"narrow": 160}),
    ("Mixed_6d", BlockC, {"narrow": 160}),
    ("Mixed_6e", BlockC, {"narrow": 192}),
    ("Mixed_7a", BlockD, {}),
    ("Mixed_7b", BlockE, {"pool": average}),
    ("Mixed_7c", BlockE, {"pool": largest}),
)


class Inception(nn.Module):
    """The network (images (b, h, w, 3) in [0, 1]) -> Features.

    Images are resized to 299 pixels without antialiasing, unless `resize` is False. The logits have
    no bias, as in the published code of the inception score.
    Raises: ValueError unless images are (b, h, w, 3).
    """

    @nn.compact
    def __call__(self, images: Float[Array, "b h w 3"], *, resize: bool = True) -> Features:
        if images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"Inception needs colour images (b, h, w, 3); got {images.shape}")
        x = resized(images) if resize else images
        x = 2 * x - 1
        x = ConvNorm(32, THREE, 2, "VALID", name="Conv2d_1a_3x3")(x)
        x = ConvNorm(32, THREE, 1, "VALID", name="Conv2d_2a_3x3")(x)
        x = halved(ConvNorm(64, THREE, name="Conv2d_2b_3x3")(x))
        x = ConvNorm(80, ONE, name="Conv2d_3b_1x1")(x)
        x = halved(ConvNorm(192, THREE, 1, "VALID", name="Conv2d_4a_3x3")(x))
        for name, block, options in BLOCKS:
            x = block(**options, name=name)(x)
        pool = jnp.mean(x, axis=(1, 2))
        kernel = self.param("fc", nn.initializers.lecun_normal(), (NUM_FEATURES, NUM_LOGITS))
        return Features(pool, pool @ kernel)


def resized(images: Float[Array, "b h w c"]) -> Float[Array, "b 299 299 c"]:
    """Resizes to 299 x 299 pixels by bilinear interpolation between pixel centres."""
    shape = (images.shape[0], SIZE, SIZE, images.shape[-1])
    return jax.image.resize(images, shape, "bilinear", antialias=False)
