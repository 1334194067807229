# SPDX-License-Identifier: Apache-2.0
"""Copies are found, and what is no copy is not accused."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.stats import beta

from scorejax.evaluate import memorization as memo

RNG = np.random.default_rng(0)


def test_nearest_training_images_are_those_of_brute_force():
    images, training = RNG.uniform(size=(20, 4, 4, 1)), RNG.uniform(size=(50, 4, 4, 1))
    found = memo.nearest_training(images, training, k=3)
    distances = cdist(images.reshape(20, -1), training.reshape(50, -1))
    np.testing.assert_array_equal(found.index, np.argsort(distances, axis=1)[:, :3])
    # Both are double precision; the inner-product form loses 8 of 16 digits at most, near zero.
    np.testing.assert_allclose(found.distance, np.sort(distances, axis=1)[:, :3], rtol=1e-10)


def test_copies_are_found():
    training, held_out = RNG.normal(size=(300, 10)), RNG.normal(size=(200, 10))
    copies = training[:100] + 1e-3 * RNG.normal(size=(100, 10))
    found = memo.memorization(copies, held_out, training)
    assert found.distance_ratio < 0.01 and found.copies == 1.0
    assert found.probability_closer == 1.0 and found.p_value < 1e-20


def test_copies_are_found_though_a_few_held_out_images_are_duplicates():
    rng = np.random.default_rng(2)
    training, held_out = rng.normal(size=(2, 100, 5))
    held_out[:3] = training[:3]
    assert memo.memorization(training, held_out, training).copies == 1
    assert memo.memorization(rng.normal(size=(100, 5)), held_out, training).copies == 0


def test_no_images_have_no_neighbours():
    assert memo.nearest_training(np.ones((0, 2, 2)), np.ones((3, 2, 2)), k=2).index.shape == (0, 2)


def test_distances_that_overflow_are_no_copies():
    assert memo.ratio_test(_nearest([[np.inf, np.inf], [0.1, 1.0]])).rate == 0.5


def test_a_few_copies_among_honest_samples_are_counted():
    training, held_out = RNG.normal(size=(300, 10)), RNG.normal(size=(300, 10))
    samples = np.concatenate([training[:30], RNG.normal(size=(270, 10))])
    found = memo.memorization(samples, held_out, training)
    # 10 % are copies; of the others about 1 % pass: 2.7 of 300, and once in 1e5 tries 15 or more
    # (the quantile itself is an estimate from 300 images).
    assert 0.1 <= found.copies <= 0.15


def test_honest_samples_are_accused_as_rarely_as_the_test_says():
    training = RNG.normal(size=(200, 5))
    p_values = [
        memo.memorization(*RNG.normal(size=(2, 60, 5)), training).p_value for _ in range(80)
    ]
    # At the 10 % level 8 of 80 expected; more than 18 once in 5000 tries.
    assert np.sum(np.array(p_values) < 0.1) <= 18


def test_the_probability_counts_pairs():
    samples, held_out, training = np.array([[1.0], [3.0]]), np.array([[2.0], [3.0], [4.0]]), [[0.0]]
    found = memo.memorization(samples, held_out, training)
    # 1 is closer than all three; 3 ties with 3 (half) and is closer than 4: 4.5 of 6 pairs.
    assert found.probability_closer == 0.75
    assert found.distance_ratio == 2 / 3


def test_the_worst_cases_come_first():
    nearest = memo.nearest_training(np.array([[3.0], [0.1], [-1.0]]), np.array([[0.0]]))
    np.testing.assert_array_equal(memo.most_copied(nearest, num=2), [1, 2])


def test_neighbours_by_a_divergence_are_those_of_brute_force():
    images, training = RNG.uniform(0.1, 1, size=(20, 6)), RNG.uniform(0.1, 1, size=(50, 6))
    found = memo.nearest_training(images, training, k=3, divergence="itakura_saito")
    ratio = training[None] / images[:, None]
    distances = (ratio - np.log(ratio) - 1).sum(axis=2)
    np.testing.assert_array_equal(found.index, np.argsort(distances, axis=1)[:, :3])
    # The textbook form loses 1e-16 against distances of 0.1 and more.
    np.testing.assert_allclose(found.distance, np.sort(distances, axis=1)[:, :3], rtol=1e-12)


def _nearest(distance):
    return memo.Nearest(np.zeros_like(distance, dtype=int), np.asarray(distance, float))


def test_duplicates_are_those_within_the_radius():
    nearest = _nearest([[0.0], [0.1], [0.2], [5.0]])
    found = memo.duplicate_rate(nearest, radius=0.1)
    assert found.rate == 0.5
    # Clopper and Pearson's ends are quantiles of beta distributions.
    np.testing.assert_allclose(found[1:], [beta.ppf(0.025, 2, 3), beta.ppf(0.975, 3, 2)], rtol=1e-9)


def test_no_duplicates_leave_an_upper_bound():
    found = memo.duplicate_rate(_nearest(np.ones((100, 1))), radius=0.5)
    # (1 - upper)^100 = 0.025: "the rule of three", with 97.5 % in place of 95 %.
    assert found.rate == found.lower == 0
    np.testing.assert_allclose(found.upper, 1 - 0.025 ** (1 / 100), rtol=1e-9)


def test_the_interval_holds_the_true_rate_as_often_as_it_says():
    draws = RNG.binomial(40, 0.1, size=300)
    intervals = {k: memo.duplicate_rate(_nearest((np.arange(40) >= k)[:, None]), radius=0.5)
                 for k in set(draws)}  # fmt: skip
    covered = sum(intervals[k].lower <= 0.1 <= intervals[k].upper for k in draws)
    # At least 95 %: 285 of 300, standard deviation 3.8; fewer than 270 once in 1e4 tries.
    assert covered >= 270


def test_the_ratio_test_finds_copies_at_any_scale():
    training, honest = RNG.normal(size=(300, 20)), RNG.normal(size=(100, 20))
    copies = training[:25] + 1e-3 * RNG.normal(size=(25, 20))
    for scale in (1e-6, 1.0, 1e6):
        samples = scale * np.concatenate([copies, honest])
        nearest = memo.nearest_training(samples, scale * training, k=2)
        # In 20 dimensions the nearest of 300 is never three times nearer than the next.
        assert memo.ratio_test(nearest).rate == 25 / 125


def test_an_exact_copy_of_a_repeated_image_is_a_copy():
    nearest = memo.nearest_training(np.ones((1, 3)), np.ones((2, 3)), k=2)
    assert memo.ratio_test(nearest).rate == 1.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: memo.nearest_training(np.zeros((2, 3)), np.zeros((2, 4))), "the same shape"),
        (lambda: memo.nearest_training(np.zeros((2, 3)), np.zeros((2, 3)), k=3), "k <= 2; got 3"),
        (lambda: memo.nearest_training(np.full((2, 3), np.nan), np.zeros((2, 3))), "finite"),
        (
            lambda: memo.nearest_training(-np.ones((1, 2)), np.ones((1, 2)), divergence="logistic"),
            "in .0, 1.; got -1.0",
        ),
        (lambda: memo.duplicate_rate(_nearest([[1.0]]), radius=-1), "radius >= 0"),
        (lambda: memo.duplicate_rate(_nearest(np.ones((0, 1))), radius=1), "at least one sample"),
        (lambda: memo.ratio_test(_nearest([[1.0]])), "two nearest"),
        (lambda: memo.memorization(np.ones((2, 3)), np.eye(3), np.eye(3)), "half of these"),
        (lambda: memo.ratio_test(_nearest([[1.0, 2.0]]), threshold=1.0), "threshold < 1"),
    ],
)
def test_wrong_input_is_one_clear_line(call, message):
    with pytest.raises(ValueError, match=message):
        call()
