# SPDX-License-Identifier: Apache-2.0
"""BiO-Net: a U-Net that runs `num_passes` times and feeds decoded features back to its encoder.

All passes share convolutions; each pass has its own batch normalisations. The first pass has no
decoded features and concatenates the encoder's features with themselves, so that a single pass is a
U-Net. `torch_bionet` and `keras_bionet` build the two official versions, which differ by a
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
    """Differences between the official PyTorch and Keras versions."""

    private_middle: bool
    """Whether the coarsest level also has separate batch normalisations per pass."""
    up: tuple[tuple[int, int], tuple[int, int]]
    """Padding of the transposed convolution that doubles the size. The outputs of the two versions
    are one pixel apart."""
    momentum: float
    """Weight of the new batch in the running statistics; Keras calls one minus this `momentum`."""
    epsilon: float
    kernel_init: Initializer
    bias_init: Callable[[int], Initializer]
    """Maps fan_in to the initializer of the biases."""


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
# The official Keras version sets momentum=0.01, which keeps 0.01 of the old statistics: they are
# nearly those of the last batch. Its evaluation ran with `train=True` and did not use them.
KERAS = Dialect(
    private_middle=True,
    up=((2, 1), (2, 1)),
    momentum=0.99,
    epsilon=1e-3,
    kernel_init=nn.initializers.he_normal(),
    bias_init=lambda fan_in: nn.initializers.zeros,
)


class BatchNorm(nn.Module):
    """Normalises each channel, by the moments of the batch in training, else by running moments.

    The batch is normalised by its biased variance; the running variance is unbiased. `batch_stats`
    holds mean, var and count, the number of batches so far. Statistics are at least float32. They
    stand still without `moves`.

    Raises: ValueError in training if there is only one pixel, whose variance is undefined.
    """

    momentum: float
    epsilon: float

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], train: bool, moves: bool = True
    ) -> Float[Array, "b h w c"]:
        shape = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        var = self.variable("batch_stats", "var", jnp.ones, shape)
        count = self.variable("batch_stats", "count", jnp.zeros, (), jnp.int32)
        if not train:
            return self._normalized(x, scale, bias, mean.value, var.value)
        batch_mean, batch_var = _moments(x)
        mutable = self.is_mutable_collection("batch_stats") and not self.is_initializing()
        if moves and mutable:
            num = x.size // x.shape[-1]
            unbiased = batch_var * (num / (num - 1))
            # Not `+=`: a caller's variables may be NumPy arrays, which it would change in place.
            mean.value = mean.value + self.momentum * (batch_mean - mean.value)
            var.value = var.value + self.momentum * (unbiased - var.value)
            count.value = count.value + 1
        return self._normalized(x, scale, bias, batch_mean, batch_var)

    def _normalized(self, x: Array, scale: Array, bias: Array, mean: Array, var: Array) -> Array:
        multiplier = scale * jax.lax.rsqrt(var + self.epsilon)
        offset = bias - mean * multiplier
        return (multiplier[None, None, None] * x + offset[None, None, None]).astype(x.dtype)


def _moments(x: Float[Array, "b h w c"]) -> tuple[Float[Array, " c"], Float[Array, " c"]]:
    """Mean and biased variance (c,) over batch and pixels, in two passes, at least float32."""
    if x.size == x.shape[-1]:
        raise ValueError(
            f"batch normalisation needs more than one pixel in training; got {x.shape}. Enlarge "
            "the batch or the images."
        )
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = jnp.mean(x, axis=(0, 1, 2))
    return mean, jnp.mean((x - mean[None, None, None]) ** 2, axis=(0, 1, 2))


class Unit(nn.Module):
    """A 3x3 convolution, then ReLU, then one of `num_norms` batch normalisations.

    With `doubles` the convolution is transposed and doubles the size.
    """

    features: int
    num_norms: int
    dialect: Dialect
    doubles: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], number: int, train: bool, moves: bool = True
    ) -> Array:
        """`number` counts passes from 0 and selects the normalisation, or the only one."""
        shape = (3, 3, x.shape[-1], self.features)
        kernel = self.param("kernel", self.dialect.kernel_init, shape)
        bias = self.param("bias", self.dialect.bias_init(9 * x.shape[-1]), shape[-1:])
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        h = conv_spread(x, kernel, self.dialect.up) if self.doubles else conv(x, kernel)
        h = nn.relu(h + bias[None, None, None])
        number = min(number, self.num_norms - 1)
        norm = BatchNorm(self.dialect.momentum, self.dialect.epsilon, name=f"norm_{number}")
        return norm(h, train, moves)


class BiONet(nn.Module):
    """The network (x (b, h, w, c)) -> logits (b, h, w, num_classes).

    `widths` are the channels of the levels, finest first, and of the middle. With `integrate` the
    last stage receives the decoded features of all passes, otherwise those of the last pass.
    `backward_levels` are the encoder levels (0 is the finest) that receive decoded features; None
    means all. Other levels concatenate their features with themselves, as the first pass does.

    With `train` batch normalisations use the moments of the batch, and update the running moments
    in `batch_stats` if that collection is mutable. `dtype` is the type of the arithmetic in
    convolutions. `remat` recomputes each pass during backpropagation instead of storing its
    activations.

    Raises: ValueError if a hyper-parameter is invalid, or the sides of the images are not multiples
    of 2^len(widths).
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
                f"BiONet needs at least two widths, each at least 1; got {tuple(self.widths)}. "
                "Enlarge the multiplier or the number of levels."
            )
        for name in ("num_passes", "num_classes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} needs to be at least 1; got {getattr(self, name)}.")
        levels = set(range(self.num_levels))
        if not set(self.backward_levels or ()) <= levels:
            raise ValueError(
                f"backward_levels needs levels of {sorted(levels)}; got {self.backward_levels}."
            )
        super().__post_init__()

    @property
    def num_levels(self) -> int:
        """Number of levels of the encoder, and of the decoder."""
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
        self, x: Float[Array, "b h w c"], train: bool = False, passes: int | None = None
    ) -> Float[Array, "b h w num_classes"]:
        """The logits after the first `passes` passes, all of them by default.

        With `integrate` the last pass made stands for those that are left out.
        """
        return self._logits(self.decoded(x, train, passes), train)

    def logits_of_passes(
        self, x: Float[Array, "b h w c"], train: bool = False, passes: int | None = None
    ) -> list[Array]:
        """The logits after one pass, after two, and so on, for a loss of each.

        Running statistics of the last stage are those of the last of them.
        """
        decoded = self.decoded(x, train, passes)
        upto = range(1, len(decoded) + 1)
        return [self._logits(decoded[:n], train, moves=n == len(decoded)) for n in upto]

    def _logits(self, decoded: list[Array], train: bool, moves: bool = True) -> Array:
        h = decoded[-1]
        if self.integrate:
            missing = [h] * (self.num_passes - len(decoded))
            h = jnp.concatenate([*decoded, *missing], axis=-1)
        for unit in self.post:
            h = unit(h, 0, train, moves)
        return self.head(h.astype(jnp.promote_types(h.dtype, jnp.float32)))

    def decoded(
        self, x: Float[Array, "b h w c"], train: bool = False, passes: int | None = None
    ) -> list[Array]:
        """Decoded features (b, h, w, widths[0]) of each of the first `passes` passes.

        Raises: ValueError unless 1 <= passes <= num_passes.
        """
        passes = self.num_passes if passes is None else passes
        if not 1 <= passes <= self.num_passes:
            raise ValueError(f"passes needs to lie in [1, {self.num_passes}]; got {passes}.")
        require_sides(x.shape, 2 ** (self.num_levels + 1))
        for unit in self.pre:
            x = unit(x, 0, train)
        x = max_pool(x)
        backward: Sequence[Array | None] = [None] * self.num_levels
        outputs = []
        for number in range(passes):
            run = lambda net, x, backward, number=number: net._run(x, backward, number, train)
            h, backward = (nn.remat(run) if self.remat else run)(self, x, backward)
            outputs.append(h)
        return outputs

    def _run(
        self, x: Array, backward: Sequence[Array | None], number: int, train: bool
    ) -> tuple[Array, list[Array | None]]:
        """Runs one pass: its decoded features, and the features per level for the next pass."""
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
        backward_levels = levels if self.backward_levels is None else self.backward_levels
        return h, [decoded[level] if level in backward_levels else None for level in levels]


def torch_bionet(*, multiplier: float = 1.0, num_levels: int = 4, **options: Any) -> BiONet:
    """Builds the official PyTorch version; `options` are further fields of BiONet.

    Image sides need to be multiples of 2^(num_levels + 1). Raises: ValueError as `BiONet`.
    """
    return BiONet(official_widths(multiplier, num_levels), dialect=TORCH, **options)


def keras_bionet(*, multiplier: float = 1.0, num_levels: int = 4, **options: Any) -> BiONet:
    """Builds the official Keras version; arguments as in `torch_bionet`."""
    return BiONet(official_widths(multiplier, num_levels), dialect=KERAS, **options)


def official_widths(multiplier: float, num_levels: int) -> tuple[int, ...]:
    """Widths of the levels, finest first, and of the middle: 32 * 2^i * multiplier, truncated.

    A multiplier below 1 / 32 gives a width of 0, which `BiONet` refuses.
    """
    return tuple(int(32 * 2**i * multiplier) for i in range(num_levels + 1))


def max_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h/2 w/2 c"]:
    """Maximum over blocks of 2 x 2 pixels.

    Reshapes replace `reduce_window`, whose gradient takes XLA's CPU compiler nine times as long.
    The gradient of `jnp.max` would divide by the number of pixels equal to the maximum. That number
    is 0 where the compiler computes the pixels twice and rounds them in two ways.

    Equal pixels share the gradient, whereas the official code passes it to one of them. After ReLU
    and normalisation only zeros are equal, and there ReLU blocks the gradient.
    """
    b, h, w, c = x.shape
    rows = x.reshape(b, h // 2, 2, w, c)
    columns = jnp.maximum(rows[:, :, 0], rows[:, :, 1]).reshape(b, h // 2, w // 2, 2, c)
    return jnp.maximum(columns[:, :, :, 0], columns[:, :, :, 1])


def require_sides(shape: Sequence[int], multiple: int) -> None:
    """Raises ValueError unless both sides of images (b, h, w, c) are multiples of `multiple`."""
    height, width = shape[1:3]
    if height % multiple or width % multiple or not height or not width:
        raise ValueError(
            f"this BiO-Net needs images whose sides are multiples of {multiple}; got "
            f"{height} x {width}. Pad or crop them."
        )
