# SPDX-License-Identifier: Apache-2.0
"""BiO-Net: a U-Net that runs `num_passes` times, what it decoded going back into its encoder.

Convolutions are the same in every pass, batch normalisations are each pass's own. The first pass
has nothing to go back and joins the encoder's features to themselves, so that one pass is a U-Net.
Both official versions are here, by `torch_bionet` and `keras_bionet`; what they do differently is a
`Dialect`. Images are (b, h, w, c), kernels (h, w, in, out).

Source: Xiang et al. 2020, arXiv:2007.00243, and its published code.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, Float

from scorejax.models.convolution import conv, conv_spread
from scorejax.models.layers import Dense

Initializer = nn.initializers.Initializer


class Dialect(NamedTuple):
    """What the two official versions do differently."""

    private_middle: bool
    """Whether the coarsest level, too, has batch normalisations for each pass."""
    up: tuple[tuple[int, int], tuple[int, int]]
    """Padding of the convolution, of pixels with zeros between them, that doubles the size: the
    transposed convolutions of the two are a pixel apart."""
    momentum: float
    """Weight of the new batch in the running statistics: Keras' argument of this name is the weight
    of the old ones, one minus this."""
    epsilon: float
    kernel_init: Initializer
    bias_init: Callable[[int], Initializer]
    """fan_in -> how biases are drawn."""


def _uniform_bias(fan_in: int) -> Initializer:
    bound = 1 / math.sqrt(fan_in)
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(
        key, shape, dtype, -bound, bound
    )


TORCH = Dialect(
    private_middle=False,
    up=((1, 2), (1, 2)),
    momentum=0.01,
    epsilon=1e-5,
    kernel_init=nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
    bias_init=_uniform_bias,
)
# Keras keeps 0.01 of the old statistics where PyTorch takes 0.01 of the new: after one batch they
# are nearly its own. The official Keras evaluation did not use them, and had `train=True`.
KERAS = Dialect(
    private_middle=True,
    up=((2, 1), (2, 1)),
    momentum=0.99,
    epsilon=1e-3,
    kernel_init=nn.initializers.he_normal(),
    bias_init=lambda fan_in: nn.initializers.zeros,
)


class BatchNorm(nn.Module):
    """Normalises each channel: by the batch's moments in training, else by the running ones.

    The batch's own variance is the biased one, that which is kept the unbiased. Beside mean and
    var, `batch_stats` has the count of the batches seen. Statistics are in float32 at least.

    Raises: ValueError in training for a single pixel, which has no variance.
    """

    momentum: float
    epsilon: float

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w c"]:
        shape = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        var = self.variable("batch_stats", "var", jnp.ones, shape)
        count = self.variable("batch_stats", "count", jnp.zeros, (), jnp.int32)
        if not train:
            return self._normalized(x, scale, bias, mean.value, var.value)
        batch_mean, batch_var = _moments(x)
        if self.is_mutable_collection("batch_stats") and not self.is_initializing():
            num = x.size // x.shape[-1]
            unbiased = batch_var * (num / (num - 1))
            # Not in place: a caller's variables may be NumPy arrays.
            mean.value = mean.value + self.momentum * (batch_mean - mean.value)
            var.value = var.value + self.momentum * (unbiased - var.value)
            count.value = count.value + 1
        return self._normalized(x, scale, bias, batch_mean, batch_var)

    def _normalized(self, x: Array, scale: Array, bias: Array, mean: Array, var: Array) -> Array:
        multiplier = scale * jax.lax.rsqrt(var + self.epsilon)
        offset = bias - mean * multiplier
        return (multiplier[None, None, None] * x + offset[None, None, None]).astype(x.dtype)


def _moments(x: Float[Array, "b h w c"]) -> tuple[Float[Array, " c"], Float[Array, " c"]]:
    """Mean and biased variance over batch and pixels; two passes, in float32 at least."""
    if x.size == x.shape[-1]:
        raise ValueError(
            f"batch normalisation needs more than one pixel in training; got {x.shape}. Enlarge "
            "the batch or the images."
        )
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = jnp.mean(x, axis=(0, 1, 2))
    return mean, jnp.mean((x - mean[None, None, None]) ** 2, axis=(0, 1, 2))


class Unit(nn.Module):
    """A 3x3 convolution, ReLU, and one of `num_norms` batch normalisations: in this order.

    With `doubles` the convolution is the transposed one that doubles the size.
    """

    features: int
    num_norms: int
    dialect: Dialect
    doubles: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], number: int, train: bool) -> Array:
        """`number` is that of the pass; units with one normalisation have it for all."""
        shape = (3, 3, x.shape[-1], self.features)
        kernel = self.param("kernel", self.dialect.kernel_init, shape)
        bias = self.param("bias", self.dialect.bias_init(9 * x.shape[-1]), shape[-1:])
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        h = conv_spread(x, kernel, self.dialect.up) if self.doubles else conv(x, kernel)
        h = nn.relu(h + bias[None, None, None])
        number = min(number, self.num_norms - 1)
        norm = BatchNorm(self.dialect.momentum, self.dialect.epsilon, name=f"norm_{number}")
        return norm(h, train)


class BiONet(nn.Module):
    """The network (x (b, h, w, c)) -> logits (b, h, w, num_classes).

    `widths` are the channels of the levels, finest first, and of the middle. With `integrate` the
    last stage sees what every pass decoded, else what the last one did. `backward_levels` are the
    levels of the encoder, 0 the finest, to which decoded features go back; None is all of them. A
    level without joins its features to themselves, as the first pass does.

    With `train` batch normalisations use the batch's own moments, and the running ones in
    `batch_stats` move if that collection is mutable. `dtype` is the type of the arithmetic in
    convolutions; `remat` recomputes each pass in the backward pass, so that memory does not grow
    with what is inside of all of them.

    Raises: ValueError for sizes that cannot be, and for images whose sides are no multiples of 2 to
    the number of widths.
    """

    widths: tuple[int, ...] = (32, 64, 128, 256, 512)
    num_passes: int = 1
    integrate: bool = False
    backward_levels: tuple[int, ...] | None = None
    num_classes: int = 1
    dialect: Dialect = TORCH
    dtype: Any = None
    remat: bool = False

    def __post_init__(self) -> None:
        if len(self.widths) < 2 or min(self.widths) < 1:
            raise ValueError(
                f"BiONet needs two widths or more, each at least 1; got {tuple(self.widths)}. "
                "Enlarge the multiplier or the number of levels."
            )
        for name in ("num_passes", "num_classes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} needs to be at least 1; got {getattr(self, name)}.")
        known = set(range(self.num_levels))
        if not set(self.backward_levels or ()) <= known:
            raise ValueError(
                f"backward_levels needs levels of {sorted(known)}; got {self.backward_levels}."
            )
        super().__post_init__()

    @property
    def num_levels(self) -> int:
        """Levels of the encoder and of the decoder."""
        return len(self.widths) - 1

    def setup(self) -> None:
        passes, middle = self.num_passes, self.num_passes if self.dialect.private_middle else 1
        widths, coarsest = self.widths, self.widths[-1]
        self.pre = [self._unit(widths[0], 1) for _ in range(3)]
        self.encoder = [
            (self._unit(width, passes), self._unit(width, passes), self._unit(below, passes))
            for width, below in itertools.pairwise(widths)
        ]
        self.middle = [
            self._unit(coarsest, middle),
            self._unit(coarsest, middle),
            self._unit(coarsest, middle, doubles=True),
        ]
        self.decoder = [
            (
                self._unit(width, passes),
                self._unit(width, passes),
                self._unit(width, passes, doubles=True),
            )
            for width in widths[-2::-1]
        ]
        self.post = [self._unit(widths[0], 1) for _ in range(2)]
        self.head = Dense(
            self.num_classes,
            kernel_init=self.dialect.kernel_init,
            bias_init=self.dialect.bias_init(widths[0]),
        )

    def _unit(self, features: int, num_norms: int, *, doubles: bool = False) -> Unit:
        return Unit(features, num_norms, self.dialect, doubles, self.dtype)

    def __call__(
        self, x: Float[Array, "b h w c"], train: bool = False
    ) -> Float[Array, "b h w num_classes"]:
        decoded = self.decoded(x, train)
        h = jnp.concatenate(decoded, axis=-1) if self.integrate else decoded[-1]
        for unit in self.post:
            h = unit(h, 0, train)
        return self.head(h.astype(jnp.promote_types(h.dtype, jnp.float32)))

    def decoded(self, x: Float[Array, "b h w c"], train: bool = False) -> list[Array]:
        """What each pass decodes, (b, h, w, widths[0])."""
        require_sides(x.shape, 2 ** (self.num_levels + 1))
        for unit in self.pre:
            x = unit(x, 0, train)
        x = max_pool(x)
        backward: Sequence[Array | None] = [None] * self.num_levels
        outputs = []
        for number in range(self.num_passes):
            run = lambda net, x, backward, number=number: net._run(x, backward, number, train)
            h, backward = (nn.remat(run) if self.remat else run)(self, x, backward)
            outputs.append(h)
        return outputs

    def _run(
        self, x: Array, backward: Sequence[Array | None], number: int, train: bool
    ) -> tuple[Array, list[Array | None]]:
        """One pass: what it decodes in the end, and at each level of the encoder for the next."""
        h, forward = x, []
        for (join, keep, down), back in zip(self.encoder, backward, strict=True):
            h = join(jnp.concatenate([h, h if back is None else back], axis=-1), number, train)
            h = keep(h, number, train)
            forward.append(h)
            h = max_pool(down(h, number, train))
        for unit in self.middle:
            h = unit(h, number, train)
        levels, decoded = range(self.num_levels), [None] * self.num_levels
        for level, (join, keep, up) in zip(reversed(levels), self.decoder, strict=True):
            h = join(jnp.concatenate([h, forward[level]], axis=-1), number, train)
            h = decoded[level] = keep(h, number, train)
            h = up(h, number, train)
        fed = levels if self.backward_levels is None else self.backward_levels
        return h, [decoded[level] if level in fed else None for level in levels]


def torch_bionet(*, multiplier: float = 1.0, num_levels: int = 4, **options: Any) -> BiONet:
    """The official PyTorch version; sides of images are multiples of 2^(num_levels + 1).

    `options` are fields of BiONet. Raises: ValueError for values that cannot be, and, once it is
    applied, for images of other sides.
    """
    return BiONet(official_widths(multiplier, num_levels), dialect=TORCH, **options)


def keras_bionet(*, multiplier: float = 1.0, num_levels: int = 4, **options: Any) -> BiONet:
    """The official Keras version; otherwise as `torch_bionet`."""
    return BiONet(official_widths(multiplier, num_levels), dialect=KERAS, **options)


def official_widths(multiplier: float, num_levels: int) -> tuple[int, ...]:
    """Channels of the levels, finest first, and of the middle: 32 * 2^i * multiplier, truncated.

    They are not checked: a multiplier below 1 / 32 gives widths of 0, which `BiONet` refuses.
    """
    return tuple(int(32 * 2**i * multiplier) for i in range(num_levels + 1))


def max_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h/2 w/2 c"]:
    """Largest of 2 x 2 pixels.

    Not by a reducing window, whose gradient takes XLA's compiler for CPUs nine times as long. Equal
    pixels share the gradient, where the official code gives it to one of them; behind a ReLU and a
    normalisation only zeros are equal, and ReLU hands nothing on there.
    """
    b, h, w, c = x.shape
    return jnp.max(x.reshape(b, h // 2, 2, w // 2, 2, c), axis=(2, 4))


def require_sides(shape: Sequence[int], multiple: int) -> None:
    """Raises ValueError unless both sides of images (b, h, w, c) are multiples of a number."""
    height, width = shape[1:3]
    if height % multiple or width % multiple or not height or not width:
        raise ValueError(
            f"this BiO-Net needs images whose sides are multiples of {multiple}; got "
            f"{height} x {width}. Pad or crop them."
        )
