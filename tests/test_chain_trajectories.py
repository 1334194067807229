# SPDX-License-Identifier: Apache-2.0
"""Frames of a predictor-corrector chain on its way to the sample."""

import jax
import numpy as np
import pytest
from oracles import (
    Gaussian,
)

from scorejax.samplers import correctors
from scorejax.samplers.predictor_corrector import (
    predictor_corrector,
    predictor_corrector_trajectory,
)
from scorejax.schedules import time_grid
from scorejax.sdes import VESDE

KEY = jax.random.key(0)


@pytest.mark.deep
@pytest.mark.parametrize(
    ("num_steps", "num_frames", "denoise"), [(10, 4, True), (7, 7, False), (5, 1, True)]
)
def test_a_trajectory_ends_with_the_sample(num_steps, num_frames, denoise):
    sde, data = VESDE(), Gaussian.isotropic(0.0, 1.0, 2)
    options = {"sde": sde, "num_steps": num_steps, "corrector": correctors.langevin}
    options["denoise"] = denoise
    frames, t, nfe = predictor_corrector_trajectory(
        KEY, data.score_fn(sde), (3, 2), num_frames=num_frames, **options
    )
    sample, sample_nfe = predictor_corrector(KEY, data.score_fn(sde), (3, 2), **options)
    assert frames.shape == (num_frames, 3, 2)
    np.testing.assert_array_equal(frames[-1], sample)
    assert nfe == sample_nfe == 2 * num_steps
    assert t[-1] == np.float32(sde.sampling_t_min) and np.all(np.diff(t) < 0)
    if num_frames == num_steps:
        np.testing.assert_array_equal(t, time_grid(1.0, 1e-5, num_steps).astype(np.float32))


def test_impossible_trajectories_are_refused():
    with pytest.raises(ValueError, match="num_steps=5; got 6"):
        predictor_corrector_trajectory(
            KEY, lambda x, t: -x, (2, 3), sde=VESDE(), num_steps=5, num_frames=6
        )
