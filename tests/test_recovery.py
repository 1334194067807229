# SPDX-License-Identifier: Apache-2.0
"""Recovery likelihood on Gaussian data, where conditionals, chains and gradients are closed forms.

With data N(m, v), y_t = a' x_t has mean mu = a' A_t m and variance tau2 = a'^2 (A_t^2 v + S_t^2).
Given x_{t+1}, its precision is lam = 1 / tau2 + 1 / sigma^2, and a Langevin step of squared size s2
shrinks the distance to the mean by rho = 1 - s2 lam / 2.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import brentq

from scorejax.energies import score_of
from scorejax.objectives import recovery as objectives
from scorejax.samplers import recovery as samplers
from scorejax.schedules import RecoveryLevels, fine_recovery_levels, recovery_levels
from tests.compilation import optimised_jit

LEVELS = recovery_levels(6)
TOP = 5


@dataclasses.dataclass(frozen=True)
class Data:
    """Coordinates N(mean, variance), and what follows for each level."""

    mean: float = 0.3
    variance: float = 0.25
    levels: RecoveryLevels = LEVELS

    @property
    def mu(self):
        return self.levels.energy_scales * self.levels.scales[:-1] * self.mean

    @property
    def tau2(self):
        spread = self.levels.scales**2 * self.variance + self.levels.stds**2
        return self.levels.energy_scales**2 * spread[:-1]

    def energy_fn(self, precision=None, mu=None):
        """The true energy, or one of other precisions or means (T,)."""
        precision = jnp.asarray(1 / self.tau2 if precision is None else precision)
        mu = jnp.asarray(self.mu if mu is None else mu)

        def energy(y, t):
            centred = y - mu[t][:, None]
            return (precision[t][:, None] * centred**2).sum(axis=1) / 2

        return energy

    def conditional(self, t, x_next, precision=None):
        """Precision lam, and mean of y_t given x_{t+1}."""
        energy_precision = (1 / self.tau2)[t] if precision is None else precision[t]
        tether = self.levels.recovery_precisions[t]
        lam = energy_precision + tether
        return lam, (energy_precision * self.mu[t] + tether * x_next) / lam

    def chain_law(self, t, x_next, num_steps, noise_scale=1.0, precision=None):
        """Mean and variance of y_t after num_steps from x_{t+1}."""
        lam, centre = self.conditional(t, x_next, precision)
        s2 = self.levels.step_sizes[t]
        rho = 1 - s2 * lam / 2
        variance = noise_scale**2 * s2 * (1 - rho ** (2 * num_steps)) / (1 - rho**2)
        return centre + rho**num_steps * (x_next - centre), variance


DATA = Data()


def full(num, t):
    return jnp.full(num, t)


def assert_moments(draws, mean, variance):
    """Holds the mean to 4 standard errors, the variance to 4 of its own: 2 in 16,000 fail."""
    draws = np.asarray(draws, np.float64).ravel()
    assert abs(draws.mean() - mean) < 4 * np.sqrt(variance / draws.size)
    assert abs(draws.var() / variance - 1) < 4 * np.sqrt(2 / draws.size)


@pytest.mark.parametrize("t", range(6))
def test_score_of_the_conditional(t):
    x_next = jnp.linspace(-2, 2, 12).reshape(4, 3)
    y = x_next[::-1] * 0.7
    energy = samplers.conditional_energy(DATA.energy_fn(), LEVELS, full(4, t), x_next)
    lam, centre = DATA.conditional(t, np.asarray(x_next, np.float64))
    expected = -lam * (np.asarray(y, np.float64) - centre)
    # Two terms of opposite sign, up to 2 / sigma^2 each, cancel: 1e-5 of the larger, in float32.
    largest = np.abs(expected).max() + 2 * LEVELS.recovery_precisions[t]
    np.testing.assert_allclose(score_of(energy)(y), expected, atol=1e-5 * largest)


@functools.partial(optimised_jit, static_argnums=4)
def end_of_chain(rng, noise_scale, t, x_next, num_steps):
    normal = lambda k: noise_scale * jax.random.normal(jax.random.fold_in(rng, k), x_next.shape)
    return samplers.langevin_chain(normal, DATA.energy_fn(), LEVELS, t, x_next, num_steps=num_steps)


@pytest.mark.parametrize("t, noise_scale", [(0, 1.0), (2, 1.0), (4, 0.99), (TOP, 1.0)])
def test_the_law_of_a_chain(t, noise_scale):
    num, num_steps = 2**16, 30
    x_next = jnp.full((num, 1), 0.8)
    y = end_of_chain(jax.random.key(t), noise_scale, full(num, t), x_next, num_steps)
    assert_moments(y, *DATA.chain_law(t, 0.8, num_steps, noise_scale))


def test_a_long_chain_has_the_bias_of_its_step():
    # With steps of b^2 = 0.5 the factor rho is 0.7 to 0.9 and the chain forgets its start in 200
    # steps; its variance then exceeds the conditional's by 1 / (1 - s2 lam / 4), here 3 to 20 %.
    levels = recovery_levels(6, step_scale=0.01)
    data, num, t = Data(levels=levels), 2**16, 2
    rng, x_next = jax.random.key(3), jnp.full((num, 1), 0.8)
    normal = lambda k: jax.random.normal(jax.random.fold_in(rng, k), (num, 1))
    chain = functools.partial(samplers.langevin_chain, num_steps=200)
    y = optimised_jit(lambda x: chain(normal, data.energy_fn(), levels, full(num, t), x))(x_next)
    lam, centre = data.conditional(t, 0.8)
    biased = 1 / lam / (1 - levels.step_sizes[t] * lam / 4)
    assert biased * lam > 1.03
    assert_moments(y, centre, biased)


@functools.partial(jax.jit, static_argnums=2)
def chain_without_noise(t, x_next, num_steps):
    normal = lambda k: jnp.zeros(x_next.shape)
    return samplers.langevin_chain(normal, DATA.energy_fn(), LEVELS, t, x_next, num_steps=num_steps)


@pytest.mark.parametrize("t", range(6))
def test_a_chain_without_noise(t):
    x_next, num_steps = jnp.linspace(-1, 1, 12).reshape(4, 3), 30
    y = chain_without_noise(full(4, t), x_next, num_steps)
    mean, _ = DATA.chain_law(t, np.asarray(x_next, np.float64), num_steps)
    np.testing.assert_allclose(y, mean, atol=1e-5)  # 30 steps in float32, values up to 1


def moment_gradients(precision, mu, positive, negative, t):
    """Gradients of E(positive) - E(negative) for each row in (mu, precision) of level t, (b, 2)."""

    def loss(parameters, positive, negative):
        mu_t, precision_t = parameters
        at_t = lambda table, value: jnp.asarray(table).at[t].set(value)
        energy_fn = DATA.energy_fn(at_t(precision, precision_t), at_t(mu, mu_t))
        pair = positive[None], negative[None]
        weight = LEVELS.loss_weights[t] * LEVELS.step_sizes[t]
        return objectives.contrast(energy_fn, LEVELS, full(1, t), *pair).loss[0] / weight

    parameters = jnp.asarray([mu[t], precision[t]])
    return jax.vmap(jax.grad(loss), (None, 0, 0))(parameters, positive, negative)


def exact_pairs(rng, t, num, precision=None):
    """Positives, and exact draws of the model given their x_{t+1}, for precisions (T,)."""
    x_rng, z_rng, next_rng, y_rng = jax.random.split(rng, 4)
    draw = lambda key: jax.random.normal(key, (num, 1))
    x = DATA.mean + np.sqrt(DATA.variance) * draw(x_rng)
    positive, x_next = objectives.diffuse(LEVELS, x, full(num, t), draw(z_rng), draw(next_rng))
    lam, centre = DATA.conditional(t, x_next, precision)
    return positive, centre + draw(y_rng) / np.sqrt(lam)


@pytest.mark.deep
@pytest.mark.parametrize("t", [0, 3, TOP])
def test_the_gradient_is_zero_at_the_truth(t):
    positive, negative = exact_pairs(jax.random.key(t), t, 40_000)
    gradients = moment_gradients(1 / DATA.tau2, DATA.mu, positive, negative, t)
    error = gradients.std(axis=0) / np.sqrt(len(gradients))
    assert np.all(np.abs(gradients.mean(axis=0)) < 4 * error)


@pytest.mark.deep
@pytest.mark.parametrize("t", [0, 3])
def test_the_gradient_at_a_wrong_precision(t):
    # d NLL / dp = (E (y+ - mu)^2 - E (y- - mu)^2) / 2, with E (y- - mu)^2 as worked out by hand.
    p, sig2 = 1.7 / DATA.tau2[t], LEVELS.sigmas[t + 1] ** 2
    precision = 1 / DATA.tau2
    precision[t] = p
    positive, negative = exact_pairs(jax.random.key(7 + t), t, 400_000, precision)
    gradients = moment_gradients(precision, DATA.mu, positive, negative, t)[:, 1]
    tau2 = DATA.tau2[t]
    expected = (tau2 - 1 / (p + 1 / sig2) - (tau2 + sig2) / (sig2 * p + 1) ** 2) / 2
    assert abs(gradients.mean() - expected) < 4 * gradients.std() / np.sqrt(len(gradients))
    assert abs(expected) > 8 * gradients.std() / np.sqrt(len(gradients))  # so that 0 would fail


def short_run_precision(data, t, num_steps):
    """The precision whose chains of num_steps have the data's variance."""
    tau2, s2, sig2 = data.tau2[t], data.levels.step_sizes[t], data.levels.sigmas[t + 1] ** 2

    def excess(p):
        lam = p + 1 / sig2
        rho = 1 - s2 * lam / 2
        g = (1 - rho**num_steps) / (lam * sig2) + rho**num_steps
        noise = s2 * (1 - rho ** (2 * num_steps)) / (1 - rho**2)
        return g**2 * (tau2 + sig2) + noise - tau2

    return brentq(excess, 1e-3, 2 / s2)


def test_the_precision_that_short_chains_learn():
    data = Data(mean=0.0)
    short = [short_run_precision(data, t, 30) for t in range(5)]
    # The figures of the specification, to the digits printed there.
    np.testing.assert_allclose(short, [613, 17.9, 8.66, 6.13, 5.39], rtol=6e-3)
    np.testing.assert_allclose(1 / data.tau2[:5], [4.47, 4.15, 3.28, 2.89, 2.91], rtol=2e-3)
    long = [short_run_precision(data, t, 100_000) for t in range(1, 5)]
    # What is left is the bias of the step, below 2.5 %.
    np.testing.assert_allclose(long, 1 / data.tau2[1:5], rtol=0.05)


@pytest.mark.deep
@pytest.mark.parametrize("t", [1, 4])
def test_the_loss_is_stationary_where_short_chains_have_the_variance_of_the_data(t):
    data, num = Data(mean=0.0), 2**17
    x = jax.random.normal(jax.random.key(1), (num, 1)) * np.sqrt(data.variance)

    @optimised_jit
    def slopes(p):
        def losses(factor):
            energy_fn = data.energy_fn(jnp.full(6, p * factor))
            return objectives.recovery_loss(energy_fn, jax.random.key(t), x, LEVELS, full(num, t))

        return jax.jvp(losses, (1.0,), (1.0,))[1]

    precisions = short_run_precision(data, t, 30), 1 / data.tau2[t]
    short, true = (np.asarray(slopes(p)) for p in precisions)
    assert abs(short.mean()) < 4 * short.std() / np.sqrt(num)
    assert abs(true.mean()) > 8 * true.std() / np.sqrt(num)


@pytest.mark.slow
def test_training_with_short_chains_finds_their_fixed_point():
    # The precisions of all levels at once, by Adam with a falling rate; 1 % is the tolerance of the
    # specification. 64 coordinates a row make the gradient's noise small.
    data, num = Data(mean=0.0), 256
    target = np.array([short_run_precision(data, t, 30) for t in range(1, 5)])
    tx = optax.adam(optax.cosine_decay_schedule(0.05, 400))

    def loss(log_precision, rng):
        x_rng, rng = jax.random.split(rng)
        x = jax.random.normal(x_rng, (num, 64)) * np.sqrt(data.variance)
        t = jnp.arange(num) % 4 + 1
        precision = jnp.exp(log_precision)
        energy_fn = data.energy_fn(jnp.concatenate([precision[:1], precision, precision[:1]]))
        return objectives.recovery_loss(energy_fn, rng, x, LEVELS, t).mean()

    def step(state, rng):
        log_precision, opt_state = state
        updates, opt_state = tx.update(jax.grad(loss)(log_precision, rng), opt_state)
        return (optax.apply_updates(log_precision, updates), opt_state), None

    start = jnp.log(jnp.asarray(1 / data.tau2[1:5], jnp.float32))
    rngs = jax.random.split(jax.random.key(0), 400)
    run = optimised_jit(lambda rngs: jax.lax.scan(step, (start, tx.init(start)), rngs)[0][0])
    np.testing.assert_allclose(np.exp(run(rngs)), target, rtol=0.01)


def sampled_law(data, num_steps):
    """Mean and variance of samples from white noise by chains on the true energies."""
    mean, variance = 0.0, 1.0
    for t in range(data.levels.num_energies - 1, -1, -1):
        offset, noise = data.chain_law(t, 0.0, num_steps)
        slope = data.chain_law(t, 1.0, num_steps)[0] - offset
        scale = data.levels.energy_scales[t]
        mean, variance = slope * mean + offset, slope**2 * variance + noise
        mean, variance = mean / scale, variance / scale**2
    return mean, variance


def test_sampling_with_exact_energies_has_the_law_of_its_chains():
    num, num_steps = 2**14, 300
    draw = lambda rng: samplers.sample(rng, DATA.energy_fn(), (num, 1), LEVELS, num_steps=num_steps)
    x, nfe = optimised_jit(draw)(jax.random.key(0))
    assert nfe == 6 * num_steps
    assert_moments(x, *sampled_law(DATA, num_steps))


def test_long_enough_chains_sample_the_data():
    mean, variance = LEVELS.scales[0] * 0.3, LEVELS.scales[0] ** 2 * 0.25 + LEVELS.stds[0] ** 2
    # At level 0 steps are so small that 2000 leave 74 % of the way; 30,000 leave 1 %. What is left
    # then is the bias of the steps, which the levels below shrink to 0.1 %.
    sampled = sampled_law(DATA, 30_000)
    assert abs(sampled[0] - mean) < 0.01 * mean
    assert abs(sampled[1] / variance - 1) < 0.02
    assert sampled_law(DATA, 2000)[1] > 1.3 * variance


def test_the_normal_approximation_is_of_second_order():
    # The mean is off by a share sigma^2 / (tau2 + sigma^2) of sigma^2: the error falls as sigma^4.
    errors, sizes = [], [0.2, 0.1, 0.05]
    for sigma in sizes:
        sigmas = np.array([0.1, sigma, 1.0])
        levels = RecoveryLevels(sigmas, np.sqrt(1 - sigmas**2))
        data = Data(levels=levels)
        x_next = jnp.full((1, 1), 2.0)
        with jax.enable_x64(True):
            y = samplers.normal_approximation(
                jnp.zeros((1, 1)), data.energy_fn(), levels, full(1, 0), x_next.astype(float)
            )
            errors.append(abs(float(y[0, 0]) - data.conditional(0, 2.0)[1]))
    slope = np.polyfit(np.log(np.square(sizes)), np.log(errors), 1)[0]
    assert 1.9 < slope < 2.1


def test_denoising_recovery_is_smallest_at_the_truth():
    # Up to a share sigma^2 / tau2, the error of the normal approximation, here 0.01: as a multiple
    # of the true precision, the best one lies that near to 1.
    levels = fine_recovery_levels(1000)
    data, num, t = Data(mean=0.0, levels=levels), 2**16, 300
    x = jax.random.normal(jax.random.key(0), (num, 1)) * np.sqrt(data.variance)

    def losses(factor):
        energy_fn = data.energy_fn(factor / data.tau2)
        return objectives.recovery_denoising(energy_fn, jax.random.key(1), x, levels, full(num, t))

    gradient = lambda factor: jax.jvp(losses, (factor,), (1.0,))[1]
    slope, curvature = (np.asarray(a) for a in jax.jvp(gradient, (1.0,), (1.0,)))
    error = 4 * slope.std() / np.sqrt(num) / curvature.mean()
    share = levels.sigmas[t + 1] ** 2 / data.tau2[t]
    assert abs(slope.mean() / curvature.mean()) < share + error < 0.1


def test_the_fine_ladder_samples_by_normal_draws():
    levels = fine_recovery_levels(1000)
    data, num = Data(levels=levels), 2**14
    draw = lambda rng: samplers.sample(rng, data.energy_fn(), (num, 1), levels, num_steps=0)
    x, nfe = optimised_jit(draw)(jax.random.key(0))
    x = np.asarray(x, np.float64)
    assert nfe == 1000
    # The 1000 steps' own error is about 1 / 1000 of the variance, below the standard errors.
    assert_moments(x, levels.scales[0] * 0.3, levels.scales[0] ** 2 * 0.25 + levels.stds[0] ** 2)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: recovery_levels(1), "2 to 501 levels"),
        (lambda: recovery_levels(1000), "fine_recovery_levels"),
        (lambda: fine_recovery_levels(20), "21 levels or more"),
        (lambda: RecoveryLevels(np.array([0.1, 0.0, 0.9]), np.ones(3)), "got 0 at level 1"),
        (lambda: RecoveryLevels(np.array([0.1, 0.5, 0.9]), np.full(3, 0.9)), "decays"),
        (lambda: recovery_levels(6, step_scale=0.0), "step_scale"),
        (lambda: samplers.require_steps(LEVELS, 0), "chains of 30 steps"),
        (lambda: samplers.require_steps(LEVELS, -1), "at least 0"),
        (lambda: samplers.require_steps(recovery_levels(6, step_scale=0.05), 30), "below 0.0445"),
    ],
)
def test_bad_input_is_one_line(make, words):
    with pytest.raises(ValueError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_share_of_the_examples_becomes_background():
    x, share, num = jnp.full((2**14, 2), 3.0), 0.1, 2**14
    mixed = np.asarray(objectives.with_background(jax.random.key(0), x, share), np.float64)
    replaced = (mixed != 3).all(axis=1)
    # 4 standard errors of a share, of a mean and of a variance: 2 in 10,000 fail.
    assert abs(replaced.mean() - share) < 4 * np.sqrt(share * (1 - share) / num)
    assert_moments(mixed[replaced], 0.0, 1.0)
    assert (mixed[~replaced] == 3).all()
    assert objectives.with_background(jax.random.key(0), x, 0.0) is x
    with pytest.raises(ValueError, match=r"background needs to lie in \[0, 1\); got 1"):
        objectives.with_background(jax.random.key(0), x, 1.0)
