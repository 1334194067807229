# SPDX-License-Identifier: Apache-2.0
"""The system of autoregressive conditional scores: densities, samples, denoising, refusals."""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from configs.ar_csm import cifar10, digits, eight_gaussians, wine
from scorejax import systems
from scorejax.capabilities import DrawsSamples, IsEvaluated, MeasuresDensity
from scorejax.data.grey_levels import GreyLevels
from scorejax.models.autoregressive import AutoregressiveModel
from scorejax.models.masked_ar import MaskedTrunk
from scorejax.models.univariate import MixtureHead, ScoreHead
from scorejax.numerics import sum_except_batch
from scorejax.random import row_keys
from scorejax.systems.ar_csm.model import ConditionalModel
from scorejax.systems.ar_csm.objectives import Bound, causal_denoised
from scorejax.typing import Variables
from tests.compilation import optimised_jit
from tests.gaussian_conditionals import Conditionals, covariance, draws, gaussian_head

HEADS = {"score": ScoreHead(8, 1, num_frequencies=4), "mixture": MixtureHead(2, "logistic")}


@dataclasses.dataclass(frozen=True)
class Pair:
    """Images of two pixels."""

    shape: tuple = (1, 2, 1)
    field: str = "image"

    def to_data(self, x):
        return (x + 1) / 2


def two_pixels(head: str) -> tuple[ConditionalModel, Variables]:
    """A model of three grey levels with random weights, of noise 0.1 unless it is a mixture."""
    model = systems.load_model(digits.get_config("debug"))
    network = AutoregressiveModel(MaskedTrunk(8, 1, 4), HEADS[head])
    levels = GreyLevels(3, -1.0, 1.0)
    # Mixtures have mass beyond their range, which is that of the end levels.
    limit = 2.5 if head == "score" else 1.1
    ranges = {"low": -limit, "high": limit, "num_cells": 48}
    sigmas = np.array([0.1]) if head == "score" else None
    model = dataclasses.replace(
        model, data=Pair(), network=network, levels=levels, sigmas=sigmas, **ranges
    )
    x = jnp.zeros((1, 1, 2, 1))
    sigma = None if sigmas is None else jnp.full(x.shape, 0.1)
    params = network.init(jax.random.key(0), x, sigma)["params"]
    # The heads' last layers start at 0, where all contexts have the same density.
    noise = iter(row_keys(jax.random.key(1), 100))
    shaken = jax.tree.map(lambda p: p + 0.5 * jax.random.normal(next(noise), p.shape), params)
    return model, (shaken, {})


def all_images(levels: GreyLevels) -> jax.Array:
    pairs = np.array([*itertools.product(range(levels.num), repeat=2)])
    return levels.value(jnp.asarray(pairs).reshape(-1, 1, 2, 1))


@pytest.mark.parametrize("head", [pytest.param("score", marks=pytest.mark.slow), "mixture"])
def test_probabilities_of_all_images_sum_to_one(head):
    model, variables = two_pixels(head)
    terms = jax.jit(model.conditionals)(variables, all_images(model.levels))
    probabilities = jnp.exp(sum_except_batch(terms.log_prob))
    assert np.ptp(probabilities) > 0.05, "these weights make all images equally likely"
    assert float(probabilities.sum()) == pytest.approx(1, abs=1e-5)  # nine sums in float32


@pytest.mark.deep
@pytest.mark.parametrize("head", [pytest.param("score", marks=pytest.mark.slow), "mixture"])
def test_samples_have_the_probabilities_that_the_likelihood_says(head):
    model, variables = two_pixels(head)
    terms = model.conditionals(variables, all_images(model.levels))
    probabilities = np.exp(sum_except_batch(terms.log_prob), dtype=float)
    keys = row_keys(jax.random.key(2), 4096)
    samplers = {name: model.sampler(name) for name in ("inverse_cdf", "jacobi")}
    drawn = {
        name: optimised_jit(functools.partial(draw, variables))(keys)
        for name, draw in samplers.items()
    }
    codes = {}
    for name, sample in drawn.items():
        level = np.asarray(model.levels.index(2 * sample["image"] - 1)).reshape(-1, 2)
        codes[name] = 3 * level[:, 0] + level[:, 1]
    counts = np.bincount(codes["inverse_cdf"], minlength=9)
    expected = probabilities / probabilities.sum() * len(keys)
    assert stats.chisquare(counts, expected).pvalue > 1e-4  # the false-alarm rate
    # Rounded to grey levels; a draw within rounding of a bound may fall on either side.
    assert np.mean(codes["jacobi"] != codes["inverse_cdf"]) < 2e-3
    assert np.all(drawn["jacobi"]["sweeps"] <= 2)


@pytest.mark.slow
def test_samples_of_one_key_do_not_depend_on_the_others():
    model, variables = two_pixels("score")
    keys = row_keys(jax.random.key(2), 5)
    draw = model.sampler()
    together, alone = draw(variables, keys)["image"], draw(variables, keys[3:4])["image"]
    np.testing.assert_array_equal(together[3:4], alone)


def test_causal_denoising_errs_as_much_as_the_closed_form_says():
    dim, num, sigma = 3, 200_000, 0.8
    clean = covariance(dim)
    noisy = clean + sigma**2 * np.eye(dim)
    x = draws(clean, num)
    y = x + np.float32(sigma) * np.random.default_rng(5).normal(size=x.shape).astype(np.float32)
    model = Conditionals.of(noisy)
    bound = Bound(
        contexts=lambda x, condition: model.contexts(x),
        head=lambda u, c, sigma: gaussian_head(u, c),
        log_prob=None,
        cdf=None,
        variance=None,
    )
    estimate = causal_denoised(bound, jnp.asarray(y), jnp.full(num, sigma))
    measured = np.mean((np.asarray(estimate) - x) ** 2, axis=0)
    causal = sigma**2 * (1 - sigma**2 / model.variances)
    joint = sigma**2 * (1 - sigma**2 * np.diag(np.linalg.inv(noisy)))
    # Relative standard errors of 200,000 squares are 0.3 %: 1 % is three of them.
    np.testing.assert_allclose(measured, causal, rtol=0.01)
    assert np.all(causal[:-1] > 1.01 * joint[:-1]), "later dimensions would help"
    np.testing.assert_allclose(causal[-1], joint[-1])  # the last one has seen all


def test_held_out_losses_do_not_rank_wider_conditionals_as_better():
    # Weighted by its own variance v, a Gaussian score of N(0, 1) data has 1 / (2 v) - 1, the lower
    # the wider it is; without the weight the least is at v = 1.
    model = systems.load_model(wine.get_config("debug"))
    x = jax.random.normal(jax.random.key(0), (1000, 13))

    def bound(v):
        head = lambda u, c: -u / v
        return Bound(lambda x: x[..., None], head, None, None, lambda c: jnp.full(c.shape[:-1], v))

    losses = {
        v: float(model.held_out_objective(bound(v), jax.random.key(1), x).mean())
        for v in (0.5, 1.0, 4.0)
    }
    assert min(losses, key=losses.get) == 1.0


@pytest.mark.slow
def test_the_likelihood_of_images_is_that_of_their_grey_levels():
    config = digits.get_config("debug")
    model = systems.load_model(config)
    variables = systems.load(config).init(jax.random.key(0))
    stored = model.data.stored("test", 3).image
    rng = np.random.default_rng(0)
    rows = [model.data.dequantized(rng, stored) for _ in range(2)]
    measure = jax.jit(model.likelihood())
    measured = [
        measure(variables, {"image": x, "rng": row_keys(rng, 3)})
        for x in rows
        for rng in [jax.random.key(0)]
    ]
    # Two dequantisations of one image have the same levels.
    np.testing.assert_array_equal(measured[0]["log_prob"], measured[1]["log_prob"])
    bits = -measured[0]["log_prob"] / (64 * math.log(2))
    np.testing.assert_allclose(measured[0]["bits_per_dim"], bits, rtol=1e-6)  # float32
    x = 2 * stored / 16.0 - 1
    terms = model.conditionals(variables, jnp.asarray(x, jnp.float32))
    # One program compiled as a whole, the other in parts.
    np.testing.assert_allclose(sum_except_batch(terms.log_prob), measured[0]["log_prob"], rtol=1e-4)


@pytest.mark.deep
@pytest.mark.parametrize(
    "variant", ["", *(pytest.param(v, marks=pytest.mark.slow) for v in ("mixture", "noisy"))]
)
def test_the_network_of_cifar10_in_full_takes_its_images(variant):
    model = systems.load_model(cifar10.get_config(variant))
    x = jax.ShapeDtypeStruct((2, 32, 32, 3), "float32")
    sigma = None if model.sigmas is None else x
    condition = jax.ShapeDtypeStruct((2, 1), "float32") if model.noisy_context else None
    init = functools.partial(model.network.init_with_output, jax.random.key(0))
    scores, _ = jax.eval_shape(init, x, sigma, condition)
    assert scores.shape == x.shape


def test_models_offer_what_the_commands_ask_for():
    for module in (digits, eight_gaussians, wine):
        model = systems.load_model(module.get_config("debug"))
        assert isinstance(model, DrawsSamples) and isinstance(model, IsEvaluated)
        assert isinstance(model, MeasuresDensity)


@pytest.mark.parametrize(
    ("module", "variant", "changes", "message"),
    [
        (digits, "debug", {"objective": "csm"}, "no lower bound on grey levels"),
        (digits, "debug", {"objective": "likelihood"}, "needs head='mixture'; got 'score'"),
        (digits, "debug", {"model": "mode"}, "did you mean 'made'"),
        (digits, "debug", {"langevin_step": 4.0}, "langevin_step needs to lie in"),
        (digits, "debug", {"num_cells": 10}, "num_cells needs to be at least 20; got 10"),
        (digits, "debug", {"sigma_min": 2.0}, "sigma_min"),
        (digits, "mixture,debug", {"objective": "denoising"}, "'gaussian'"),
        (eight_gaussians, "debug", {"model": "pixelcnnpp"}, "need model='made'"),
        (eight_gaussians, "debug", {"num_trunk_frequencies": -1}, "num_frequencies needs to be at"),
        (digits, "pixelcnnpp,debug", {"num_trunk_frequencies": 4}, "needs model='made', or to be"),
        (wine, "debug", {"dequantize": False, "data_noise": 0.0}, "dequantize=True"),
        (wine, "debug", {"noisy_context": True}, "needs objective='denoising'; got 'csm'"),
        (wine, "debug", {"hidden": 8}, "hidden needs a unit for each of 12 earlier"),
        (digits, "noisy,debug", {"hidden": 63}, "the noise level and each of 63 earlier"),
        (digits, "debug", {"num_levels": 1, "sigma_min": 0.0}, "sigma_min needs to be a positive"),
        (cifar10, "debug", {"dataset": "celeba_square"}, "rounded to levels.*Take 'celeba'"),
    ],
)
def test_impossible_configs_are_one_line(module, variant, changes, message):
    config = module.get_config(variant)
    config.update(changes)
    with pytest.raises(ValueError, match=message) as error:
        systems.load(config)
    assert "\n" not in str(error.value)


def test_nan_is_no_grey_level():
    levels, x = GreyLevels(17, -1.0, 1.0), jnp.array([np.nan, -np.inf, 0.13, 9.0])
    np.testing.assert_array_equal(levels.nearest(x), [np.nan, -1.0, 0.125, 1.0])
    np.testing.assert_array_equal(levels.undequantized(x), [np.nan, -1.0, 0.125, 1.0])
    model, variables = two_pixels("mixture")
    x = all_images(model.levels).at[0, 0, 1].set(np.nan)
    terms = model.conditionals(variables, x)
    # The last pixel, whose context does not see it.
    assert np.isnan(terms.log_prob[0, 0, 1, 0]) and np.isnan(terms.error[0, 0, 1, 0])
    assert np.isfinite(terms.log_prob[1:]).all()


def test_the_noise_of_exact_score_matching_is_in_the_range_and_in_the_truth():
    config = eight_gaussians.get_config("csm,debug")
    config.data_noise = 1.5
    model = systems.load_model(config)
    assert model.noise == 1.5 and model.sigma is None
    # The data end at 4 or so; eight deviations more.
    assert model.high > float(model.data.train.max()) + 8 * 1.5 - 1e-4
    assert systems.load_model(eight_gaussians.get_config("debug")).noise == pytest.approx(0.03)


@pytest.mark.deep
@pytest.mark.parametrize("module", [digits, wine])
def test_densities_have_the_precision_of_the_evaluation(module):
    model = systems.load_model(module.get_config("debug"))
    variables = jax.eval_shape(systems.load(module.get_config("debug")).init, jax.random.key(0))
    x = jax.ShapeDtypeStruct((2, *model.data.shape), "float32")
    batch = {model.data.field: x}
    with jax.default_matmul_precision("bfloat16"):
        text = str(jax.make_jaxpr(model.likelihood())(variables, batch))
        text += str(jax.make_jaxpr(model.losses)(variables, jax.random.key(0), x))
    assert text.count("dot_general[") == text.count("Precision.HIGHEST") / 2 > 0


def test_samplers_say_what_they_lack():
    model = systems.load_model(eight_gaussians.get_config("csm,debug"))
    with pytest.raises(ValueError, match="'langevin' needs noise levels"):
        model.sampler("langevin")
    with pytest.raises(ValueError, match="fixed number of evaluations; leave out num_steps=5"):
        model.sampler(num_steps=5)
    with pytest.raises(ValueError, match="did you mean 'jacobi'"):
        model.sampler("jacoby")
    denoiser = systems.load_model(digits.get_config("noisy,debug"))
    with pytest.raises(ValueError, match="samples need noisy_context=False"):
        denoiser.sampler()
    with pytest.raises(ValueError, match="densities need noisy_context=False"):
        denoiser.likelihood()
    of_levels = systems.load_model(digits.get_config("debug"))
    with pytest.raises(ValueError, match="no importance-weighted bound"):
        of_levels.likelihood(exact=True)
    with pytest.raises(ValueError, match="noisy_context=True"):
        model.denoised(({}, {}), jnp.zeros((1, 2)), jnp.ones(1))
