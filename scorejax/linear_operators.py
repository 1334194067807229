# SPDX-License-Identifier: Apache-2.0
"""Linear measurements of a batch, as in inverse problems, and their pseudo-inverses."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped


class LinearOperator(NamedTuple):
    """A linear map A of a batch (b, *d), and its pseudo-inverse A^+.

    pinv(forward(x)) must be an orthogonal projection; white noise then stays white in the measured
    part.
    """

    forward: Callable[[Array], Array]
    pinv: Callable[[Array], Array]

    def project(self, x: Array) -> Array:
        """A^+ A x: the part of x that is measured."""
        return self.pinv(self.forward(x))


def mask_operator(mask: Array | np.ndarray) -> LinearOperator:
    """Keeps the entries where the mask is 1; the mask broadcasts to (b, *d)."""
    keep = lambda x: jnp.broadcast_to(mask, x.shape).astype(x.dtype) * x
    return LinearOperator(keep, keep)


def colour_matrix() -> Float[np.ndarray, "3 3"]:
    """Orthogonal 3 x 3 matrix in float64; on row vectors, its first column takes the grey value.

    The grey coordinate is (r + g + b) / sqrt(3).
    """
    columns = [(1.0, 1.0, 1.0), (-2.0, 1.0, 1.0), (0.0, 1.0, -1.0)]
    return np.stack([np.asarray(column) / np.linalg.norm(column) for column in columns], axis=1)


def grey_operator() -> LinearOperator:
    """Takes the grey coordinate (b, h, w, 1) of images (b, h, w, 3)."""
    column = colour_matrix()[:, :1]

    def forward(x):
        return x @ jnp.asarray(column, x.dtype)

    def pinv(y):
        return y @ jnp.asarray(column.T, y.dtype)

    return LinearOperator(forward, pinv)


def average_pool_operator(size: int) -> LinearOperator:
    """Averages blocks of size x size pixels of (b, h, w, c): super-resolution."""

    def forward(x):
        b, h, w, c = x.shape
        return x.reshape(b, h // size, size, w // size, size, c).mean(axis=(2, 4))

    def pinv(y):
        return jnp.repeat(jnp.repeat(y, size, axis=1), size, axis=2)

    return LinearOperator(forward, pinv)


def blur_operator(kernel: Float[np.ndarray, "h w"], *, cutoff: float = 1e-3) -> LinearOperator:
    """Circular convolution of (b, h, w, c) with a kernel of the image's size, centred at [0, 0].

    Frequencies that the kernel weakens below `cutoff` of its largest response are set to zero, both
    by A and by A^+.
    """
    response = np.fft.fft2(kernel)
    kept = np.abs(response) > cutoff * np.abs(response).max()
    inverse = np.where(kept, 1 / np.where(kept, response, 1), 0)
    filtered = lambda x, by: _filter(x, jnp.asarray(by)).astype(x.dtype)
    return LinearOperator(
        lambda x: filtered(x, np.where(kept, response, 0)), lambda y: filtered(y, inverse)
    )


def fourier_operator(mask: Shaped[np.ndarray, "h w"]) -> LinearOperator:
    """The orthonormal Fourier coefficients of (b, h, w, c) where mask is 1, 0 elsewhere.

    Measurements are (b, h, w, 2 c): real parts, then imaginary parts.
    """
    mask = np.asarray(mask, np.float64)
    mirrored = np.roll(mask[::-1, ::-1], 1, axis=(0, 1))
    # A real image has each coefficient twice, at k and -k; the mask may keep only one of them.
    share = (mask + mirrored) / 2
    weight = np.where(share > 0, 1 / np.where(share > 0, share, 1), 0)

    def forward(x):
        spectrum = jnp.fft.fft2(x, axes=(1, 2), norm="ortho") * jnp.asarray(mask)[None, :, :, None]
        return jnp.concatenate([spectrum.real, spectrum.imag], axis=-1).astype(x.dtype)

    def pinv(y):
        real, imaginary = jnp.split(y, 2, axis=-1)
        spectrum = (real + 1j * imaginary) * jnp.asarray(mask)[None, :, :, None]
        image = jnp.fft.ifft2(spectrum, axes=(1, 2), norm="ortho").real
        return _filter(image, jnp.asarray(weight)).astype(y.dtype)

    return LinearOperator(forward, pinv)


def _filter(x: Array, response: Array) -> Array:
    """x (b, h, w, c) with its Fourier coefficients multiplied by response (h, w)."""
    spectrum = jnp.fft.fft2(x, axes=(1, 2)) * response[None, :, :, None]
    return jnp.fft.ifft2(spectrum, axes=(1, 2)).real
