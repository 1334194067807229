# SPDX-License-Identifier: Apache-2.0
"""Convolution whose derivatives of every order are again plain convolutions.

XLA's CPU compiler rewrites convolutions to their fast form only outside loops. Inside a `scan` or
`while_loop` the gradients of `lax.conv_general_dilated`, whose axes are permuted, take a naive path
about 15 times slower. This affects everything that differentiates a network inside a loop: the
likelihood ODE, guidance, Langevin dynamics on an energy, a scanned training step. The primitive
below lowers to `lax.conv_general_dilated` on every backend, but its transposes are convolutions of
NHWC images with HWIO kernels as well:

* d/dx convolves the cotangent with the spatially flipped kernel, its channel axes swapped;
* d/dkernel convolves x, with batch and channels swapped, with the cotangent as kernel.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

Pair = tuple[int, int]


class Window(NamedTuple):
    """Geometry of a convolution; each field is for (rows, columns).

    `image_dilation` - 1 zeros are inserted between pixels, then the image is padded with zeros
    (negative `padding` crops). The taps of the kernel are `kernel_dilation` pixels apart; the
    kernel moves by `stride`.
    """

    padding: tuple[Pair, Pair]
    stride: Pair = (1, 1)
    image_dilation: Pair = (1, 1)
    kernel_dilation: Pair = (1, 1)


def conv(
    x: Float[Array, "b h w c"], kernel: Float[Array, "kh kw c d"], window: Window | None = None
) -> Float[Array, "b oh ow d"]:
    """Cross-correlates x with the kernel; the default window keeps the size of the image.

    The default window has stride 1 and zero padding, and needs a kernel of odd sizes. The precision
    of its products, and of its derivatives', is `jax.default_matmul_precision` where it is traced.
    """
    # Read here, since a primitive is lowered after the context of the caller has ended.
    precision = jax.config.jax_default_matmul_precision
    return _bind(x, kernel, window=window or same_window(kernel.shape[:2]), precision=precision)


def _bind(x: Array, kernel: Array, *, window: Window, precision: str | None) -> Array:
    return conv_p.bind(x, kernel, window=window, precision=precision)


def conv_spread(
    x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"], padding: tuple[Pair, Pair]
) -> Float[Array, "b 2*h 2*w d"]:
    """Transposed convolution of stride 2: doubles the size, without multiplying by inserted zeros.

    Output pixels of equal parity use the same taps, so the four parities are computed as channels
    of one 2x2 convolution of x. It has 16 taps per input pixel, 9 of them non-zero, instead of 36.
    `padding` is that of the zero-filled image: (1, 2) or (2, 1) for rows, and for columns.
    Raises: ValueError for another padding.
    """
    (b, h, w, _), features = x.shape, kernel.shape[-1]
    rows = _taps_of_phases(kernel, padding[0])
    both = _taps_of_phases(jnp.moveaxis(rows, 2, 0), padding[1])
    stacked = both.transpose(3, 1, 4, 2, 0, 5).reshape(2, 2, kernel.shape[2], 4 * features)
    phases = conv(x, stacked, Window(tuple((low - 1, 2 - low) for low, _ in padding)))
    image = phases.reshape(b, h, w, 2, 2, features).transpose(0, 1, 3, 2, 4, 5)
    return image.reshape(b, 2 * h, 2 * w, features)


def _taps_of_phases(taps: Float[Array, "3 ..."], padding: Pair) -> Float[Array, "2 2 ..."]:
    """Taps along an axis on two adjacent pixels, for even and for odd outputs: axes (2, 2, ...)."""
    zero = jnp.zeros_like(taps[1])
    ends, centre = jnp.stack([taps[0], taps[2]]), taps[1]
    if padding == (1, 2):
        return jnp.stack([jnp.stack([centre, zero]), ends])
    if padding == (2, 1):
        return jnp.stack([ends, jnp.stack([zero, centre])])
    raise ValueError(f"conv_spread needs a padding of (1, 2) or (2, 1) on an axis; got {padding}.")


def same_window(kernel_size: Sequence[int], dilation: int = 1) -> Window:
    """Window of stride 1 that keeps the size of the image, for a kernel of odd sizes."""
    padding = tuple((dilation * (size // 2),) * 2 for size in kernel_size)
    return Window(padding, kernel_dilation=(dilation, dilation))


def _lax_conv(x: Array, kernel: Array, *, window: Window, precision: str | None) -> Array:
    return lax.conv_general_dilated(
        x, kernel, window.stride, window.padding, window.image_dilation, window.kernel_dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=precision or lax.Precision.DEFAULT,
    )  # fmt: skip


def _abstract(x, kernel, **params):
    return jax.make_jaxpr(functools.partial(_lax_conv, **params))(x, kernel).out_avals[0]


def _transpose_image(cotangent, x, kernel, *, window, precision):
    """d/dx: convolves the cotangent, with stride and image dilation swapped."""
    padding = []
    for axis, (low, _) in enumerate(window.padding):
        image, taps, out = _extents(x.aval.shape, kernel.shape, cotangent.shape, window, axis)
        before = taps - 1 - low
        padding.append((before, image + taps - 1 - out - before))
    flipped = jnp.swapaxes(jnp.flip(kernel, (0, 1)), 2, 3)
    swapped = Window(tuple(padding), window.image_dilation, window.stride, window.kernel_dilation)
    return _bind(cotangent, flipped, window=swapped, precision=precision)


def _transpose_kernel(cotangent, x, kernel, *, window, precision):
    """d/dkernel: convolves x, with stride and kernel dilation swapped."""
    padding = []
    for axis, (low, _) in enumerate(window.padding):
        image, taps, out = _extents(x.shape, kernel.aval.shape, cotangent.shape, window, axis)
        padding.append((low, out - image + taps - 1 - low))
    swapped = Window(tuple(padding), window.kernel_dilation, window.image_dilation, window.stride)
    channels, taps = x.transpose(3, 1, 2, 0), cotangent.transpose(1, 2, 0, 3)
    product = _bind(channels, taps, window=swapped, precision=precision)
    return product.transpose(1, 2, 0, 3)


def _extents(image, kernel, out, window, axis) -> tuple[int, int, int]:
    """Lengths along a spatial axis: dilated image, dilated kernel, output dilated by the stride."""
    return (
        (image[1 + axis] - 1) * window.image_dilation[axis] + 1,
        (kernel[axis] - 1) * window.kernel_dilation[axis] + 1,
        (out[1 + axis] - 1) * window.stride[axis] + 1,
    )


def _batch(arguments, axes, **params):
    x, kernel = arguments
    x_axis, kernel_axis = axes
    if kernel_axis is None:
        x = jnp.moveaxis(x, x_axis, 0)
        y = _bind(x.reshape(-1, *x.shape[2:]), kernel, **params)
        return y.reshape(*x.shape[:2], *y.shape[1:]), 0
    if x_axis is None:
        kernel = jnp.moveaxis(kernel, kernel_axis, 3)
        y = _bind(x, kernel.reshape(*kernel.shape[:3], -1), **params)
        return y.reshape(*y.shape[:3], *kernel.shape[3:]), 3
    # One kernel per image is a grouped convolution, which only `lax` supports.
    mapped = jax.vmap(functools.partial(_lax_conv, **params), in_axes=axes)
    return mapped(x, kernel), 0


_compiled = jax.jit(_lax_conv, static_argnames=("window", "precision"))
conv_p = Primitive("conv_nhwc")
conv_p.def_impl(lambda x, kernel, **params: _compiled(x, kernel, **params))
conv_p.def_abstract_eval(_abstract)
ad.defbilinear(conv_p, _transpose_image, _transpose_kernel)
batching.primitive_batchers[conv_p] = _batch
mlir.register_lowering(conv_p, mlir.lower_fun(_lax_conv, multiple_results=False))
