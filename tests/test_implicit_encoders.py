# SPDX-License-Identifier: Apache-2.0
"""Triangular encoders and their entropy, the likelihood of a decoder, and the VAE that has both."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import implicit_encoders
from configs.ar_csm import vae_digits
from scorejax import systems
from scorejax.autoencoder import Codes
from scorejax.density.marginal_likelihood import annealed_marginal
from scorejax.models.triangular_encoder import TriangularEncoder
from scorejax.numerics import sum_except_batch
from scorejax.random import row_keys
from scorejax.systems.ar_csm import autoencoder

ENCODER = TriangularEncoder(hidden=8, num_hidden=1)
NOISE = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)
IMAGES = jnp.asarray(np.random.default_rng(1).random((4, 8, 8, 1)), jnp.float32)


def encoder_params(noise):
    """Parameters with bends that are not slight, of an encoder of two numbers."""
    params = jax.jit(ENCODER.init)(jax.random.key(0), noise, jnp.ones((len(noise), 2)))
    return jax.tree.map(lambda leaf: 2 * leaf, params)


def test_a_triangular_encoder_increases_in_its_own_noise_and_ignores_later_noise():
    x, params = jnp.ones((4, 2)), encoder_params(NOISE)

    @jax.jit
    def both(noise):
        one = lambda noise, x: ENCODER.apply(params, noise[None], x[None])[0]
        jacobian = jax.vmap(jax.jacfwd(one))(noise, x)
        return jacobian, ENCODER.apply(params, noise, x, method="log_slopes")

    jacobian, slopes = map(np.asarray, both(NOISE))
    assert (jacobian[:, *np.triu_indices(3, 1)] == 0.0).all()
    assert (jacobian[:, *np.tril_indices(3, -1)] != 0.0).all()
    # Single precision: the forward derivatives are the same sums in another order.
    np.testing.assert_allclose(np.log(np.diagonal(jacobian, 0, 1, 2)), slopes, rtol=1e-4, atol=1e-5)
    assert slopes.std() > 0.1  # not affine


def test_univariate_scores_of_a_bent_triangular_encoder_give_the_gradient_of_its_entropy(x64):
    # H = E sum log slopes + const. With s_d = (d log q_d / dnoise_d) / slope_d of the known density
    # the mean of s . dz is that of -d(log slopes) in any direction of the parameters: four standard
    # errors of 20,000 paired draws, in three directions.
    num, generator = 20_000, np.random.default_rng(2)
    draw = lambda leaf: jnp.asarray(generator.normal(size=leaf.shape))
    noise, x = jnp.asarray(generator.normal(size=(num, 3))), jnp.ones((num, 2))
    params = encoder_params(noise[:1])

    @jax.jit
    def differences(direction, noise, x):
        c = ENCODER.apply(params, noise, x, method="contexts")
        ones = jnp.ones_like(noise)
        transform = lambda e: ENCODER.apply(params, e, c, method="transform")
        slope = lambda e: jax.jvp(transform, (e,), (ones,))[1]
        log_q = lambda e: -(e**2) / 2 - jnp.log(slope(e))
        score = jax.jvp(log_q, (noise,), (ones,))[1] / slope(noise)
        along = lambda f: jax.jvp(f, (params,), (direction,))[1]
        by_score = jnp.sum(score * along(lambda p: ENCODER.apply(p, noise, x)), axis=1)
        slopes = along(lambda p: ENCODER.apply(p, noise, x, method="log_slopes"))
        return by_score, -jnp.sum(slopes, axis=1)

    strength = []
    for _ in range(3):
        found, expected = map(np.asarray, differences(jax.tree.map(draw, params), noise, x))
        error = np.std(found - expected) / math.sqrt(num)
        assert abs(np.mean(found - expected)) < 4 * error
        strength.append(abs(expected.mean()) / error)
    assert max(strength) > 10  # a wrong gradient would be seen


@pytest.mark.parametrize("estimator, bound", [("stein", 0.05), ("spectral", 0.2)])
def test_scores_from_particles_give_the_entropy_gradient_of_every_image(estimator, bound):
    # z = e^a noise in two dimensions: the entropy is 2 a + const. 64 particles of 4 images; over
    # draws the error was a hundredth of Stein's, and a tenth of the spectral estimator.
    def value(a):
        apply = lambda x, noise, method: jnp.exp(a)[:, None].repeat(64, axis=0) * noise
        codes = Codes(IMAGES, NOISE[:, :2], NOISE[:, :2])
        entropy = autoencoder.make_entropy(estimator, 64, standardize=True)
        return entropy(apply, jax.random.key(0), codes)["negative_entropy"].sum()

    found = jax.jit(jax.grad(value))(jnp.linspace(-1.0, 1.0, 4))
    np.testing.assert_allclose(found, -2.0, rtol=bound)


def test_a_critic_sees_codes_in_units_of_the_encoder_which_are_constants_to_it():
    # Of codes z = shift + scale noise the critic sees w = (z - mean) / deviation, which depends on
    # neither: the mean of opposite draws is the shift. Only z moves with the scale, dw = w / scale.
    def seen(shift, scale):
        apply = lambda x, noise, method: shift + scale * noise
        codes = Codes(IMAGES, NOISE, shift + scale * NOISE)
        critic = lambda apply, rng, codes: {"seen": codes.z}
        return autoencoder.standardised(critic)(apply, jax.random.key(0), codes)["seen"]

    at = jax.jit(lambda shift, scale: jax.jvp(lambda s: seen(shift, s), (scale,), (1.0,)))
    (far, slope), (near, _) = at(100.0, 4.0), at(0.0, 1.0)
    # 100 in single precision is known to 1e-5, of deviations of four; MIN_DEVIATION is 1e-3.
    np.testing.assert_allclose(far, near, rtol=2e-3, atol=1e-4)
    np.testing.assert_allclose(slope, far / 4.0, rtol=1e-3, atol=1e-4)


def test_the_likelihood_of_a_linear_decoder_is_its_closed_form():
    # x = W z + s noise: N(0, W W^T + s^2 I), posterior deviations of about s. Within four of the
    # errors that it states, and these are small.
    generator = np.random.default_rng(0)
    w, s = jnp.asarray(generator.normal(size=(4, 2)), jnp.float32), 0.5
    covariance = np.asarray(w @ w.T) + s**2 * np.eye(4)
    x = generator.multivariate_normal(np.zeros(4), covariance, size=3).astype(np.float32)
    constant = -4 / 2 * math.log(2 * math.pi * s**2)

    @jax.jit
    def estimate(rngs, x):
        def of_one(rng, x):
            given = lambda z: constant - sum_except_batch((x[None] - z @ w.T) ** 2) / (2 * s**2)
            sizes = {"num_chains": 100, "num_temperatures": 60, "num_steps": 3}
            return annealed_marginal(rng, given, 2, **sizes)

        return jax.vmap(of_one)(rngs, x)

    found = estimate(row_keys(jax.random.key(0), 3), jnp.asarray(x))
    _, log_det = np.linalg.slogdet(2 * math.pi * covariance)
    expected = -(np.sum(x * np.linalg.solve(covariance, x.T).T, axis=1) + log_det) / 2
    error = np.asarray(found.standard_error)
    assert (error < 0.2).all() and (np.abs(found.log_z - expected) < 4 * error).all()


def get_model(variant="debug"):
    return autoencoder.make_model(vae_digits.get_config(variant))


def test_pixels_are_drawn_black_or_white_once():
    model = get_model()
    images = jnp.broadcast_to(IMAGES[:1], (500, 8, 8, 1))
    keys = jax.random.split(jax.random.key(0), 500)
    drawn = model.observed(keys, images)
    assert set(np.unique(drawn)) == {0.0, 1.0}
    np.testing.assert_array_equal(model.observed(keys[::-1], drawn), drawn)
    # Five standard errors in each of 64 pixels: one false alarm in 30,000.
    error = np.sqrt(IMAGES[0] * (1 - IMAGES[0]) / 500)
    assert (np.abs(drawn.mean(axis=0) - IMAGES[0]) < 5 * error).all()


OWN_PART = {
    "reconstruction": {"encoder": True, "decoder": True},
    "prior": {"encoder": True, "decoder": False},
    "negative_entropy": {"encoder": True, "decoder": False},
}
CSM = {name: parts | {"critic": False} for name, parts in OWN_PART.items()}
CSM["score"] = {"encoder": False, "decoder": False, "critic": True}


@pytest.mark.deep
@pytest.mark.parametrize(
    "variant, expected",
    [
        ("csm,debug", CSM),
        pytest.param("ssm_vr,mlp,debug", CSM, marks=pytest.mark.slow),
        pytest.param("stein,debug", OWN_PART, marks=pytest.mark.slow),
        pytest.param("exact,debug", OWN_PART, marks=pytest.mark.slow),
    ],
)
def test_each_player_learns_from_its_own_part(variant, expected):
    model = get_model(variant)
    params, _ = jax.jit(model.init)(jax.random.key(0))

    @jax.jit
    def gradient(params, weights):
        losses = lambda p: model.losses(p, jax.random.key(1), IMAGES)
        whole = lambda p: sum(weights[name] * rows.mean() for name, rows in losses(p).items())
        return jax.grad(whole)(params)

    off = dict.fromkeys(expected, 0.0)
    size = lambda tree: max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(tree))
    found = {
        name: {
            player: size(tree) > 0 for player, tree in gradient(params, off | {name: 1.0}).items()
        }
        for name in expected
    }
    assert found == expected


def test_a_report_pairs_runs_by_seed_and_leaves_out_those_that_are_not_finite(tmp_path, capsys):
    run = lambda nats: {
        "finite": True, "log_prob": nats, "seconds": 1.0,
        "log_prob_standard_error": 0.1, "effective_walks": 9.0,
    }  # fmt: skip
    runs = {f"exact,triangular-{seed}": run(nats) for seed, nats in enumerate((-5.0, -7.0, -7.0))}
    runs |= {f"csm,mlp-{seed}": run(-8.0) for seed in (1, 2)} | {"stein,mlp-0": {"finite": False}}
    for name, values in runs.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(values))
    implicit_encoders.report(tmp_path)
    printed = capsys.readouterr().out
    assert "| csm,mlp | -8.00 ± 0.00 | -1.00 ± 0.00 |" in printed
    assert "stein,mlp | not finite: seed 0" in printed


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["csm,debug", "spectral,mlp,debug"])
def test_the_vae_is_judged_by_numbers_and_pictures(variant):
    system = systems.load(vae_digits.get_config(variant))
    variables = jax.jit(system.init)(jax.random.key(0))
    found = system.evaluate(jax.random.key(1), variables)
    assert np.isfinite(list(found.scalars.values())).all()
    assert ("elbo" in found.scalars) == (variant == "csm,debug")
    assert found.scalars["log_prob_failures"] == 0 and found.pictures


@pytest.mark.parametrize(
    "change, message",
    [
        ({"estimator": "cms"}, "unknown estimator 'cms': did you mean 'csm'"),
        ({"encoder": "triangle"}, "unknown encoder 'triangle': did you mean 'triangular'"),
        ({"estimator": "exact", "encoder": "mlp"}, "only a triangular encoder has; got encoder"),
        ({"uniform_dequantization": True}, "to be False: grey is the probability of white"),
        ({"num_particles": 1}, "num_particles needs to be at least 2; got 1"),
        ({"latent": 33}, "hidden needs a unit for each of latent=33 degrees; got 32"),
        ({"latent": 0}, "latent needs to be at least 1; got 0"),
        ({"eval_chains": 0}, "eval_chains needs to be at least 1; got 0"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(change, message):
    config = vae_digits.get_config("debug")
    config.update(change)
    with pytest.raises(ValueError, match=message):
        systems.load_model(config)
