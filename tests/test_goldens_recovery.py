# SPDX-License-Identifier: Apache-2.0
"""Diffusion recovery likelihood against the official code, on its own noise, without networks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorejax.energies import score_of
from scorejax.objectives import recovery as objectives
from scorejax.parameterize import recovery_energy
from scorejax.samplers import recovery as samplers
from scorejax.schedules import fine_recovery_levels, recovery_levels
from tests.official import assert_agrees

LEVELS = recovery_levels(6)


def quadratic(file, prefix="params"):
    """The network F = -(y - m_t)' P_t (y - m_t) / 2 of the golden files."""
    P, m = (jnp.asarray(file[f"{prefix}/{name}"], float) for name in ("P", "m"))

    def network(y, t):
        centred = y.reshape(len(y), -1) - m[t]
        return -jnp.einsum("bi,bij,bj->b", centred, P[t], centred) / 2

    return network


@pytest.mark.parametrize("num_levels", [6, 2, 3, 5, 11, 51])
def test_ladders_step_sizes_and_weights(golden, num_levels):
    file, levels = golden("j_ladders"), recovery_levels(num_levels)
    ours = {
        "sigma": levels.sigmas,
        "a": levels.decays,
        "a_cumulative": levels.scales,
        "sigma_cumulative": levels.stds,
        "c": levels.stds[:-1] / levels.stds[0],
        "step_size_square": levels.step_sizes,
        "loss_weight": levels.loss_weights,
    }
    for name, value in ours.items():
        # Tables of float64 in both: 1 - beta and its products round at 1e-16, in 1000 steps.
        expected = file[f"out64/T{num_levels}/{name}"]
        np.testing.assert_allclose(value, expected, rtol=1e-12, err_msg=name)
    np.testing.assert_allclose(
        levels.energy_scales, file[f"out64/T{num_levels}/a_scaling"][1:], rtol=1e-12
    )
    recovers = file[f"out64/T{num_levels}/is_recovery"][1:]
    np.testing.assert_allclose(levels.recovery_precisions * levels.sigmas[1:] ** 2, recovers)


def test_the_fine_ladder_has_the_betas_of_the_published_table(golden):
    variances = fine_recovery_levels(1000).sigmas ** 2
    np.testing.assert_allclose(variances, golden("j_ladders")["out64/T1k_betas"], rtol=1e-12)


def test_diffusion(golden, precision):
    file = golden("j_diffuse")
    x, t, z, z_next = (jnp.asarray(file[f"in/{n}"]) for n in ("x", "t", "z_t", "z_next"))
    x, z, z_next = (jnp.asarray(a, float) for a in (x, z, z_next))
    positive, x_next = objectives.diffuse(LEVELS, x, t, z, z_next)
    assert_agrees(positive, file, "y_positive", precision)
    assert_agrees(x_next, file, "x_next", precision)
    scale = samplers.at_level(LEVELS.energy_scales, t, x)
    assert_agrees(positive / scale, file, "x_t", precision)


@pytest.mark.deep
@pytest.mark.parametrize("suffix, noise_scale", [("", 1.0), ("_cold", 0.99), ("_deterministic", 0)])
def test_langevin_chains(golden, precision, suffix, noise_scale):
    file = golden("j_langevin_quad")
    energy_fn = recovery_energy(LEVELS, quadratic(file))
    x_next, z = (
        noise_scale**i * jnp.asarray(file[f"in/{n}"], float) for i, n in ((0, "x_next"), (1, "z"))
    )
    t = jnp.asarray(file["in/t"])
    conditional = samplers.conditional_energy(energy_fn, LEVELS, t, x_next)
    step_size = samplers.at_level(LEVELS.step_sizes, t, x_next)
    states = [x_next]
    for k in range(len(z)):
        y = states[-1]
        states.append(samplers.langevin_step(score_of(conditional)(y), y, step_size, z[k]))
    assert_agrees(jnp.stack(states), file, f"y{suffix}", precision)
    scores = jnp.stack([score_of(conditional)(y) for y in states])
    assert_agrees(scores, file, f"grad_log_p{suffix}", precision)
    log_p = jnp.stack([-conditional(y) for y in states])
    assert_agrees(log_p, file, f"log_p{suffix}", precision)

    chain = functools.partial(samplers.langevin_chain, num_steps=len(z))
    y = chain(lambda k: z[k], energy_fn, LEVELS, t, x_next)
    x = y / samplers.at_level(LEVELS.energy_scales, t, y)
    assert_agrees(x, file, f"x{suffix}", precision)
    moved = np.linalg.norm(np.asarray(x - x_next).reshape(len(x), -1), axis=1)
    per_level = np.array([moved[np.asarray(t) == level].mean() for level in range(6)])
    assert_agrees(per_level, file, f"displacement{suffix}", precision)


@pytest.mark.parametrize("suffix, noise_scale", [("", 1.0), ("_cold", 0.99)])
def test_sampling_down_the_ladder(golden, precision, suffix, noise_scale):
    file = golden("j_langevin_quad")
    energy_fn = recovery_energy(LEVELS, quadratic(file))
    z = noise_scale * jnp.asarray(file["in/z_progressive"], float)
    start = jnp.asarray(file["in/z_start"], float)
    noise = lambda t, k: z[5 - t, k]
    frames, nfe = samplers.descend(noise, energy_fn, start, LEVELS, num_steps=z.shape[1])
    # The file has level 0 first, and the start last.
    path = jnp.concatenate([frames[::-1], start[None]])
    assert_agrees(path, file, f"progressive{suffix}", precision)
    assert nfe == 6 * z.shape[1]


def test_losses_of_a_quadratic(golden, precision):
    file = golden("j_loss")
    t = jnp.asarray(file["in/t"])
    positive, negative = (
        samplers.at_level(LEVELS.energy_scales, t, x) * x
        for x in (
            jnp.asarray(file[f"in/quad_x_{kind}"], float) for kind in ("positive", "negative")
        )
    )

    def losses(P, m):
        network = quadratic({"params/P": P, "params/m": m})
        energy_fn = recovery_energy(LEVELS, network)
        return objectives.contrast(energy_fn, LEVELS, t, positive, negative).loss

    P, m = (jnp.asarray(file[f"params/quad/{name}"], float) for name in ("P", "m"))
    loss = losses(P, m)
    assert_agrees(loss.mean(), file, "quad_loss", precision)
    sizes = np.abs(np.asarray(loss))
    per_level = np.array([sizes[np.asarray(t) == level].mean() for level in range(6)])
    assert_agrees(per_level, file, "quad_loss_per_level", precision)
    gradient = jax.grad(lambda *arguments: losses(*arguments).mean(), (0, 1))(P, m)
    for value, name in zip(gradient, ("P", "m"), strict=True):
        assert_agrees(value, file, f"quad_grad_{name}", precision)
