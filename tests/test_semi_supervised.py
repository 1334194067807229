# SPDX-License-Identifier: Apache-2.0
"""Losses on unlabelled rows against closed forms, and the teacher's average."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import integrate, stats
from scipy.special import softmax

from scorejax.models.classifier import ConvClassifier
from scorejax.objectives import semi_supervised as semi
from scorejax.random import normal, row_keys
from scorejax.train.state import TrainState
from scorejax.train.step import make_train_step
from scorejax.typing import Aux
from tests.random_variables import random_variables

RNG = np.random.default_rng(0)
W = jnp.asarray(RNG.normal(size=(5, 3)), jnp.float32)
X = jnp.asarray(RNG.normal(size=(4, 5)), jnp.float32)
KEYS = row_keys(jax.random.key(0), 4)


def linear(x):
    return x @ W


def noisy(rng, x):
    return x + 0.3 * normal(rng, x.shape)


def information(x):
    """W (diag p - p p^T) W^T in float64, with the probabilities p of the linear classifier at x."""
    w = np.asarray(W, float)
    p = softmax(np.asarray(x, float) @ w)
    return w @ (np.diag(p) - np.outer(p, p)) @ w.T


def same(rng, x):
    return x


def test_virtual_adversarial_directions_are_top_eigenvectors():
    # 30 power iterations: the share of the second eigenvector falls by (l_2 / l_1)^30.
    found = jax.jit(lambda: semi.worst_direction(linear, KEYS, X, num_iterations=30))()
    for x, direction in zip(X, found, strict=True):
        values, vectors = np.linalg.eigh(information(x))
        assert values[-2] < 0.9 * values[-1]
        assert abs(vectors[:, -1] @ np.asarray(direction)) > 0.99
        np.testing.assert_allclose(np.linalg.norm(direction), 1, rtol=1e-6)


def test_the_worst_direction_of_a_network_is_that_of_its_divergence():
    # Against the dense second derivative of KL at the image, by autodiff. The curvature of the
    # network does not enter, since the first derivative of KL is zero there.
    network = ConvClassifier(num_classes=3, widths=(4,), features=5)
    image = jnp.asarray(RNG.uniform(size=(1, 4, 4, 1)), jnp.float32)
    variables = random_variables(network, image, seed=1, mean=0.1, std=0.5)
    logits = lambda x: network.apply(variables, x).logits
    divergence = lambda flat: semi.kl_divergence(logits(image), logits(flat.reshape(1, 4, 4, 1)))[0]
    matrix = np.asarray(jax.jit(jax.hessian(divergence))(image.reshape(-1)), float)
    direction = jax.jit(
        lambda: semi.worst_direction(logits, jax.random.key(0), image, num_iterations=30)
    )()
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    assert values[-2] < 0.8 * values[-1]
    assert abs(vectors[:, -1] @ np.asarray(direction).reshape(-1)) > 0.99


def test_the_virtual_adversarial_loss_is_the_divergence_at_its_step():
    # To second order, eps^2 / 2 times the top eigenvalue; eps 0.01 leaves 1% for the third order.
    eps = 0.01
    loss = semi.virtual_adversarial(linear, KEYS, X, eps=eps, num_iterations=30)
    for x, value in zip(X, loss, strict=True):
        top = np.linalg.eigvalsh(information(x))[-1]
        # KL of about 1e-5 is a sum of terms of size 1e-3 in float32.
        np.testing.assert_allclose(value, eps**2 / 2 * top, rtol=0.03, atol=2e-7)


def test_unlabelled_losses_are_zero_without_a_perturbation():
    assert np.all(semi.pi_model(linear, KEYS, X, augment_fn=same) == 0)
    assert np.all(semi.mean_teacher(linear, linear, KEYS, X, augment_fn=same) == 0)


def test_consistency_is_the_squared_distance_of_two_augmentations():
    # E |p(x + a) - p(x + b)|^2 over independent a, b is twice the trace of the covariance of p.
    num = 5000
    x = jnp.broadcast_to(X[:1], (num, 5))
    loss = np.asarray(semi.pi_model(linear, jax.random.key(1), x, augment_fn=noisy))
    p = jax.nn.softmax(linear(noisy(jax.random.key(2), x)))
    expected = 2 * np.sum(np.var(np.asarray(p), axis=0))
    # Four standard errors of the loss; that of `expected` is of the same size.
    assert abs(loss.mean() - expected) < 4 * np.sqrt(2) * loss.std() / np.sqrt(num)
    assert np.all((loss >= 0) & (loss <= 2))


@pytest.mark.parametrize("name", ["pi_model", "mean_teacher", "virtual_adversarial"])
def test_the_loss_of_a_row_depends_on_its_own_key_alone(name):
    loss = {
        "pi_model": functools.partial(semi.pi_model, linear, augment_fn=noisy),
        "mean_teacher": functools.partial(semi.mean_teacher, linear, linear, augment_fn=noisy),
        "virtual_adversarial": functools.partial(semi.virtual_adversarial, linear, eps=1.0),
    }[name]
    # Products of fewer rows may be added in another order.
    np.testing.assert_allclose(loss(KEYS, X)[:2], loss(KEYS[:2], X[:2]), rtol=1e-5, atol=1e-7)


def test_only_the_student_carries_a_gradient():
    def loss(student, teacher):
        value = semi.mean_teacher(
            lambda x: x @ student, lambda x: x @ teacher, KEYS, X, augment_fn=noisy
        )
        return jnp.sum(value)

    student, teacher = jax.jit(jax.grad(loss, argnums=(0, 1)))(W, W + jnp.eye(5, 3))
    assert np.any(student != 0) and np.all(teacher == 0)
    attacked = lambda w: jnp.sum(semi.virtual_adversarial(lambda x: x @ w, KEYS, X, eps=1.0))
    gradient = jax.jit(jax.grad(attacked))(W)
    assert np.all(np.isfinite(gradient)) and np.any(gradient != 0)


def test_the_teacher_is_the_moving_average_of_the_student():
    # SGD on w goes w_k = -k from 0: the average after k steps is sum_j (1 - r) r^(k - j) w_j.
    rate, num = 0.9, 20
    loss = lambda params, state, rng, batch: (params["w"], Aux({}, {}))
    step = jax.jit(make_train_step(loss, optax.sgd(1.0), ema_rate=rate))
    state = TrainState.create({"w": jnp.zeros(())}, {}, optax.sgd(1.0))
    for _ in range(num):
        state, _ = step(state, {"x": jnp.zeros(1)}, jax.random.key(0))
    expected = -sum((1 - rate) * rate ** (num - j) * j for j in range(1, num + 1))
    np.testing.assert_allclose(state.ema_params["w"], expected, rtol=1e-6)


def test_ramp_runs_from_exp_minus_5_to_1():
    value = semi.ramp(jnp.array([-1.0, 0.0, 0.5, 1.0, 7.0]))
    np.testing.assert_allclose(value, np.exp([-5, -5, -1.25, 0, 0]), rtol=1e-6)


def test_sharpening_keeps_uniform_rows_and_squares_others_at_half_the_temperature():
    p = jnp.asarray(RNG.dirichlet(np.ones(3), 6), jnp.float32)
    np.testing.assert_allclose(semi.sharpen(jnp.full((2, 4), 0.25)), 0.25, rtol=1e-6)
    expected = p**2 / jnp.sum(p**2, axis=1, keepdims=True)
    np.testing.assert_allclose(semi.sharpen(p), expected, rtol=1e-5)
    np.testing.assert_allclose(semi.sharpen(p, temperature=1.0), p, rtol=1e-5)
    one_hot = jnp.eye(3)
    np.testing.assert_array_equal(semi.sharpen(one_hot), one_hot)


@pytest.mark.deep
def test_mixup_weights_favour_their_own_row():
    num, alpha = 2000, 0.75
    keys = row_keys(jax.random.key(0), num)
    weights = np.asarray(semi.mixup_weights(keys, num))
    assert np.all((weights >= 0.5) & (weights <= 1))
    density = lambda w: max(w, 1 - w) * stats.beta.pdf(w, alpha, alpha)
    expected = integrate.quad(density, 0, 1, points=[0.5])[0]
    assert abs(weights.mean() - expected) < 5 * weights.std() / np.sqrt(num)  # 1 in 1.7 million
    np.testing.assert_array_equal(semi.mixup_weights(keys[:2], 2), weights[:2])


@pytest.mark.parametrize(
    ("attempt", "words"),
    [
        (lambda: semi.virtual_adversarial(linear, KEYS, X, eps=0.0), "eps > 0; got 0.0"),
        (lambda: semi.worst_direction(linear, KEYS, X, num_iterations=0), "num_iterations >= 1"),
        (lambda: semi.sharpen(jnp.ones((1, 2)) / 2, temperature=-1.0), "temperature > 0"),
        (lambda: semi.mixup_weights(KEYS, 4, alpha=0.0), "alpha > 0"),
    ],
)
def test_impossible_settings_are_refused(attempt, words):
    with pytest.raises(ValueError, match=words):
        attempt()
