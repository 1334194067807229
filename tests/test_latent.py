# SPDX-License-Identifier: Apache-2.0
"""The latent space: great circles, the ends of a path, the temperature of Gaussian data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import Gaussian

from scorejax import latent
from scorejax.parameterize import noise_prediction
from scorejax.samplers.probability_flow import encode
from scorejax.sdes import VPSDE

SDE = VPSDE()
DATA = Gaussian(np.array([0.5, -0.2, 0.1]), np.array([[0.5, 0.2, 0], [0.2, 0.4, 0], [0, 0, 0.3]]))


def test_slerp_walks_a_great_circle_at_constant_speed(x64):
    start, end = jax.random.normal(jax.random.key(0), (2, 4, 5))
    unit = lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True)
    path = latent.slerp(unit(start), unit(end), jnp.linspace(0, 1, 5))
    np.testing.assert_allclose(path[0], unit(start), atol=1e-14)
    np.testing.assert_allclose(path[-1], unit(end), atol=1e-14)
    np.testing.assert_allclose(jnp.linalg.norm(path, axis=-1), 1, atol=1e-14)
    steps = jnp.arccos(jnp.sum(path[1:] * path[:-1], axis=-1))
    np.testing.assert_allclose(steps, jnp.broadcast_to(steps[:1], steps.shape), atol=1e-7)


def test_slerp_between_latents_that_are_nearly_one_is_a_line(x64):
    start = jax.random.normal(jax.random.key(0), (2, 3, 3, 1))
    path = latent.slerp(start, start * (1 + 1e-6), jnp.array([0.0, 0.25, 1.0]))
    np.testing.assert_allclose(path[1], start * (1 + 0.25e-6), rtol=1e-12)


@pytest.mark.deep
def test_a_path_begins_and_ends_with_its_images():
    start, end = DATA.sample(jax.random.key(0), 2), DATA.sample(jax.random.key(1), 2)
    path = latent.interpolate(DATA.score_fn(SDE), start, end, 3, sde=SDE)
    # There and back at tolerances of 1e-5: ten times that, for the way is several units.
    np.testing.assert_allclose(path[0], start, atol=3e-4)
    np.testing.assert_allclose(path[2], end, atol=3e-4)
    # The middle, by the closed form of the flow.
    z = [DATA.flow_map(SDE, x, SDE.sampling_t_min, 1.0) for x in (start, end)]
    middle = latent.slerp(*z, jnp.array([0.5]))[0]
    expected = DATA.flow_map(SDE, middle, 1.0, SDE.sampling_t_min)
    np.testing.assert_allclose(path[1], expected, atol=3e-4)
    with pytest.raises(ValueError, match="num >= 2, for both ends; got 1"):
        latent.interpolate(DATA.score_fn(SDE), start, end, 1, sde=SDE)


@pytest.mark.deep
@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_temperature_scales_the_spread_of_gaussian_data(temperature):
    # The flow of Gaussian data is affine: the standard deviation is the temperature times that of
    # temperature one. 4000 draws; five standard errors, one false alarm in 500 000 for three.
    num = 4000
    x = latent.tempered(
        jax.random.key(3), DATA.score_fn(SDE), (num, 3), sde=SDE, temperature=temperature
    ).x
    expected = temperature**2 * np.diag(DATA.covariance)
    assert np.all(np.abs(np.var(x, axis=0) / expected - 1) < 5 * np.sqrt(2 / num))


@pytest.mark.deep
def test_a_latent_does_not_depend_on_what_the_network_predicts():
    # The same exact score as a score and as a noise prediction: one latent for an example.
    x = DATA.sample(jax.random.key(4), 4)
    score_fn = DATA.score_fn(SDE)

    def network(x, label):
        t = label / 999
        return -SDE.marginal(t)[1][:, None] * score_fn(x, t)

    latents = [encode(fn, x, sde=SDE).x for fn in (score_fn, noise_prediction(SDE, network))]
    np.testing.assert_allclose(*latents, atol=1e-4)  # ten times the solver's tolerance
    np.testing.assert_allclose(
        latents[0], DATA.flow_map(SDE, x, SDE.sampling_t_min, 1.0), atol=1e-4
    )
