# SPDX-License-Identifier: Apache-2.0
"""Convolution whose derivatives of every order are, again, plain convolutions.

XLA's CPU compiler brings convolutions into their fast form only outside of loops. In a `scan` or
`while_loop` the gradients that `lax` emits, whose axes are permuted, stay on a naive path that is
some 15 times slower, and that hits whatever differentiates a network inside of a loop: the
likelihood ODE, guidance, Langevin dynamics on an energy, a scanned training step. The primitive
below lowers to `lax.conv_general_dilated` on every backend, but its transposes are written as
convolutions of NHWC images with HWIO kernels as well:

* in x: the cotangent with the kernel flipped in space, its channel axes swapped;
* in the kernel: x, its channels as batch and its batch as channels, with the cotangent as kernel.
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
    """How the kernel moves over the image, for (rows, columns).

    Zeros are put between the pixels (`image_dilation`), then around them (`padding`, which crops
    where negative); the kernel's taps are `kernel_dilation` apart and it moves by `stride`.
    """

    padding: tuple[Pair, Pair]
    stride: Pair = (1, 1)
    image_dilation: Pair = (1, 1)
    kernel_dilation: Pair = (1, 1)


def conv(
    x: Float[Array, "b h w c"], kernel: Float[Array, "kh kw c d"], window: Window | None = None
) -> Float[Array, "b oh ow d"]:
    """Cross-correlation of x with the kernel.

    Without a window the kernel, of odd sizes, moves by one pixel and zeros surround x, so that the
    image keeps its size.
    """
    return conv_p.bind(x, kernel, window=window or same_window(kernel.shape[:2]))


def conv_spread(
    x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"], padding: tuple[Pair, Pair]
) -> Float[Array, "b 2*h 2*w d"]:
    """`conv` of an image between whose pixels zeros are put, without multiplying by them.

    That is a transposed convolution of stride 2. Every second pixel of the output sees the same
    taps, the even ones of a row or the odd ones: these four outputs are channels of a 2x2
    convolution of x itself, with 16 taps where 9 differ from zero, and not 36. `padding` is (1, 2)
    or (2, 1) for rows, and for columns: what keeps twice the size.
    """
    (b, h, w, _), features = x.shape, kernel.shape[-1]
    rows = _taps_of_phases(kernel, padding[0])
    both = _taps_of_phases(jnp.moveaxis(rows, 2, 0), padding[1])
    stacked = both.transpose(3, 1, 4, 2, 0, 5).reshape(2, 2, kernel.shape[2], 4 * features)
    phases = conv(x, stacked, Window(tuple((low - 1, 2 - low) for low, _ in padding)))
    image = phases.reshape(b, h, w, 2, 2, features).transpose(0, 1, 3, 2, 4, 5)
    return image.reshape(b, 2 * h, 2 * w, features)


def _taps_of_phases(taps: Float[Array, "3 ..."], padding: Pair) -> Float[Array, "2 2 ..."]:
    """Along an axis, for even outputs and for odd ones, the taps on two neighbouring pixels."""
    zero = jnp.zeros_like(taps[1])
    ends, centre = jnp.stack([taps[0], taps[2]]), taps[1]
    if padding == (1, 2):
        return jnp.stack([jnp.stack([centre, zero]), ends])
    if padding == (2, 1):
        return jnp.stack([ends, jnp.stack([zero, centre])])
    raise ValueError(f"conv_spread needs a padding of (1, 2) or (2, 1) on an axis; got {padding}.")


def same_window(kernel_size: Sequence[int], dilation: int = 1) -> Window:
    """The window of stride 1 that keeps the size of the image, for a kernel of odd sizes."""
    padding = tuple((dilation * (size // 2),) * 2 for size in kernel_size)
    return Window(padding, kernel_dilation=(dilation, dilation))


def _lax_conv(x: Array, kernel: Array, *, window: Window) -> Array:
    return lax.conv_general_dilated(
        x, kernel, window.stride, window.padding, window.image_dilation, window.kernel_dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip


def _abstract(x, kernel, *, window):
    return jax.make_jaxpr(functools.partial(_lax_conv, window=window))(x, kernel).out_avals[0]


def _transpose_image(cotangent, x, kernel, *, window):
    """d/dx: a window on the cotangent in which stride and image dilation change places."""
    padding = []
    for axis, (low, _) in enumerate(window.padding):
        image, taps, out = _extents(x.aval.shape, kernel.shape, cotangent.shape, window, axis)
        before = taps - 1 - low
        padding.append((before, image + taps - 1 - out - before))
    flipped = jnp.swapaxes(jnp.flip(kernel, (0, 1)), 2, 3)
    swapped = Window(tuple(padding), window.image_dilation, window.stride, window.kernel_dilation)
    return conv(cotangent, flipped, swapped)


def _transpose_kernel(cotangent, x, kernel, *, window):
    """d/dkernel: a window on x in which stride and kernel dilation change places."""
    padding = []
    for axis, (low, _) in enumerate(window.padding):
        image, taps, out = _extents(x.shape, kernel.aval.shape, cotangent.shape, window, axis)
        padding.append((low, out - image + taps - 1 - low))
    swapped = Window(tuple(padding), window.kernel_dilation, window.image_dilation, window.stride)
    product = conv(x.transpose(3, 1, 2, 0), cotangent.transpose(1, 2, 0, 3), swapped)
    return product.transpose(1, 2, 0, 3)


def _extents(image, kernel, out, window, axis) -> tuple[int, int, int]:
    """Lengths along a spatial axis: dilated image, dilated kernel, outputs spread by the stride."""
    return (
        (image[1 + axis] - 1) * window.image_dilation[axis] + 1,
        (kernel[axis] - 1) * window.kernel_dilation[axis] + 1,
        (out[1 + axis] - 1) * window.stride[axis] + 1,
    )


def _batch(arguments, axes, *, window):
    x, kernel = arguments
    x_axis, kernel_axis = axes
    if kernel_axis is None:
        x = jnp.moveaxis(x, x_axis, 0)
        y = conv(x.reshape(-1, *x.shape[2:]), kernel, window)
        return y.reshape(*x.shape[:2], *y.shape[1:]), 0
    if x_axis is None:
        kernel = jnp.moveaxis(kernel, kernel_axis, 3)
        y = conv(x, kernel.reshape(*kernel.shape[:3], -1), window)
        return y.reshape(*y.shape[:3], *kernel.shape[3:]), 3
    # A kernel for each image is a grouped convolution, which only `lax` has.
    mapped = jax.vmap(functools.partial(_lax_conv, window=window), in_axes=axes)
    return mapped(x, kernel), 0


_compiled = jax.jit(_lax_conv, static_argnames="window")
conv_p = Primitive("conv_nhwc")
conv_p.def_impl(lambda x, kernel, *, window: _compiled(x, kernel, window=window))
conv_p.def_abstract_eval(_abstract)
ad.defbilinear(conv_p, _transpose_image, _transpose_kernel)
batching.primitive_batchers[conv_p] = _batch
mlir.register_lowering(conv_p, mlir.lower_fun(_lax_conv, multiple_results=False))
