# SPDX-License-Identifier: Apache-2.0
"""Ladders of noise levels and grids of times, as float64 tables."""

from scorejax.schedules.ladders import (
    Table,
    alpha_products,
    geometric_ratio,
    geometric_sigmas,
    improved_ddpm_sigmas,
    langevin_step_size,
    langevin_step_sizes,
    langevin_steps,
    langevin_variance_ratio,
    linear_betas,
    ncsnv2_sigmas,
    rho_sigmas,
    shell_overlap,
    steady_variance_ratio,
    time_grid,
)
from scorejax.schedules.recovery import (
    RecoveryLevels,
    fine_recovery_levels,
    geometric_recovery_levels,
    recovery_levels,
)

__all__ = [
    "RecoveryLevels", "Table", "alpha_products", "fine_recovery_levels", "geometric_ratio",
    "geometric_recovery_levels", "geometric_sigmas", "improved_ddpm_sigmas", "langevin_step_size",
    "langevin_step_sizes", "langevin_steps", "langevin_variance_ratio", "linear_betas",
    "ncsnv2_sigmas", "recovery_levels", "rho_sigmas", "shell_overlap", "steady_variance_ratio",
    "time_grid",
]  # fmt: skip
