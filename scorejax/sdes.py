# SPDX-License-Identifier: Apache-2.0
"""Stochastic differential equations dx = f(x, t) dt + g(t) dw that turn data into noise.

Each SDE is a frozen dataclass of Python floats: hashable, closed over by jit, and with no grid
size inside. Time runs from t_min (data) to t_max (noise). All drifts are linear in x, so that
p(x_t | x_0) is the Gaussian N(scale(t) x_0, std(t)^2 I) which `marginal` returns.

Two protocols say what a function needs. `SDE` suffices for training, likelihoods, ODE samplers and
Euler-Maruyama. The reverse-diffusion and ancestral samplers invert a `DiscreteChain`: the paper's
Markov chain x_i = scale x_{i-1} + std z of num_steps steps, whose limit is the SDE.

Source: Song et al. 2021, arXiv:2011.13456, Sections 3.2-3.4 and Appendices B, C and E.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float

from scorejax.choices import choose
from scorejax.numerics import expand, gaussian_log_prob, table_index
from scorejax.random import Rng, normal
from scorejax.typing import ScoreFn, Shape


@runtime_checkable
class SDE(Protocol):
    """A linear stochastic differential equation with a Gaussian prior at t_max.

    Training and likelihoods stop at t_min, samplers at sampling_t_min.
    """

    t_min: float
    t_max: float
    sampling_t_min: ClassVar[float]

    def drift(self, x: Float[Array, "b *d"], t: Float[Array, "b"]) -> Float[Array, "b *d"]:
        """The drift f(x, t)."""
        ...

    def diffusion(self, t: Float[Array, "b"]) -> Float[Array, "b"]:
        """The diffusion coefficient g(t)."""
        ...

    def marginal(self, t: Float[Array, "b"]) -> tuple[Float[Array, "b"], Float[Array, "b"]]:
        """Scale and std of x_t given x_0: x_t ~ N(scale x_0, std^2 I)."""
        ...

    def time_of_sigma(self, sigma: Float[Array, "b"]) -> Float[Array, "b"]:
        """The time at which std / scale is sigma."""
        ...

    def sample_prior(self, rng: Rng, shape: Shape) -> Float[Array, "b *d"]:
        """Draws from the prior; each row from its own key if there are several."""
        ...

    def prior_log_prob(self, z: Float[Array, "b *d"]) -> Float[Array, "b"]:
        """Log-density of the prior, in nats."""
        ...


@runtime_checkable
class DiscreteChain(Protocol):
    """A Markov chain whose limit for many steps is the SDE."""

    def transition(
        self, t: Float[Array, "b"], num_steps: int
    ) -> tuple[Float[Array, "b"], Float[Array, "b"]]:
        """Scale and std of the step that ends at time t in the chain of num_steps steps."""
        ...

    def ancestral_std(self, t: Float[Array, "b"], num_steps: int) -> Float[Array, "b"]:
        """Noise of the ancestral sampling step that goes back from time t.

        Raises: ValueError if the chain has no ancestral sampling.
        """
        ...


def discrete_chain(sde: SDE, sampler: str) -> DiscreteChain:
    """The SDE itself, as the chain that `sampler` inverts.

    Raises: ValueError if the SDE defines no chain.
    """
    if not isinstance(sde, DiscreteChain):
        raise ValueError(
            f"{sampler} inverts a discrete chain, and {type(sde).__name__} has no transition and "
            "ancestral_std; use euler_maruyama, euler_flow, heun, dpm++ or ode."
        )
    return sde


class _LinearBeta:
    """SDE with the VP drift and beta(t) = beta_min + t (beta_max - beta_min)."""

    beta_min: float
    beta_max: float
    t_min: float
    t_max: float

    def __post_init__(self) -> None:
        if not 0 <= self.beta_min < self.beta_max:
            raise ValueError(
                f"{type(self).__name__} needs 0 <= beta_min < beta_max; got "
                f"beta_min={self.beta_min}, beta_max={self.beta_max}."
            )
        _require_time_order(type(self).__name__, self.t_min, self.t_max)

    def beta(self, t: Float[Array, "b"] | float) -> Float[Array, "b"] | float:
        """The rate beta(t)."""
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def integrated_beta(self, t: Float[Array, "b"] | float) -> Float[Array, "b"] | float:
        """Integral of beta from 0 to t."""
        return t * (self.beta_min + t * (self.beta_max - self.beta_min) / 2)

    def time_of_integrated_beta(self, integral: Float[Array, "b"]) -> Float[Array, "b"]:
        """The inverse of `integrated_beta`, without cancellation near 0."""
        root = jnp.sqrt(self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * integral)
        total = self.beta_min + root  # zero at t = 0 if beta_min is zero
        return 2 * integral / jnp.where(total > 0, total, 1)

    def drift(self, x: Float[Array, "b *d"], t: Float[Array, "b"]) -> Float[Array, "b *d"]:
        """The drift -beta(t) x / 2."""
        return -0.5 * expand(self.beta(t), x) * x

    def sample_prior(self, rng: Rng, shape: Shape) -> Float[Array, "b *d"]:
        """Draws from N(0, I); each row from its own key if there are several."""
        return normal(rng, shape)

    def prior_log_prob(self, z: Float[Array, "b *d"]) -> Float[Array, "b"]:
        """Log-density of N(0, I), in nats."""
        return gaussian_log_prob(z, 1.0)


@dataclasses.dataclass(frozen=True)
class VPSDE(_LinearBeta):
    """Variance-preserving SDE, dx = -beta(t) x / 2 dt + sqrt(beta(t)) dw.

    Data should have about unit variance, images lie in [-1, 1].
    Source: arXiv:2011.13456, Eq. 11, and Eqs. 32-33 for the linear beta.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-5
    t_max: float = 1.0
    name: ClassVar[str] = "vp"
    sampling_t_min: ClassVar[float] = 1e-3

    def diffusion(self, t: Float[Array, "b"]) -> Float[Array, "b"]:
        """The diffusion coefficient sqrt(beta(t))."""
        return jnp.sqrt(self.beta(t))

    def marginal(self, t: Float[Array, "b"]) -> tuple[Float[Array, "b"], Float[Array, "b"]]:
        """Scale exp(-B/2) and std sqrt(1 - exp(-B)) of x_t given x_0, B the integral of beta."""
        integral = self.integrated_beta(t)
        # 1 - exp(-B) has lost five of seven digits at t = 1e-5 in float32; expm1 keeps them all.
        return jnp.exp(-integral / 2), jnp.sqrt(-jnp.expm1(-integral))

    def time_of_sigma(self, sigma: Float[Array, "b"]) -> Float[Array, "b"]:
        """The time at which std / scale, whose square is exp(B) - 1, is sigma."""
        return self.time_of_integrated_beta(jnp.log1p(sigma**2))

    def transition(
        self, t: Float[Array, "b"], num_steps: int
    ) -> tuple[Float[Array, "b"], Float[Array, "b"]]:
        """Scale sqrt(1 - beta_i) and std sqrt(beta_i) of the DDPM chain, with beta_i linear in i.

        Raises: ValueError if num_steps < 2 or the last beta_i is not below 1.
        """
        step = self.t_max / num_steps
        last_beta = self.beta(self.t_max) * step
        if num_steps < 2 or last_beta >= 1:
            raise ValueError(
                f"the VP chain with beta_max={self.beta_max:g} needs its last beta below 1; "
                f"num_steps={num_steps} gives {last_beta:g}. Take more steps, or euler_maruyama."
            )
        position = table_index(t / self.t_max, num_steps).astype(t.dtype) / (num_steps - 1)
        beta = self.beta(self.t_max * position) * step
        return jnp.sqrt(1 - beta), jnp.sqrt(beta)

    def ancestral_std(self, t: Float[Array, "b"], num_steps: int) -> Float[Array, "b"]:
        """Noise sqrt(beta_i) of the ancestral step: the larger choice of Ho et al. 2020, Sec. 3."""
        return self.transition(t, num_steps)[1]


@dataclasses.dataclass(frozen=True)
class SubVPSDE(_LinearBeta):
    """Sub-VP SDE: the VP drift with g(t)^2 = beta(t) (1 - exp(-2 B(t))); B is the integral of beta.

    Its variance never exceeds that of VP. Source: arXiv:2011.13456, Eq. 12 and Eq. 29.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-5
    t_max: float = 1.0
    name: ClassVar[str] = "subvp"
    sampling_t_min: ClassVar[float] = 1e-3

    def diffusion(self, t: Float[Array, "b"]) -> Float[Array, "b"]:
        """The diffusion coefficient sqrt(beta(t) (1 - exp(-2 B(t))))."""
        return jnp.sqrt(-self.beta(t) * jnp.expm1(-2 * self.integrated_beta(t)))

    def marginal(self, t: Float[Array, "b"]) -> tuple[Float[Array, "b"], Float[Array, "b"]]:
        """Scale exp(-B/2) and std 1 - exp(-B) of x_t given x_0; the variance is its square."""
        integral = self.integrated_beta(t)
        return jnp.exp(-integral / 2), -jnp.expm1(-integral)

    def time_of_sigma(self, sigma: Float[Array, "b"]) -> Float[Array, "b"]:
        """The time at which std / scale, 2 sinh(B / 2), is sigma."""
        return self.time_of_integrated_beta(2 * jnp.arcsinh(sigma / 2))

    def transition(
        self, t: Float[Array, "b"], num_steps: int
    ) -> tuple[Float[Array, "b"], Float[Array, "b"]]:
        """Scale 1 - beta(t) dt / 2 and std g(t) sqrt(dt) of one Euler step, dt = t_max / n."""
        step = self.t_max / num_steps
        return 1 - self.beta(t) * step / 2, self.diffusion(t) * math.sqrt(step)

    def ancestral_std(self, t: Float[Array, "b"], num_steps: int) -> Float[Array, "b"]:
        """Raises ValueError: the Euler steps of sub-VP have no ancestral sampling."""
        raise ValueError(
            "ancestral sampling is not defined for subvp; take reverse_diffusion or euler_maruyama."
        )


@dataclasses.dataclass(frozen=True)
class VESDE:
    """Variance-exploding SDE, dx = sigma(t) sqrt(2 ln(sigma_max / sigma_min)) dw.

    sigma(t) = sigma_min (sigma_max / sigma_min)^t has the units of the data. The data distribution
    of this model is the data convolved with N(0, sigma_min^2 I), so that std(0) = sigma_min.
    Source: arXiv:2011.13456, Eq. 9, and Eqs. 30-31 for the geometric sigma.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    t_min: float = 1e-5
    t_max: float = 1.0
    name: ClassVar[str] = "ve"
    sampling_t_min: ClassVar[float] = 1e-5

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(
                "VESDE needs 0 < sigma_min < sigma_max; got "
                f"sigma_min={self.sigma_min}, sigma_max={self.sigma_max}."
            )
        _require_time_order("VESDE", self.t_min, self.t_max)

    def sigma(self, t: Float[Array, "b"] | float) -> Float[Array, "b"] | float:
        """Standard deviation of the noise at time t."""
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** t

    def drift(self, x: Float[Array, "b *d"], t: Float[Array, "b"]) -> Float[Array, "b *d"]:
        """No drift."""
        return jnp.zeros_like(x)

    def diffusion(self, t: Float[Array, "b"]) -> Float[Array, "b"]:
        """The diffusion coefficient sigma(t) sqrt(2 ln(sigma_max / sigma_min))."""
        return self.sigma(t) * math.sqrt(2 * math.log(self.sigma_max / self.sigma_min))

    def marginal(self, t: Float[Array, "b"]) -> tuple[Float[Array, "b"], Float[Array, "b"]]:
        """Scale 1 and std sigma(t) of x_t given x_0."""
        return jnp.ones_like(t), self.sigma(t)

    def time_of_sigma(self, sigma: Float[Array, "b"]) -> Float[Array, "b"]:
        """The time t at which sigma(t) is sigma."""
        return jnp.log(sigma / self.sigma_min) / math.log(self.sigma_max / self.sigma_min)

    def transition(
        self, t: Float[Array, "b"], num_steps: int
    ) -> tuple[Float[Array, "b"], Float[Array, "b"]]:
        """Scale 1 and std sqrt(sigma_i^2 - sigma_{i-1}^2) of the SMLD chain; sigma_{-1} = 0."""
        sigma, ratio = self._sigma_and_ratio(t, num_steps)
        return jnp.ones_like(t), sigma * jnp.sqrt(1 - ratio**2)

    def ancestral_std(self, t: Float[Array, "b"], num_steps: int) -> Float[Array, "b"]:
        """Noise of the ancestral step. Source: arXiv:2011.13456, Appendix F, Eq. 47."""
        sigma, ratio = self._sigma_and_ratio(t, num_steps)
        return sigma * ratio * jnp.sqrt(1 - ratio**2)

    def _sigma_and_ratio(self, t: Array, num_steps: int) -> tuple[Array, Array]:
        """sigma_i of the step that ends at t, and sigma_{i-1} / sigma_i."""
        if num_steps < 2:
            raise ValueError(f"the VE chain needs num_steps >= 2; got {num_steps}.")
        index = table_index(t / self.t_max, num_steps)
        spacing = self.t_max / (num_steps - 1)
        ratio = (self.sigma_min / self.sigma_max) ** spacing
        return self.sigma(index.astype(t.dtype) * spacing), jnp.where(index > 0, ratio, 0.0)

    def sample_prior(self, rng: Rng, shape: Shape) -> Float[Array, "b *d"]:
        """Draws from N(0, sigma(t_max)^2 I); each row from its own key if there are several."""
        return self.sigma(self.t_max) * normal(rng, shape)

    def prior_log_prob(self, z: Float[Array, "b *d"]) -> Float[Array, "b"]:
        """Log-density of N(0, sigma(t_max)^2 I), in nats."""
        return gaussian_log_prob(z, self.sigma(self.t_max))


_BY_NAME = {
    "vp": (VPSDE, ("beta_min", "beta_max")),
    "subvp": (SubVPSDE, ("beta_min", "beta_max")),
    "ve": (VESDE, ("sigma_min", "sigma_max")),
}


def get_sde(name: str, options: Mapping[str, Any]) -> SDE:
    """The SDE called "vp", "subvp" or "ve"; ignores the options that it does not have.

    Raises: ValueError if the name is unknown or an option is out of range.
    """
    sde_class, fields = choose("sde", name, _BY_NAME)
    return sde_class(**{field: options[field] for field in fields})


DriftFn = Callable[[Float[Array, "b *d"], Float[Array, "b"]], Float[Array, "b *d"]]


def reverse_drift(sde: SDE, score_fn: ScoreFn) -> DriftFn:
    """Drift f - g^2 score of the reverse-time SDE, whose dt is negative. Source: Eq. 6."""
    return lambda x, t: sde.drift(x, t) - expand(sde.diffusion(t) ** 2, x) * score_fn(x, t)


def probability_flow(sde: SDE, score_fn: ScoreFn) -> DriftFn:
    """Drift f - g^2 score / 2 of the ODE with the same marginals as the SDE. Source: Eq. 13."""
    return lambda x, t: sde.drift(x, t) - expand(sde.diffusion(t) ** 2, x) * score_fn(x, t) / 2


def _require_time_order(name: str, t_min: float, t_max: float) -> None:
    if not 0 <= t_min < t_max:
        raise ValueError(f"{name} needs 0 <= t_min < t_max; got t_min={t_min}, t_max={t_max}.")
