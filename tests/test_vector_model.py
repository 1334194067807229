# SPDX-License-Identifier: Apache-2.0
"""A score model of vectors: trained, drawn from and measured without an image anywhere."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict
from scipy import stats
from toy_system import CONFIG as TOY

from scorejax.capabilities import Completes, DrawsSamples, MeasuresDensity
from scorejax.data.vectors import VectorView
from scorejax.density.bidirectional import sandwich
from scorejax.evaluate.chunks import measure_in_chunks
from scorejax.evaluate.density_report import Unit, density_report, energy_report, stored_examples
from scorejax.linear_operators import mask_operator
from scorejax.objectives.denoising import denoising_score_matching
from scorejax.parameterize import noise_prediction
from scorejax.random import row_keys
from scorejax.runs import Run
from scorejax.score_model import ChainOptions, EvaluationOptions, ScoreModel, training_system
from scorejax.sdes import VPSDE
from scorejax.systems import make_init
from scorejax.train.loop import train
from tests.slow import deep_where

SDE = VPSDE()
MEAN, COVARIANCE = np.array([1.0, -0.5, 0.0]), np.diag([0.25, 1.0, 0.09])


class Linear(nn.Module):
    """Noise as a linear function of x, one for each time: enough for a Gaussian."""

    @nn.compact
    def __call__(self, x, t, dropout_rng=None):
        t = t / 999  # the label of noise prediction
        t = jnp.stack([t, t**2, jnp.sqrt(t)], axis=1)
        gain = nn.Dense(3)(nn.tanh(nn.Dense(32)(t)))
        return gain * x + nn.Dense(3)(nn.tanh(nn.Dense(32)(t)))


class Exact(nn.Module):
    """The exact score of N(MEAN, COVARIANCE) under the SDE."""

    def __call__(self, x, t, dropout_rng=None):
        scale, std = SDE.marginal(t)
        variance = scale[:, None] ** 2 * np.diag(COVARIANCE)[None] + std[:, None] ** 2
        return (scale[:, None] * MEAN[None] - x) / variance


def vectors(num=400, seed=0):
    rng = np.random.default_rng(seed)
    return rng.multivariate_normal(MEAN, COVARIANCE, num).astype(np.float32)


def predicts_noise(network):
    return noise_prediction(SDE, network)


def score_model(network=None, to_score=lambda network: network):
    network = network or Exact()
    return ScoreModel(
        sde=SDE,
        data=VectorView(vectors(), vectors(seed=1)),
        network=network,
        to_score=to_score,
        example_loss=lambda network, rng, x: denoising_score_matching(
            to_score(network), SDE, rng, x
        ),
        tx=optax.adam(1e-2),
        chain=ChainOptions(num_sampling_steps=200),
        eval_options=EvaluationOptions(eval_examples=400, eval_bits_examples=16),
    )


@pytest.mark.deep
def test_it_trains_and_reports_numbers_without_pictures(tmp_path):
    config = TOY | {"system": "vectors", "best_metric": "loss", "num_train_steps": 200}
    config |= {"eval_every": 200, "save_every": 200}
    system = training_system(score_model(Linear(), predicts_noise), config)
    state = train(system, config | {"num_train_steps": 200}, tmp_path)
    before = system.evaluate(jax.random.key(0), system.published(state))
    assert set(before.scalars) >= {"loss", "log_prob"} and before.pictures == {}
    untrained, _ = system.init(jax.random.key(0))
    model = score_model(Linear(), predicts_noise)
    start = model.metrics()["loss"]()(jax.random.key(0), (untrained, {})).scalars["loss"]
    assert before.scalars["loss"] < 0.5 * start


@pytest.mark.parametrize(
    "name", deep_where(lambda name: name != "pc", ["pc", "ode", "heun", "dpm++"])
)
def test_samples_have_the_moments_of_the_data(name):
    model = score_model()
    assert isinstance(model, DrawsSamples)
    drawn = jax.jit(model.sampler(name))(({}, {}), jax.random.split(jax.random.key(0), 4000))
    assert drawn["x"].shape == (4000, 3)
    std = np.sqrt(np.diag(COVARIANCE))
    # Five standard errors of 4000 draws, and 0.03 std for the steps that samplers take.
    np.testing.assert_allclose(drawn["x"].mean(0), MEAN, atol=(5 / 63 + 0.03) * std.max())
    np.testing.assert_allclose(drawn["x"].std(0) / std, 1, atol=5 / 89 + 0.03)


def test_the_likelihood_is_that_of_the_gaussian_in_nats():
    model, x = score_model(), vectors(8, seed=2)
    assert isinstance(model, MeasuresDensity)
    rows = {"x": x, "rng": jax.random.split(jax.random.key(0), 8)}
    measured = jax.jit(model.likelihood(exact=True))(({}, {}), rows)
    # The flow of a Gaussian is affine: x goes to z with the mean and variance of the SDE's marginal
    # at t_max, and the density of the model is that of z ~ N(0, I) times the change of volume.
    (scale, std), variance = (float(v[0]) for v in SDE.marginal(jnp.ones(1))), np.diag(COVARIANCE)
    ratio = np.sqrt((scale**2 * variance + std**2) / variance)
    z = scale * MEAN + ratio * (x.astype(np.float64) - MEAN)
    expected = stats.norm.logpdf(z).sum(axis=1) + np.log(ratio).sum()
    # Tolerances of the solver are 1e-5, on three coordinates; t_min = 1e-5 adds a variance of 1e-6
    # to the narrowest, 0.09: 1e-5 of a nat, and as much again for every std from the mean.
    np.testing.assert_allclose(measured["log_prob"], expected, atol=1e-3)
    assert "bits_per_dim" not in measured


@pytest.mark.deep
def test_the_report_of_vectors_is_in_nats(tmp_path):
    model, x = score_model(), vectors(3, seed=2)
    run = Run(ConfigDict(), ({}, {}), 7)
    out, options = str(tmp_path / "nats"), {"exact": True, "seed": 0, "batch_size": 4}
    report, _ = density_report(model, run, x, 2, out=out, **options)
    rows = {"x": np.tile(x, (2, 1)), "rng": row_keys(jax.random.key(0), 6)}
    expected = jax.jit(model.likelihood(exact=True))(({}, {}), rows)["log_prob"]
    saved = np.load(f"{out}.npz")["log_prob"]
    # The same programs, on as many devices as there are: rounding of a solver of 1e-5.
    np.testing.assert_allclose(saved, expected.reshape(2, 3), atol=1e-3)
    assert report["log_prob"] == pytest.approx(saved.mean()) and report["num_rows"] == 3
    assert not any("bits" in name for name in report)


def test_nats_of_an_energy_fall_as_its_normaliser_rises():
    bounds = sandwich(jnp.asarray([1.0, 1.5, 1.2]), jnp.asarray([-1.6, -1.3]))
    report = energy_report(np.full((1, 5), 2.0), bounds, unit=Unit("log_prob", 1.0, "num_rows"))
    assert report["log_prob_high"] == pytest.approx(2.0 - float(bounds.lower))
    assert report["log_prob_low"] == pytest.approx(2.0 - float(bounds.upper))


def test_the_splits_of_vectors_are_named():
    view = score_model().data
    np.testing.assert_array_equal(stored_examples(view, "train", 5), vectors()[:5])
    assert len(stored_examples(view, "test", None)) == 400
    with pytest.raises(ValueError, match="unknown split 'tset': did you mean 'test'"):
        stored_examples(view, "tset", 5)


def test_a_measured_coordinate_is_kept():
    model, x = score_model(), vectors(500, seed=3)
    assert isinstance(model, Completes)
    complete = jax.jit(model.completion(mask_operator(jnp.array([[1.0, 0.0, 0.0]]))))
    rngs = jax.random.split(jax.random.key(0), 500)
    completed = complete(({}, {}), {"x": x, "rng": rngs})
    np.testing.assert_allclose(completed["x"][:, 0], x[:, 0], atol=1e-5)
    # The others are independent of it, and keep their law: five standard errors of 500 draws.
    np.testing.assert_allclose(completed["x"][:, 1].std(), 1.0, atol=5 / 31 + 0.03)


@pytest.mark.parametrize("rngs", [jax.random.key(0), jax.random.PRNGKey(0)])
def test_a_sampler_without_a_key_for_each_sample_is_refused(rngs):
    with pytest.raises(ValueError, match="a sampler needs a key for each sample"):
        score_model().sampler("heun")(({}, {}), rngs)


def test_rows_that_are_no_numbers_are_refused():
    for test in (np.full((3, 2), np.nan), np.ones((3, 2), complex)):
        with pytest.raises(ValueError, match="finite real numbers; test has others"):
            VectorView(np.zeros((3, 2)), test)


@pytest.mark.deep
def test_chunks_and_paths_are_of_vectors():
    model, x = score_model(), vectors(5, seed=4)
    rows = measure_in_chunks(
        jax.random.key(0), model.likelihood(), ({}, {}), x, field="x", batch_size=4
    )
    assert rows["log_prob"].shape == (5,)
    path = jax.jit(model.interpolation(3))(({}, {}), {"start": x[:2], "end": x[2:4]})["x"]
    # There and back by a solver of 1e-5, of which the way from noise to data makes a hundredfold.
    np.testing.assert_allclose(path[:, 0], x[:2], atol=1e-2)
    np.testing.assert_allclose(path[:, 2], x[2:4], atol=1e-2)


def test_init_takes_examples_of_any_kind():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, tokens, features):
            embedded = nn.Embed(10, 4)(tokens).mean(axis=1)
            return nn.Dense(2)(jnp.concatenate([embedded, features["a"]], axis=1))

    init = make_init(Network(), jnp.zeros((1, 5), jnp.int32), {"a": jnp.zeros((1, 3))})
    params, model_state = init(jax.random.key(0))
    assert params["Dense_0"]["kernel"].shape == (7, 2) and model_state == {}


def test_vectors_of_different_lengths_are_refused_as_is_a_split_without_rows():
    for test in (np.zeros((3, 4)), np.zeros((0, 2))):
        with pytest.raises(ValueError, match=r"rows \(n, d\) of one length d, n >= 1"):
            VectorView(np.zeros((3, 2)), test)
