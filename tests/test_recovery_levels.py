# SPDX-License-Identifier: Apache-2.0
"""Rules of step sizes, and units of energies, on the levels of recovery likelihood."""

import jax.numpy as jnp
import numpy as np
import pytest

from scorejax.objectives import recovery as objectives
from scorejax.parameterize import recovery_energy
from scorejax.samplers.recovery import require_steps
from scorejax.schedules import fine_recovery_levels, geometric_recovery_levels, recovery_levels
from tests.test_recovery import LEVELS, Data


def test_steps_are_a_share_of_the_variance_of_the_conditional():
    # Data of std `detail` in each direction: the rule is then b^2 over the conditional's precision.
    levels = recovery_levels(6, step_scale=0.3, step_rule="conditional", detail=0.5)
    data = Data(variance=0.25, levels=levels)
    lam = np.array([data.conditional(t, 0.0)[0] for t in range(5)])
    np.testing.assert_allclose(levels.step_sizes[:5] * lam, 0.3, rtol=1e-12)
    # At the top, where the energy is marginal, sigma_T = 1 stands for no conditioning.
    tau2 = levels.scales[5] ** 2 * 0.25 + levels.stds[5] ** 2
    np.testing.assert_allclose(levels.step_sizes[5] * (1 / levels.sigmas[6] ** 2 + 1 / tau2), 0.3)


def test_energies_in_nats_are_networks_and_their_losses_likelihoods():
    levels = recovery_levels(6, step_scale=0.1, step_rule="added", energy_unit="nats")
    np.testing.assert_allclose(levels.step_sizes, 0.1 * LEVELS.sigmas[1:] ** 2, rtol=1e-12)
    energy_fn, t = recovery_energy(levels, lambda y, t: -jnp.sum(y, axis=1)), jnp.arange(6)
    positive, negative = jnp.arange(12.0).reshape(6, 2), jnp.ones((6, 2))
    np.testing.assert_array_equal(energy_fn(positive, t), jnp.sum(positive, axis=1))
    loss = objectives.contrast(energy_fn, levels, t, positive, negative).loss
    np.testing.assert_allclose(loss, jnp.sum(positive, axis=1) - 2, rtol=1e-6)  # one rounding


def test_noise_to_signal_ratios_of_the_geometric_ladder_grow_by_one_factor():
    levels, ddpm = geometric_recovery_levels(500), fine_recovery_levels(1000)
    ratios = levels.stds[:-1] / levels.scales[:-1]
    np.testing.assert_allclose(ratios[1:] / ratios[:-1], ratios[1] / ratios[0], rtol=1e-9)
    for level in (0, -2):  # 1 - A^2 cancels: 1e-16 / S_0^2
        np.testing.assert_allclose(levels.stds[level], ddpm.stds[level], rtol=1e-11)
        np.testing.assert_allclose(levels.scales[level], ddpm.scales[level], rtol=1e-11)
    assert levels.num_energies == 500 and levels.scales[-1] == 0
    require_steps(levels, 0)  # fine enough for single draws
    with pytest.raises(ValueError, match=r"\(ladder 'geometric'\) needs 21 levels or more"):
        geometric_recovery_levels(20)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"step_rule": "conditional"}, "detail > 0"),
        ({"detail": 0.1}, "Take detail=0"),
        ({"step_rule": "sum"}, "unknown step_rule 'sum'"),
        ({"energy_unit": "bits"}, "unknown energy_unit 'bits'"),
    ],
)
def test_impossible_rules_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        recovery_levels(6, **options)
