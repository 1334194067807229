# SPDX-License-Identifier: Apache-2.0
"""Copies are found, and what is no copy is not accused."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

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


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: memo.nearest_training(np.zeros((2, 3)), np.zeros((2, 4))), "one shape"),
        (lambda: memo.nearest_training(np.zeros((2, 3)), np.zeros((2, 3)), k=3), "k <= 2; got 3"),
        (lambda: memo.nearest_training(np.full((2, 3), np.nan), np.zeros((2, 3))), "finite"),
    ],
)
def test_wrong_input_is_one_clear_line(call, message):
    with pytest.raises(ValueError, match=message):
        call()
