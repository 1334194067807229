# SPDX-License-Identifier: Apache-2.0
"""Attacks against closed forms of linear classifiers, and what must hold for any classifier."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorejax.attacks.adaptive import adaptive, feature_matching, nearest_of_another_class
from scorejax.attacks.ball import Ball, equal_norm_noise, judged, perturbation_norm
from scorejax.attacks.carlini_wagner import carlini_wagner
from scorejax.attacks.deepfool import deepfool
from scorejax.attacks.gradient import fgsm, pgd
from scorejax.attacks.losses import ATTACK_LOSSES, logit_ratio, margin
from scorejax.random import row_keys
from tests.compilation import optimised_jit

NUM, DIM = 12, 5
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.uniform(0, 1, (NUM, DIM)), jnp.float32)
INNER = jnp.asarray(RNG.uniform(0.4, 0.6, (NUM, DIM)), jnp.float32)
KEYS = row_keys(jax.random.key(0), NUM)
INF, TWO = Ball("inf", 0.1), Ball("2", 0.15)
W, B = (jnp.asarray(RNG.normal(size=shape), jnp.float32) for shape in [(DIM, 4), (4,)])
HIDDEN, OUT = (jnp.asarray(RNG.normal(size=shape), jnp.float32) for shape in [(DIM, 8), (8, 4)])


def linear(x):
    # Logits are 0 on average over the inputs, so that no class has them all.
    return (x - 0.5) @ W + 0.02 * B[None]


def curved(x):
    return jnp.tanh((x - 0.5) @ HIDDEN) @ OUT


def binary(x):
    """Two logits of difference w.x + b."""
    score = (x - 0.5) @ W[:, 0] + 0.1
    return jnp.stack([jnp.zeros_like(score), score], axis=1)


def predicted(logits_fn, x):
    return jnp.argmax(logits_fn(x), axis=1)


def detected(x):
    return curved(x), -jnp.sum((jnp.tanh((x - 0.5) @ HIDDEN)) ** 2, axis=1)


TARGET = jnp.asarray(RNG.normal(size=(NUM, 8)), jnp.float32)
FEW = {"num_steps": 5, "num_restarts": 2}
IN_BALL = {
    "fgsm": lambda rng, x, y, ball, n: fgsm(curved, x, y, ball=ball, num_levels=n),
    "pgd": lambda rng, x, y, ball, n: pgd(rng, curved, x, y, ball=ball, num_levels=n, **FEW),
    "adaptive": lambda rng, x, y, ball, n: adaptive(
        rng, detected, x, y, ball=ball, num_levels=n, weights=(0.1, 1.0), **FEW
    ),
    "feature_matching": lambda rng, x, y, ball, n: feature_matching(
        rng,
        lambda x: (curved(x), jnp.tanh((x - 0.5) @ HIDDEN)),
        x,
        y,
        TARGET[: len(x)],
        ball=ball,
        num_levels=n,
        **FEW,
    ),
}
NEAREST = {
    "carlini_wagner": lambda rng, x, y, ball, n: carlini_wagner(
        curved,
        x,
        y,
        num_steps=60,
        num_bisections=3,
        initial_weight=1.0,
        learning_rate=0.05,
        num_levels=n,
    ),
    "deepfool": lambda rng, x, y, ball, n: deepfool(curved, x, y, norm=ball.norm, num_levels=n),
}
ATTACKS = IN_BALL | NEAREST


@functools.cache
def compiled(name, ball, num_levels=None):
    return jax.jit(lambda rng, x, y: ATTACKS[name](rng, x, y, ball, num_levels))


def test_attacks_on_a_linear_binary_classifier_reach_its_worst_margin():
    # max over |delta|_inf <= eps of the margin is margin + eps |w|_1, with the box at
    # clip(x - eps y sign(w), 0, 1); over |delta|_2 <= eps it is margin + eps |w|_2. float32 sums of
    # numbers near 1 are off by a few 1e-7.
    w, label = W[:, 0], predicted(binary, X)
    sign = jnp.where(label == 1, 1, -1)[:, None]
    worst = jnp.clip(X - INF.eps * sign * jnp.sign(w)[None], 0, 1)
    single = jax.jit(lambda: fgsm(binary, X, label, ball=INF))()
    np.testing.assert_allclose(single.x, worst, atol=1e-6)
    repeated = jax.jit(lambda: pgd(KEYS, binary, X, label, ball=INF, **FEW))()
    np.testing.assert_allclose(repeated.x, worst, atol=1e-6)
    y = predicted(binary, INNER)
    for ball, dual in [(INF, jnp.sum(jnp.abs(w))), (TWO, jnp.linalg.norm(w))]:
        attacked = jax.jit(lambda ball=ball: fgsm(binary, INNER, y, ball=ball))()
        expected = margin(binary(INNER), y) + ball.eps * dual
        np.testing.assert_allclose(margin(binary(attacked.x), y), expected, atol=1e-6)


def test_projected_ascent_reaches_the_edge_of_a_euclidean_ball():
    # On the sphere a step of eps / 4 divides the small angle to the optimum by 5 / 4: 40 steps
    # leave 1.3e-4 of an angle below pi, and the margin is short of eps |w| by its square.
    y = predicted(binary, INNER)
    step_size = TWO.eps / 4
    attacked = jax.jit(
        lambda: pgd(KEYS, binary, INNER, y, ball=TWO, num_restarts=2, step_size=step_size)
    )()
    expected = margin(binary(INNER), y) + TWO.eps * jnp.linalg.norm(W[:, 0])
    np.testing.assert_allclose(margin(binary(attacked.x), y), expected, atol=1e-6)


def boundary_distances(norm):
    """Distances (NUM, 4) of INNER to the boundaries of `linear` with each class, in float64."""
    w, z = np.asarray(W, float), np.asarray(linear(INNER), float)
    y = z.argmax(axis=1)
    size = np.linalg.norm(w.T[:, None] - w.T[None], axis=-1, ord=2 if norm == "2" else 1)
    np.fill_diagonal(size, np.nan)
    return (z[np.arange(NUM), y][:, None] - z) / size[y]


@pytest.mark.parametrize("norm", ["2", "inf"])
def test_deepfool_finds_the_nearest_boundary_of_a_linear_classifier_in_one_step(norm):
    attacked = jax.jit(
        lambda: deepfool(linear, INNER, predicted(linear, INNER), norm=norm, num_steps=1)
    )()
    assert np.all(attacked.success)
    size = perturbation_norm(attacked.x, INNER, norm)
    # The perturbation is the difference of numbers near 0.5: 6e-8 of each, against sizes of 1e-2.
    least = np.nanmin(boundary_distances(norm), axis=1)
    np.testing.assert_allclose(size, 1.02 * least, rtol=1e-5, atol=2e-7)


def test_carlini_wagner_comes_within_5_percent_of_a_boundary_and_never_below_the_nearest():
    # The margin looks at the class of the largest other logit, whose boundary need not be the
    # nearest: of these 12 rows one ends at the boundary of another class. Adam's steps of 0.003 in
    # w move x by up to 0.0015, against distances from 0.0035 on.
    attack = functools.partial(carlini_wagner, linear, num_steps=500, learning_rate=3e-3)
    attacked = optimised_jit(attack)(INNER, predicted(linear, INNER))
    assert np.all(attacked.success)
    distances = boundary_distances("2")
    reached = distances[np.arange(NUM), predicted(linear, attacked.x)]
    size = np.asarray(perturbation_norm(attacked.x, INNER, "2"), float)
    assert np.all(size >= np.nanmin(distances, axis=1) - 1e-6)  # rounding, see above
    assert np.all(size <= 1.05 * reached), size / reached
    assert np.sum(size <= 1.05 * np.nanmin(distances, axis=1)) >= 11


@pytest.mark.parametrize(
    ("name", "ball"), [*((name, INF) for name in IN_BALL), ("fgsm", TWO), ("pgd", TWO)]
)
def test_attacks_stay_in_ball_and_box_and_tell_their_success(name, ball):
    label = predicted(curved, X).at[0].add(1) % 4  # the first row is wrong from the start
    attacked = compiled(name, ball)(KEYS, X, label)
    assert np.all((attacked.x >= 0) & (attacked.x <= 1))
    assert np.all(perturbation_norm(attacked.x, X, ball.norm) <= ball.eps + 1e-6)
    fresh = (predicted(curved, attacked.x) != label) & (predicted(curved, X) == label)
    np.testing.assert_array_equal(attacked.success, fresh)
    assert not attacked.success[0]


@pytest.mark.parametrize("name", NEAREST)
def test_attacks_without_a_ball_stay_in_the_box_and_tell_their_success(name):
    label = predicted(curved, X).at[0].add(1) % 4
    attacked = compiled(name, INF)(KEYS, X, label)
    assert np.all((attacked.x >= 0) & (attacked.x <= 1))
    fresh = (predicted(curved, attacked.x) != label) & (predicted(curved, X) == label)
    np.testing.assert_array_equal(attacked.success, fresh)
    assert attacked.success[1:].all() and not attacked.success[0]


@pytest.mark.parametrize(("name", "norm"), [("fgsm", "inf"), ("pgd", "inf"), ("pgd", "2")])
def test_a_ball_of_radius_0_returns_the_input(name, norm):
    attacked = compiled(name, Ball(norm, 0.0))(KEYS, X, predicted(curved, X))
    np.testing.assert_array_equal(attacked.x, X)
    assert not np.any(attacked.success)


@pytest.mark.parametrize("name", ATTACKS)
def test_the_attack_on_a_row_does_not_depend_on_its_batch(name):
    # Every other row is replaced. Products of equal shapes are computed alike, so bit for bit.
    odd = jnp.arange(NUM) % 2 == 1
    x = jnp.where(odd[:, None], INNER, X)
    keys = jax.random.wrap_key_data(
        jnp.where(odd[:, None], 7, jax.random.key_data(KEYS)).astype(jnp.uint32)
    )
    first = compiled(name, INF)(KEYS, X, predicted(curved, X))
    second = compiled(name, INF)(keys, x, predicted(curved, x))
    np.testing.assert_array_equal(first.x[~odd], second.x[~odd])
    np.testing.assert_array_equal(first.success[~odd], second.success[~odd])
    if "pgd" in name:
        assert np.any(first.x[odd] != second.x[odd])


def test_more_restarts_never_lower_a_margin():
    label, last = predicted(curved, X), -np.inf
    for num in (1, 4):
        attack = jax.jit(
            lambda n=num: pgd(KEYS, curved, X, label, ball=INF, num_steps=2, num_restarts=n)
        )
        value = np.asarray(margin(curved(attack().x), label))
        assert np.all(value >= last)
        last = value


@pytest.mark.parametrize("loss", ATTACK_LOSSES)
def test_only_the_cross_entropy_stands_still_where_the_softmax_is_saturated(loss):
    saturated = lambda x: 1e4 * linear(x)
    label = predicted(saturated, INNER)
    sure = np.asarray(-margin(saturated(INNER), label) > 120)
    attacked = jax.jit(lambda: fgsm(saturated, INNER, label, ball=INF, loss=loss))()
    still = np.all(attacked.x == INNER, axis=1)
    assert sure.sum() > 5
    assert np.all(still[sure]) if loss == "cross_entropy" else not np.any(still)


def test_the_logit_ratio_does_not_change_with_the_scale_of_the_logits():
    logits, label = linear(X), predicted(linear, X)
    value = logit_ratio(logits, label)
    np.testing.assert_allclose(value, logit_ratio(100 * logits + 3, label), rtol=1e-3)
    ordered = np.sort(np.asarray(logits), axis=1)
    expected = (ordered[:, -2] - ordered[:, -1]) / (ordered[:, -1] - ordered[:, -3])
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_rounded_attacks_are_levels_inside_the_ball():
    num_levels = 17
    top = num_levels - 1
    clean = jnp.round(X * top) / top
    label = predicted(curved, clean)
    attacked = compiled("pgd", INF, num_levels)(KEYS, clean, label)
    steps = np.asarray(attacked.x, float) * top
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-4)
    assert np.all(perturbation_norm(attacked.x, clean, "inf") <= INF.eps + 1e-6)
    np.testing.assert_array_equal(attacked.success, predicted(curved, attacked.x) != label)
    free = judged(curved, clean, label, clean + 0.6 / top, num_levels=num_levels)  # to the nearest
    np.testing.assert_allclose((free.x - clean) * top, 1, atol=1e-3)


def test_control_noise_is_as_far_as_the_attack():
    attacked = X.at[1:].add(0.1).clip(0, 1)  # the first row is not moved
    noisy = jax.jit(equal_norm_noise)(KEYS, X, attacked)
    assert np.all((noisy >= 0) & (noisy <= 1)) and np.all(noisy[0] == X[0])
    expected = perturbation_norm(attacked, X, "2")
    # Bisection over a factor of 64 leaves 64 / 2^30 of the scale; rounding more.
    np.testing.assert_allclose(perturbation_norm(noisy, X, "2"), expected, rtol=1e-5, atol=1e-6)


def test_the_adaptive_attack_raises_the_score_where_the_loss_does_not_care():
    # The class depends on the first entry, the score on the second alone: the best attack moves
    # the first across 1/2, and the second to 0.5 or as near as the ball lets it.
    logits = lambda x: jnp.stack([0.5 - x[:, 0], x[:, 0] - 0.5], axis=1) * 10
    detect = lambda x: (logits(x), -((x[:, 1] - 0.5) ** 2))
    x = (
        jnp.asarray(RNG.uniform(0.4, 0.6, (NUM, 2)), jnp.float32)
        .at[:, 1]
        .set(jnp.linspace(0.1, 0.9, NUM))
    )
    label, ball = predicted(logits, x), Ball("inf", 0.15)
    best = -(np.maximum(np.abs(np.asarray(x[:, 1]) - 0.5) - ball.eps, 0) ** 2)
    attack = functools.partial(adaptive, KEYS, detect, x, label, ball=ball, num_steps=20)
    attacked = jax.jit(lambda: attack(num_restarts=2))()
    score = np.asarray(detect(attacked.x)[1])
    assert np.all(attacked.success)
    # Sign steps of 2.5 eps / 20 = 0.019 end within half a step of the best second entry.
    np.testing.assert_allclose(score, best, atol=0.019**2)
    plain = jax.jit(lambda: pgd(KEYS, logits, x, label, ball=ball, **FEW))()
    assert np.all(score >= detect(plain.x)[1])
    noticed = jax.jit(lambda: attack(num_restarts=1, threshold=-0.01))()
    np.testing.assert_array_equal(noticed.success, detect(noticed.x)[1] > -0.01)
    assert 0 < noticed.success.sum() < NUM


def test_matched_features_reach_a_target_inside_the_ball():
    features = lambda x: x @ HIDDEN
    wanted = INNER + jnp.asarray(RNG.uniform(-0.1, 0.1, INNER.shape), jnp.float32)
    label = predicted(curved, INNER)
    attack = lambda: feature_matching(
        KEYS,
        lambda x: (curved(INNER), features(x)),  # no row is ever wrong: nearness alone counts
        INNER,
        label,
        features(wanted),
        ball=Ball("inf", 0.1),
        num_steps=100,
        num_restarts=1,
        step_size=0.004,
    )
    attacked = jax.jit(attack)()
    # Sign steps of 0.004 circle the target within about one step in each of 5 entries.
    gaps = np.linalg.norm(features(attacked.x) - features(wanted), axis=1)
    before = np.linalg.norm(features(INNER) - features(wanted), axis=1)
    assert np.all(gaps < 0.1 * before + 0.04)
    assert not np.any(attacked.success)


def test_the_nearest_row_of_another_class_is_that_of_brute_force():
    pool, pool_label = RNG.normal(size=(30, 3)).astype("f"), RNG.integers(3, size=30)
    rows, label = RNG.normal(size=(7, 3)).astype("f"), RNG.integers(3, size=7)
    nearest = nearest_of_another_class(*map(jnp.asarray, (rows, label, pool, pool_label)))
    for row, own, value in zip(rows, label, nearest, strict=True):
        others = pool[pool_label != own]
        np.testing.assert_array_equal(value, others[np.argmin(np.sum((others - row) ** 2, 1))])


@pytest.mark.parametrize(
    ("attempt", "words"),
    [
        (lambda: Ball("infinity"), "unknown norm 'infinity': did you mean 'inf'?"),
        (lambda: Ball("2", -0.1), "eps >= 0; got -0.1"),
        (
            lambda: fgsm(curved, X, predicted(curved, X), ball=INF, loss="margins"),
            "did you mean 'margin'?",
        ),
        (lambda: pgd(KEYS, curved, X, predicted(curved, X), ball=INF, num_steps=0), "num_steps=0"),
        (lambda: logit_ratio(binary(X), predicted(binary, X)), "at least 3 classes; got 2"),
        (lambda: judged(curved, X, predicted(curved, X), X, num_levels=1), "num_levels >= 2"),
        (lambda: deepfool(curved, X, predicted(curved, X), overshoot=0.0), "overshoot"),
        (lambda: carlini_wagner(curved, X, predicted(curved, X), num_steps=0), "num_steps"),
        (lambda: adaptive(KEYS, detected, X, predicted(curved, X), ball=INF, weights=()), "weight"),
    ],
)
def test_impossible_attacks_are_refused(attempt, words):
    with pytest.raises(ValueError, match=words.replace("?", r"\?")):
        attempt()
