# SPDX-License-Identifier: Apache-2.0
"""Noise levels of diffusion recovery likelihood, and the constants that follow from them.

Level 0 is the data with a little noise; level t + 1 scales level t and adds noise, so that the
variance of data of variance 1 stays 1:

    x_{t+1} = a_{t+1} x_t + sigma_{t+1} z,   a^2 + sigma^2 = 1,   t = 0 .. T - 1.

There are T + 1 levels and T energies. Energy t is that of y_t = a_{t+1} x_t, to which level t + 1
adds noise alone; the last one is that of x_{T-1} itself.

Source: Gao et al. 2021, arXiv:2012.08125, Section 3, and the code published with it.
"""

import dataclasses
import functools
from typing import Any

import numpy as np

from scorejax.choices import require_known
from scorejax.schedules.ladders import Table, linear_betas

STEP_RULES = ("cumulative", "added", "conditional")
ENERGY_UNITS = ("steps", "nats")
"""Units of networks: with "steps", the published one, a step moves y by grad F / 2 at every level;
with "nats" networks are log-densities, and a change of their weights changes those of all levels
by as much."""


@dataclasses.dataclass(frozen=True, eq=False)
class RecoveryLevels:
    """Levels 0 .. T, with x_{t+1} = decays[t+1] x_t + sigmas[t+1] z; level 0 is made from the data.

    `step_scale` is b^2, the size of Langevin steps relative to the noise; `step_rule` is a name of
    `STEP_RULES`, see `step_sizes`; `detail` is the std of the finest structure of the data, in its
    units, for the rule "conditional"; `energy_unit` is a name of `ENERGY_UNITS`.
    Raises: ValueError unless there are T >= 2 energies, 0 < sigma < 1 (at the top <= 1), decays^2 +
    sigmas^2 = 1, step_scale is positive, the names are known, and detail is positive or, for other
    rules, 0.
    """

    sigmas: np.ndarray
    """(T + 1,)."""
    decays: np.ndarray
    """(T + 1,)."""
    step_scale: float = 2e-4
    step_rule: str = "cumulative"
    detail: float = 0.0
    energy_unit: str = "steps"

    def __post_init__(self) -> None:
        for name in ("sigmas", "decays"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), np.float64))
        sigmas, decays = self.sigmas, self.decays
        if sigmas.ndim != 1 or sigmas.shape != decays.shape or len(sigmas) < 3:
            raise ValueError(
                "RecoveryLevels needs one sigma and one decay for each of 3 levels or more; got "
                f"shapes {sigmas.shape} and {decays.shape}"
            )
        if not (np.all((sigmas > 0) & (sigmas <= 1)) and np.all(sigmas[:-1] < 1)):
            worst = np.flatnonzero(~((sigmas > 0) & (sigmas <= 1)))
            level = int(worst[0]) if len(worst) else int(np.argmax(sigmas[:-1]))
            raise ValueError(
                "RecoveryLevels needs 0 < sigma < 1, or 1 at the top, so that every level keeps "
                f"less of the data than the one before; got {sigmas[level]:g} at level {level}"
            )
        if not np.allclose(decays**2 + sigmas**2, 1, rtol=0, atol=1e-6):
            raise ValueError(
                "RecoveryLevels needs decays^2 + sigmas^2 = 1; the sum is off by "
                f"{np.abs(decays**2 + sigmas**2 - 1).max():.2g}"
            )
        if not 0 < self.step_scale < np.inf:
            raise ValueError(f"step_scale needs to be a positive number; got {self.step_scale}")
        require_known("step_rule", self.step_rule, STEP_RULES)
        require_known("energy_unit", self.energy_unit, ENERGY_UNITS)
        if self.step_rule == "conditional" and not 0 < self.detail < np.inf:
            raise ValueError(
                "step_rule='conditional' needs detail > 0, the std of the finest structure of the "
                f"data; got {self.detail}"
            )
        if self.step_rule != "conditional" and self.detail:
            raise ValueError(
                f"detail belongs to step_rule='conditional'; got {self.detail} with "
                f"{self.step_rule!r}. Take detail=0."
            )

    @property
    def num_energies(self) -> int:
        """T."""
        return len(self.sigmas) - 1

    @functools.cached_property
    def scales(self) -> Table:
        """A_t (T+1,): the mean of x_t given the data x is A_t x."""
        return np.cumprod(self.decays)

    @functools.cached_property
    def stds(self) -> Table:
        """S_t (T+1,): the std of x_t given the data."""
        return np.sqrt(1 - self.scales**2)

    @functools.cached_property
    def step_sizes(self) -> Table:
        """s_t^2 (T,), the squared sizes of Langevin steps.

        "cumulative", the published rule: b^2 (S_t / S_0) sigma_{t+1}^2. "added": b^2
        sigma_{t+1}^2. "conditional": b^2 times the variance of y_t given x_{t+1} along a direction
        in which the data have the std `detail`, b^2 / (1 / sigma_{t+1}^2 + 1 / tau_t^2) with
        tau_t^2 = energy_scales_t^2 (A_t^2 detail^2 + S_t^2); chains of all levels are then equally
        far from instability, twice as far at the top, and their variances there are too large by
        1 / (1 - b^2 / 4).
        """
        noise = self.sigmas[1:] ** 2
        if self.step_rule == "cumulative":
            return self.step_scale * self.stds[:-1] / self.stds[0] * noise
        if self.step_rule == "added":
            return self.step_scale * noise
        finest = (self.scales[:-1] * self.detail) ** 2 + self.stds[:-1] ** 2
        return self.step_scale / (1 / noise + 1 / (self.energy_scales**2 * finest))

    @functools.cached_property
    def loss_weights(self) -> Table:
        """w_t (T,): sigma_1 / sigma_{t+1}, or 1 / s_t^2 in nats: losses are log-likelihoods."""
        if self.energy_unit == "nats":
            return 1 / self.step_sizes
        return self.sigmas[1] / self.sigmas[1:]

    @functools.cached_property
    def energy_units(self) -> Table:
        """(T,): energies in nats are -F / energy_units of networks F; s_t^2, or 1 in nats."""
        return np.ones(self.num_energies) if self.energy_unit == "nats" else self.step_sizes

    @functools.cached_property
    def energy_scales(self) -> Table:
        """(T,): energy t is that of y_t = energy_scales[t] x_t; 1 at the top."""
        return np.append(self.decays[1:-1], 1.0)

    @functools.cached_property
    def recovery_precisions(self) -> Table:
        """1 / sigma_{t+1}^2 (T,), the precision of y_t around x_{t+1}; 0 at the top.

        The energy at the top is marginal: x_T says next to nothing of x_{T-1}.
        """
        return np.append(1 / self.sigmas[1:-1] ** 2, 0.0)


def recovery_levels(num_levels: int = 6, **options: Any) -> RecoveryLevels:
    """The published ladder ("T6" for 6) of `num_levels` energies: blocks of DDPM's chain.

    Levels end at the steps 0, h, 2 h .. (T - 1) h and 999 of the 1000, h = 1000 // (2 (T - 1)), so
    that the last one jumps from the middle of the chain to its end. `options` are the fields of
    `RecoveryLevels`: step_scale, step_rule, detail and energy_unit.
    Raises: ValueError unless 2 <= num_levels <= 501, and as `RecoveryLevels`.
    Source: arXiv:2012.08125, as in the published code.
    """
    if not 2 <= num_levels <= 501:
        raise ValueError(
            "recovery_levels needs 2 to 501 levels, blocks of half the 1000 steps; got "
            f"{num_levels}. `fine_recovery_levels` (ladder 'fine') takes every step."
        )
    betas = linear_betas(0.1, 20.0, 1000)
    block = 1000 // (2 * (num_levels - 1))
    ends = np.append(np.arange(num_levels) * block, 999)
    kept = np.cumprod(1 - betas)[ends]
    squared = np.append(kept[0], kept[1:] / kept[:-1])
    return _levels(1 - squared, **options)


def fine_recovery_levels(num_levels: int = 1000, **options: Any) -> RecoveryLevels:
    """The fine ladder ("T1k" for 1000): every step of DDPM's chain is a level, x_T is white noise.

    `options` are as in `recovery_levels`.
    Raises: ValueError unless num_levels >= 21, below which a variance exceeds 1, and as
    `RecoveryLevels`.
    Source: arXiv:2012.08125 (the published code lacks it; the top level is ours).
    """
    if num_levels < 21:
        raise ValueError(
            "fine_recovery_levels (ladder 'fine') needs 21 levels or more, 1000 are usual; got "
            f"{num_levels}"
        )
    variances = np.append(linear_betas(0.1, 20.0, num_levels), 1.0)
    return _levels(variances, **options)


def geometric_recovery_levels(num_levels: int = 500, **options: Any) -> RecoveryLevels:
    """A fine ladder whose noise-to-signal ratio S_t / A_t grows by the same factor at every level.

    Levels 0 and T - 1 have those of DDPM's first and last step, 0.01 and 158, and x_T is white
    noise. A quarter of the levels has less noise than 0.1, of DDPM's steps 3 %: uniform draws of
    levels see that much more of fine structure. `options` are as in `recovery_levels`.
    Raises: ValueError unless num_levels >= 21, and as `RecoveryLevels`.
    """
    if num_levels < 21:
        raise ValueError(
            "geometric_recovery_levels (ladder 'geometric') needs 21 levels or more, 500 are "
            f"usual; got {num_levels}"
        )
    kept = np.cumprod(1 - linear_betas(0.1, 20.0, 1000))[[0, -1]]
    kept = 1 / (1 + np.geomspace(*(1 / kept - 1), num_levels))
    return _levels(np.append(1 - kept / np.append(1, kept[:-1]), 1.0), **options)


def _levels(variances: Table, **options: Any) -> RecoveryLevels:
    return RecoveryLevels(np.sqrt(variances), np.sqrt(1 - variances), **options)
