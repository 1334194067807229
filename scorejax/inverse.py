# SPDX-License-Identifier: Apache-2.0
"""Sampling under linear measurements y = A x of the data: inpainting, colorization and their like.

After every update of a sampler, the part of x_t that A sees is replaced by a noisy copy of what was
measured: x <- x + A^+ (scale y + std A z - A x), with A^+ the pseudo-inverse. Wrapping predictors
and correctors does it, so that every pair of them works. The replacement is an approximation: it
does not draw from the exact conditional law where known and unknown parts are correlated.

Source: Song et al. 2021, arXiv:2011.13456, Sec. 5 and Appendix I.2.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from scorejax.numerics import expand
from scorejax.samplers.correctors import Corrector, no_corrector
from scorejax.samplers.predictor_corrector import predictor_corrector
from scorejax.samplers.predictors import Move, Predictor, reverse_diffusion
from scorejax.sdes import SDE
from scorejax.typing import Sampled, ScoreFn


class LinearOperator(NamedTuple):
    """A linear map A of a batch (b, *d), and its pseudo-inverse A^+.

    pinv(forward(x)) must be an orthogonal projection, so that noise in the measured part stays
    white.
    """

    forward: Callable[[Array], Array]
    pinv: Callable[[Array], Array]

    def project(self, x: Array) -> Array:
        """A^+ A x: the part of x that is measured."""
        return self.pinv(self.forward(x))


def mask_operator(mask: Array | np.ndarray) -> LinearOperator:
    """Keeps the entries where mask is 1 and drops those where it is 0; it broadcasts to (b, *d)."""
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

    Frequencies that the kernel weakens below `cutoff` of its largest response count as lost, in
    both directions.
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
    # A real image has each coefficient twice, at k and -k; one of them may be masked.
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


def replace_measured(
    operator: LinearOperator,
    sde: SDE,
    y: Float[Array, "b *m"],
    x: Float[Array, "b *d"],
    x_mean: Float[Array, "b *d"],
    t: Float[Array, "b"],
    z: Float[Array, "b *d"],
) -> tuple[Float[Array, "b *d"], Float[Array, "b *d"]]:
    """x and x_mean with the part that is measured as y replaced by what y is at time t.

    x gets a copy with the noise z, x_mean one without noise; the rest of each stays as it is.
    """
    scale, std = (expand(value, x) for value in sde.marginal(t))
    known_mean = scale * operator.pinv(y)
    noise = std * operator.project(z)
    return (
        x - operator.project(x) + known_mean + noise,
        x_mean - operator.project(x_mean) + known_mean,
    )


def conditioned(
    update: Callable[..., Move], operator: LinearOperator, y: Float[Array, "b *m"]
) -> Any:
    """A predictor or corrector that imposes the measurement y after each of its calls."""

    def conditioned_update(rng: PRNGKeyArray, sde, score_fn, x, t, *args, **kwargs) -> Move:
        update_rng, noise_rng = jax.random.split(rng)
        moved = update(update_rng, sde, score_fn, x, t, *args, **kwargs)
        z = jax.random.normal(noise_rng, x.shape, x.dtype)
        x, x_mean = replace_measured(operator, sde, y, moved.x, moved.x_mean, t, z)
        return Move(x, x_mean, moved.nfe)

    return conditioned_update


def sample_given(
    rng: PRNGKeyArray,
    score_fn: ScoreFn,
    shape: tuple[int, ...],
    *,
    sde: SDE,
    operator: LinearOperator,
    y: Float[Array, "b *m"],
    predictor: Predictor = reverse_diffusion,
    corrector: Corrector = no_corrector,
    **chain: Any,
) -> Sampled:
    """Draws x of the given shape with A x = y, exactly so at the end.

    `chain` is what `predictor_corrector` takes beside: num_steps, snr, num_inner, t_min, denoise.
    """
    prior_rng, chain_rng = jax.random.split(rng)
    prior = sde.sample_prior(prior_rng, shape)
    x, nfe = predictor_corrector(
        chain_rng,
        score_fn,
        shape,
        sde=sde,
        predictor=conditioned(predictor, operator, y),
        corrector=conditioned(corrector, operator, y),
        x_init=operator.pinv(y) + prior - operator.project(prior),
        **chain,
    )
    return Sampled(x - operator.project(x) + operator.pinv(y), nfe)


def inpaint(
    rng: PRNGKeyArray,
    score_fn: ScoreFn,
    image: Float[Array, "b *d"],
    mask: Array | np.ndarray,
    *,
    sde: SDE,
    **chain: Any,
) -> Sampled:
    """Fills in the entries of image where mask is 0, given the others; see `sample_given`."""
    operator = mask_operator(mask)
    return sample_given(
        rng, score_fn, image.shape, sde=sde, operator=operator, y=operator.forward(image), **chain
    )


def colorize(
    rng: PRNGKeyArray,
    score_fn: ScoreFn,
    grey: Float[Array, "b h w 1"],
    *,
    sde: SDE,
    **chain: Any,
) -> Sampled:
    """Draws colour images (b, h, w, 3) whose channels average to grey; see `sample_given`."""
    operator = grey_operator()
    shape = (*grey.shape[:-1], 3)
    y = operator.forward(jnp.broadcast_to(grey, shape))
    return sample_given(rng, score_fn, shape, sde=sde, operator=operator, y=y, **chain)
