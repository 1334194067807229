# SPDX-License-Identifier: Apache-2.0
"""Log-likelihoods by the probability-flow ODE, and their conversion to bits per dimension.

Along the flow dx/dt = F(x, t) the log-density changes at the rate -div F, so that

    log p(x) = log prior(x(t_max)) + integral from t_min to t_max of div F(x(t), t) dt.

Point and integral are solved together, each example with its own step sizes, so that rows are
independent. The divergence is `exact`, or estimated with random probes that stay the same along a
trajectory (`hutchinson`, `gaussian_hutchinson`).

Source: Song et al. 2021, arXiv:2011.13456, Appendix D.1 and D.2.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from scorejax import ode
from scorejax.random import row_keys
from scorejax.sdes import SDE, probability_flow
from scorejax.typing import ScoreFn

PointDrift = Callable[[Float[Array, "*d"]], Float[Array, "*d"]]
DriftAndDivergence = Callable[[PointDrift, Float[Array, "*d"]], tuple[Array, Array]]
Divergence = Callable[[PRNGKeyArray, Float[Array, "*d"]], DriftAndDivergence]
"""(rng, x) of one example -> a function (drift, x) -> (drift(x), its divergence at x).

The random probes are drawn in the first call, once per trajectory. The divergence is a scalar if it
is exact, and has one entry per probe otherwise.
"""

FIRST_STEP = 1e-2
"""First step of the solver, as a fraction of the time from t_min to t_max."""
NUM_TANGENTS = 16
"""Forward derivatives that the exact divergence takes at once."""


class LogProb(NamedTuple):
    """Log-densities of a batch, with their errors and the cost of the solves.

    A row whose solve did not finish has success False and NaN in the first three fields.
    """

    log_prob: Float[Array, "b"]  # nats
    standard_error: Float[Array, "b"]  # of log_prob over the probes: 0 if exact, NaN for one probe
    latent: Float[Array, "b *d"]  # x(t_max)
    steps: Int[Array, "b"]  # accepted and rejected
    nfe: Int[Array, "b"]  # evaluations of the drift, each with its divergence
    success: Bool[Array, "b"]


def exact(
    rng: PRNGKeyArray, x: Float[Array, "*d"], *, num_tangents: int = NUM_TANGENTS
) -> DriftAndDivergence:
    """The trace of the Jacobian, from one forward derivative for each entry of x; rng is unused.

    Takes num_tangents derivatives at once, so that every array of the drift is held num_tangents
    times for an example, besides the arrays that one evaluation keeps for its derivative. A batch
    of b examples needs the memory of b num_tangents evaluations: for 16 images of 32 x 32 pixels
    and 128 channels in float32, 128 MiB a feature map.
    Raises: ValueError if num_tangents < 1.
    """
    del rng
    if num_tangents < 1:
        raise ValueError(f"exact needs num_tangents >= 1; got {num_tangents}.")
    num_tangents = min(num_tangents, x.size)
    # Numbers from x.size on fill up the last chunk: their one-hot tangents are zero.
    chunks = jnp.arange(-(-x.size // num_tangents) * num_tangents).reshape(-1, num_tangents)

    def drift_and_divergence(drift_fn: PointDrift, x: Array) -> tuple[Array, Array]:
        drift, derivative = jax.linearize(drift_fn, x)

        def add_diagonal(total: Array, entries: Array) -> tuple[Array, None]:
            tangents = jax.nn.one_hot(entries, x.size, dtype=x.dtype)
            rows = jax.vmap(derivative)(tangents.reshape(-1, *x.shape))
            return total + jnp.sum(tangents * rows.reshape(-1, x.size)), None

        return drift, jax.lax.scan(add_diagonal, jnp.zeros((), drift.dtype), chunks)[0]

    return drift_and_divergence


def hutchinson(
    rng: PRNGKeyArray, x: Float[Array, "*d"], *, num_probes: int = 1
) -> DriftAndDivergence:
    """The unbiased estimate probe . J probe with random signs: exact for diagonal Jacobians.

    Each probe has variance 2 (|S|_F^2 - sum_i S_ii^2), S the symmetric part of the Jacobian J.
    Source: Hutchinson 1990, doi:10.1080/03610919008812866.
    """
    return along(jax.random.rademacher(rng, (num_probes, *x.shape), x.dtype))


def gaussian_hutchinson(
    rng: PRNGKeyArray, x: Float[Array, "*d"], *, num_probes: int = 1
) -> DriftAndDivergence:
    """The estimate of `hutchinson` with normal probes, each of variance 2 |S|_F^2: never less."""
    return along(jax.random.normal(rng, (num_probes, *x.shape), x.dtype))


def along(probes: Float[Array, "k *d"]) -> DriftAndDivergence:
    """Estimates the divergence along given probes; drift and estimate share one backward pass."""

    def drift_and_divergence(drift_fn: PointDrift, x: Array) -> tuple[Array, Array]:
        drift, pullback = jax.vjp(drift_fn, x)
        return drift, jax.vmap(lambda probe: jnp.sum(probe * pullback(probe)[0]))(probes)

    return drift_and_divergence


def log_prob(
    rng: PRNGKeyArray,
    sde: SDE,
    score_fn: ScoreFn,
    x: Float[Array, "b *d"],
    *,
    divergence: Divergence = hutchinson,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = 4096,
    matmul_precision: str = "highest",
) -> LogProb:
    """Log-density of each example at t_min under the probability flow that ends in the prior.

    divergence=functools.partial(hutchinson, num_probes=8) takes several probes, which give a
    standard error. The score must not depend on the batch (no dropout, no batch statistics).
    matmul_precision is that of the drift and its divergence, see `ode.dormand_prince`.
    Raises: ValueError unless rtol, atol and max_steps are positive.
    """
    if not (rtol > 0 and atol > 0 and max_steps > 0):
        raise ValueError(
            "log_prob needs positive rtol, atol and max_steps; "
            f"got rtol={rtol}, atol={atol}, max_steps={max_steps}."
        )
    drift_fn = probability_flow(sde, score_fn)
    solver = {"rtol": rtol, "atol": atol, "max_steps": max_steps}

    def solve(rng, x):
        drift_and_divergence = divergence(rng, x)
        return _solve(
            sde, drift_fn, drift_and_divergence, x, **solver, matmul_precision=matmul_precision
        )

    rngs = row_keys(rng, x.shape[0])
    (latent, integral), steps, nfe, _ = jax.vmap(solve)(rngs, x)
    change, error = _mean_and_standard_error(integral)
    value = sde.prior_log_prob(latent) + change
    return LogProb(
        log_prob=value,
        standard_error=error,
        latent=latent,
        steps=steps,
        nfe=nfe,
        success=jnp.isfinite(value),
    )


def _solve(sde, drift_fn, drift_and_divergence, x, **solver):
    """Latent and integrated divergence of one example."""

    def joint_drift(state, t):
        return drift_and_divergence(lambda x: drift_fn(x[None], t[None])[0], state[0])

    _, divergence = jax.eval_shape(joint_drift, (x, None), jnp.asarray(sde.t_min, x.dtype))
    start = x, jnp.zeros(divergence.shape, x.dtype)
    return ode.dormand_prince(
        joint_drift,
        start,
        sde.t_min,
        sde.t_max,
        first_step=FIRST_STEP,
        norm=ode.largest_root_mean_square,
        **solver,
    )


def _mean_and_standard_error(integral):
    """Mean over the probes, if there are any, and its standard error, both (b,)."""
    if integral.ndim == 1:
        return integral, 0 * integral  # NaN stays NaN
    num_probes = integral.shape[1]
    if num_probes == 1:
        return integral[:, 0], jnp.full_like(integral[:, 0], jnp.nan)
    return integral.mean(1), integral.std(1, ddof=1) / math.sqrt(num_probes)


def bits_per_dim(
    log_prob: Float[Array, "b"], dim: int, *, levels: int, data_range: tuple[float, float]
) -> Float[Array, "b"]:
    """Bits per dimension of images of `levels` grey levels, from nats of their dequantised form.

    data_range is the range of the model's data, onto which [0, 1] of
    `scorejax.data.transforms.dequantize` is mapped: (-1, 1), which adds 7 bits for 256 levels, or
    (0, 1), which adds 8. In the mean over the noise the answer is an upper bound of the bits of the
    discrete image.
    Raises: ValueError unless dim >= 1, levels >= 2 and data_range increases.
    Source: Theis et al. 2016, arXiv:1511.01844, Sec. 3.1.
    """
    low, high = data_range
    if not (levels >= 2 and low < high and dim >= 1):
        raise ValueError(
            "bits_per_dim needs dim >= 1, levels >= 2 and an increasing data_range; "
            f"got dim={dim}, levels={levels}, data_range={data_range}."
        )
    return -log_prob / (dim * math.log(2)) + math.log2(levels) - math.log2(high - low)


def importance_weighted(bits: Float[Array, "k b"], dim: int) -> Float[Array, "b"]:
    """Bits per dimension of the mean of k densities of one image, each with fresh dequantisation.

    Like the mean of the bits themselves it is an upper bound of the bits of the discrete image, and
    a tighter one as k grows. It needs densities by the `exact` divergence: the error of random
    probes does not average out in an exponent, and the answer would be too low.
    Source: Ho et al. 2019, arXiv:1902.00275, Eq. 10; Burda et al. 2016, arXiv:1509.00519, Eq. 8.
    """
    nats = dim * math.log(2)
    return -(jax.nn.logsumexp(-nats * bits, axis=0) - math.log(len(bits))) / nats
