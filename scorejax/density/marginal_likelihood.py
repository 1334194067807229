# SPDX-License-Identifier: Apache-2.0
"""The likelihood of a decoder, p(x) = E p(x | z) over a standard normal prior, by annealing.

Draws of the prior walk to the posterior p(z | x), see `annealed_importance`: the mean weight is an
unbiased estimate of p(x), so that the estimate of log p(x) is too small on average. It depends on
the decoder alone: whatever encoder trained it, two decoders are compared by the same number.

Source: Wu et al. 2017, arXiv:1611.04273.
"""

import jax
from jaxtyping import PRNGKeyArray

from scorejax.density.annealed_importance import (
    Normalizer,
    hamiltonian_annealing,
    importance_normalizer,
)
from scorejax.density.annealing_path import geometric_path, sigmoid_betas
from scorejax.numerics import gaussian_log_prob
from scorejax.samplers.hamiltonian import LogProb


def annealed_marginal(
    rng: PRNGKeyArray,
    log_likelihood: LogProb,
    latent: int,
    *,
    num_chains: int = 16,
    num_temperatures: int = 1000,
    num_steps: int = 10,
) -> Normalizer:
    """log p(x) in nats of one x, for log_likelihood z (n, latent) -> log p(x | z) (n,).

    Makes about 2 num_temperatures num_steps gradient calls on num_chains rows: one half tunes the
    step sizes of Hamiltonian Monte Carlo, on other chains. Map it over keys and examples.
    """
    prior = lambda z: gaussian_log_prob(z, 1.0)
    joint = lambda z: prior(z) + log_likelihood(z)
    path = geometric_path(prior, joint, sigmoid_betas(num_temperatures))
    draw = lambda rng: jax.random.normal(rng, (num_chains, latent))
    walks = hamiltonian_annealing(rng, path, draw, num_steps=num_steps)
    return importance_normalizer(walks.log_weights)
