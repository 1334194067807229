# SPDX-License-Identifier: Apache-2.0
"""Chains of annealed Langevin dynamics against the official code, step by step on its own noise."""

import jax.numpy as jnp
import numpy as np
import pytest

from scorejax.linear_operators import mask_operator
from scorejax.samplers import langevin
from scorejax.schedules import geometric_sigmas, langevin_step_sizes


class Official:
    """The inputs of the golden file, images with the channels first, as it has them."""

    def __init__(self, file, precision):
        self.file, self.precision = file, precision
        # The file has them in single precision.
        self.sigmas, self.num_steps = geometric_sigmas(0.01, 50.0, 4), int(file["cfg/n_steps"])
        np.testing.assert_allclose(self.sigmas, file["cfg/sigmas"], rtol=1e-6)
        self.alphas = langevin_step_sizes(self.sigmas, 6.2e-6)

    def array(self, name):
        return jnp.asarray(self.file[name], float)

    def levels(self):
        for step in range(len(self.sigmas) * self.num_steps):
            level = step // self.num_steps
            yield (
                step,
                jnp.asarray(self.sigmas[level], float),
                jnp.asarray(self.alphas[level], float),
            )

    @staticmethod
    def score(x, sigma):
        field = 0.3 * x + 0.05 * jnp.sin(3 * x) + 0.02 * jnp.roll(x, 1, axis=-1)
        return -field / (1 + sigma**2)

    def agrees(self, value, name):
        """Whether a value is the golden array of that name, within its tolerance."""
        expected, tolerance = self.file[f"out64/{name}"], self.file[f"tol/{name}"]
        if self.precision == "float64":
            # The notes of the file ask for 1e-8 of the largest entry of each row.
            tolerance = 1e-8 * np.abs(expected).max(axis=(-3, -2, -1), keepdims=True)
        close = np.abs(np.asarray(value) - expected) <= tolerance
        return value.shape == expected.shape and close.all()


@pytest.fixture
def official(golden, precision):
    return Official(golden("e_langevin"), precision)


def test_the_official_chain(official):
    x, z, trajectory = official.array("in/x"), official.array("in/z"), []
    for step, sigma, alpha in official.levels():
        x = langevin.langevin_step(official.score(x, sigma), x, alpha, z[step])
        trajectory.append(x)
    assert official.agrees(jnp.stack(trajectory), "trajectory")
    assert official.agrees(trajectory[official.num_steps - 1], "after_level0")
    assert official.agrees(x, "final_no_denoise")
    last = jnp.asarray(official.sigmas[-1], float)
    assert official.agrees(x + last**2 * official.score(x, last), "denoised")


def test_the_official_inpainting(official):
    x = official.array("in/x")
    y, z, before = x[::-1], official.array("in/z"), []
    mask = jnp.asarray(np.arange(4) < 2, float)
    corrupt = jnp.pad(official.array("in/z_corrupt"), [(0, 0)] * 4 + [(0, 2)])
    operator = mask_operator(mask)
    for step, sigma, alpha in official.levels():
        x = langevin.impose(operator, operator.forward(y), x, sigma, corrupt[step])
        before.append(x)
        x = langevin.langevin_step(official.score(x, sigma), x, alpha, z[step])
    assert official.agrees(jnp.stack(before), "inpaint_before_each_step")


def test_the_official_interpolation(official):
    x = jnp.repeat(official.array("in/x"), 4, axis=0)
    first, second = official.array("in/z_p"), official.array("in/z_q")
    for step, sigma, alpha in official.levels():
        z = langevin.mixed_noise(first[step], second[step], 4)
        x = langevin.langevin_step(official.score(x, sigma), x, alpha, z)
    assert official.agrees(x, "interpolation_final")
