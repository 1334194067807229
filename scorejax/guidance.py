# SPDX-License-Identifier: Apache-2.0
"""Conditional sampling by guidance: the score of x_t given y, for any sampler.

By Bayes' rule it is the score of x_t plus the gradient of log p_t(y | x_t). A classifier of noisy
data gives that gradient (`class_guided`). For linear measurements y = A x + noise it is an
approximation (`pseudoinverse_guided`). Rows are independent.

Source: Song et al. 2021, arXiv:2011.13456, Eq. 14 and Appendix I.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax.scipy.sparse.linalg import cg
from jaxtyping import Array, Float, Int

from scorejax.parameterize import score_to_denoiser
from scorejax.sdes import SDE
from scorejax.typing import ScoreFn

LogLikelihoodFn: TypeAlias = Callable[[Float[Array, "b *d"], Float[Array, "b"]], Float[Array, "b"]]
"""(x_t, t) -> log p_t(y | x_t) of each row, up to a constant."""
LogitsFn: TypeAlias = Callable[[Float[Array, "b *d"], Float[Array, "b"]], Float[Array, "b k"]]
"""A classifier of noisy data, (x_t, t) -> logits of k classes."""
Measurement: TypeAlias = Callable[[Float[Array, "b *d"]], Float[Array, "b *m"]]
"""A linear map A of each row."""

CG_TOLERANCE, CG_STEPS = 1e-5, 50


def guided(
    score_fn: ScoreFn, log_likelihood_fn: LogLikelihoodFn, *, guidance: float | Array = 1.0
) -> ScoreFn:
    """The score of x_t given y; `guidance` above 1 weighs y more than Bayes' rule does.

    Source: arXiv:2011.13456, Eq. 14; Dhariwal and Nichol 2021, arXiv:2105.05233, Sec. 4.3.
    """

    def conditional(x: Float[Array, "b *d"], t: Float[Array, "b"]) -> Float[Array, "b *d"]:
        gradient = jax.grad(lambda x: jnp.sum(log_likelihood_fn(x, t)))(x)
        return score_fn(x, t) + guidance * gradient

    return conditional


def class_guided(
    score_fn: ScoreFn,
    logits_fn: LogitsFn,
    label: Int[Array, "b"],
    *,
    guidance: float | Array = 1.0,
) -> ScoreFn:
    """The score of x_t given its class `label`, by a classifier of noisy data; see `guided`."""

    def log_likelihood(x: Float[Array, "b *d"], t: Float[Array, "b"]) -> Float[Array, "b"]:
        log_share = jax.nn.log_softmax(logits_fn(x, t))
        return jnp.take_along_axis(log_share, label[:, None], axis=1)[:, 0]

    return guided(score_fn, log_likelihood, guidance=guidance)


def pseudoinverse_guided(
    score_fn: ScoreFn,
    sde: SDE,
    measure: Measurement,
    y: Float[Array, "b *m"],
    *,
    noise_std: float = 0.0,
    data_std: float = 1.0,
) -> ScoreFn:
    """The score of x_t given y = measure(x_0) + noise_std z, as if x_0 given x_t were Gaussian.

    The mean of that Gaussian is the denoised point. Its covariance is that of isotropic data of
    standard deviation data_std: q^2 I with q^2 = data_std^2 std^2 / (scale^2 data_std^2 + std^2).
    The score is exact for isotropic Gaussian data; the stronger the data are correlated, the larger
    its error. The system q^2 A A^T + noise_std^2 I is solved by conjugate gradients. Each call
    makes one more backward pass.

    Source: Song et al. 2023, Pseudoinverse-guided diffusion models for inverse problems
    (openreview 9_gsMA8MRKQ), Eqs. 7-8.
    """

    def conditional(x: Float[Array, "b *d"], t: Float[Array, "b"]) -> Float[Array, "b *d"]:
        def denoise(x: Float[Array, "b *d"]) -> tuple[Array, Array]:
            score = score_fn(x, t)
            return score_to_denoiser(sde, t, x, score), score

        denoised, pullback, score = jax.vjp(denoise, x, has_aux=True)
        scale, std = sde.marginal(t)
        variance = data_std**2 * std**2 / (scale**2 * data_std**2 + std**2)
        towards = jax.vmap(lambda x, y, v: _explain(measure, x, y, v, noise_std**2))
        return score + pullback(towards(denoised, y, variance))[0]

    return conditional


def _explain(
    measure: Measurement, denoised: Array, y: Array, variance: Array, noise_variance: float
) -> Array:
    """A^T (variance A A^T + noise_variance I)^-1 (y - A denoised) for one row."""
    forward = lambda x: measure(x[None])[0]
    transpose = jax.linear_transpose(forward, denoised)
    system = lambda r: variance * forward(transpose(r)[0]) + noise_variance * r
    solved, _ = cg(system, y - forward(denoised), tol=CG_TOLERANCE, maxiter=CG_STEPS)
    return transpose(solved)[0]
