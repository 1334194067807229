# SPDX-License-Identifier: Apache-2.0
"""Distances between sets of features agree with closed forms and with brute force."""

import weakref

import numpy as np
import pytest
import scipy.linalg
from scipy.spatial.distance import cdist

from scorejax.data import images
from scorejax.evaluate import frechet, sample_quality
from scorejax.evaluate.digits_features import digits_features, quantized

RNG = np.random.default_rng(0)


def _covariance(d, rank):
    root = RNG.normal(size=(d, rank))
    return root @ root.T


def test_moments_of_chunks_are_those_of_all_rows_and_nothing_cancels():
    # A mean a thousand times the spread: the sum of squares alone would lose six of 16 digits.
    x = 1e3 + RNG.normal(size=(500, 6)) @ RNG.normal(size=(6, 6))
    running = frechet.RunningMoments()
    for chunk in np.split(x, [1, 2, 130, 131, 400]):
        running.add(chunk)
    for found in (running.moments(), frechet.moments(x)):
        np.testing.assert_allclose(found.mean, x.mean(axis=0), rtol=1e-14)
        # Rows are centred to 1e3 x 2e-16; their covariance, about 6, to some of that.
        np.testing.assert_allclose(found.covariance, np.cov(x.T), rtol=0, atol=5e-12)
    assert frechet.moments(x[:, :1]).covariance.shape == (1, 1)


def test_features_are_not_kept_unless_asked_for():
    alive, most = [], 0

    def chunks():
        nonlocal most
        for _ in range(6):
            pool = RNG.normal(size=(50, 4))
            alive.append(weakref.ref(pool))
            most = max(most, sum(ref() is not None for ref in alive))
            yield {"pool": pool, "logits": pool[:, :2].copy()}

    found = sample_quality.summarized(chunks(), ["logits"])
    assert found.pool is None and found.logits.shape == (300, 2)
    # The generator's own, and the one before it while that is replaced.
    assert most <= 2
    pools = list(chunks())
    kept = sample_quality.summarized(iter(pools), ["pool"])
    np.testing.assert_array_equal(kept.pool, np.concatenate([chunk["pool"] for chunk in pools]))
    np.testing.assert_allclose(kept.moments.covariance, np.cov(kept.pool.T), atol=1e-14)


def test_frechet_of_commuting_gaussians_is_the_closed_form():
    # With one eigenbasis the distance is |m1 - m2|^2 + sum (sqrt(a) - sqrt(b))^2.
    basis = np.linalg.qr(RNG.normal(size=(6, 6)))[0]
    a, b = RNG.uniform(0, 3, size=(2, 6))
    a[0] = b[1] = 0.0
    m1, m2 = RNG.normal(size=(2, 6))
    first = frechet.Moments(m1, basis * a @ basis.T)
    second = frechet.Moments(m2, basis * b @ basis.T)
    expected = ((m1 - m2) ** 2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    # A zero eigenvalue comes back as 1e-16, its root as 1e-8 times a unit vector: hence 1e-7.
    np.testing.assert_allclose(
        frechet.gaussian_frechet_distance(first, second), expected, atol=1e-7
    )


def test_frechet_agrees_with_the_matrix_square_root_where_that_is_sound():
    c1, c2 = _covariance(5, 9), _covariance(5, 9)
    zero = np.zeros(5)
    root = scipy.linalg.sqrtm(c1 @ c2)
    expected = np.trace(c1 + c2 - 2 * root.real)
    distance = frechet.gaussian_frechet_distance(
        frechet.Moments(zero, c1), frechet.Moments(zero, c2)
    )
    np.testing.assert_allclose(distance, expected, rtol=1e-9)


def test_frechet_of_singular_covariances_keeps_its_digits():
    # Rank 3 of 40. A Gaussian is at distance 0 from itself and at |shift|^2 from its translate.
    covariance = _covariance(40, 3)
    first = frechet.Moments(np.zeros(40), covariance)
    second = frechet.Moments(np.full(40, 0.01), covariance)
    # The trace is about 120: 1e-15 of it per eigenvalue, rooted where the eigenvalue is zero.
    assert abs(frechet.gaussian_frechet_distance(first, first)) < 1e-6 * np.trace(covariance)
    np.testing.assert_allclose(
        frechet.gaussian_frechet_distance(first, second), 40 * 0.01**2, atol=1e-10
    )


def test_frechet_of_two_sets_is_symmetric_and_blind_to_rotation():
    x, y = RNG.normal(size=(50, 4)), RNG.gamma(2, size=(70, 4))
    basis = np.linalg.qr(RNG.normal(size=(4, 4)))[0]
    distance = frechet.frechet_distance(x, y)
    np.testing.assert_allclose(distance, frechet.frechet_distance(y, x), rtol=1e-10)
    np.testing.assert_allclose(distance, frechet.frechet_distance(x @ basis, y @ basis), rtol=1e-10)


def _brute_force_share(members, points, k):
    own = np.sort(cdist(members, members), axis=1)[:, k]  # column 0 is the point itself
    return np.mean([(np.linalg.norm(members - p, axis=1) <= own).any() for p in points])


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_are_those_of_brute_force(k):
    real, samples = RNG.normal(size=(60, 3)), RNG.normal(0.5, 0.7, size=(1100, 3))
    found = frechet.precision_recall(real, samples, k=k)
    assert found.precision == _brute_force_share(real, samples, k)
    assert found.recall == _brute_force_share(samples, real, k)


def test_precision_sees_noise_and_recall_sees_collapse():
    real, far = RNG.normal(size=(200, 2)), RNG.normal(50, size=(200, 2))
    collapsed = 1e-3 * RNG.normal(size=(200, 2))
    assert frechet.precision_recall(real, far) == (0.0, 0.0)
    found = frechet.precision_recall(real, collapsed)
    assert found.precision == 1.0 and found.recall < 0.05


def test_class_balance_is_the_total_variation_and_knows_its_chance_level():
    real = np.repeat([0, 1, 2], [50, 30, 20])
    found = frechet.class_balance(real, np.array([0, 0, 1, 1]), num_classes=3)
    np.testing.assert_allclose(found.total_variation, 0.2)  # (0, 0.2, 0.2) off, halved
    # For many samples |Bin(n, p) / n - p| has mean sqrt(2 p (1 - p) / (pi n)); 10 000 draws leave
    # a standard error of 0.5 %, and n = 2000 is normal to 1 %.
    samples = RNG.choice(real, size=2000)
    frequencies = np.array([0.5, 0.3, 0.2])
    expected = np.sqrt(2 * frequencies * (1 - frequencies) / (np.pi * 2000)).sum() / 2
    found = frechet.class_balance(real, samples, num_classes=3)
    np.testing.assert_allclose(found.chance, expected, rtol=0.03)


def test_balanced_samples_stay_below_the_95th_percentile_as_often_as_it_says():
    real = np.repeat(np.arange(10), 20)
    below = [
        (found := frechet.class_balance(real, RNG.choice(real, 300), num_classes=10))[0] <= found[2]
        for _ in range(100)
    ]
    # 95 expected, standard deviation 2.2; below 86 once in 10 000 tries.
    assert sum(below) >= 86


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: frechet.moments(np.zeros(3)), r"got \(3,\)"),
        (lambda: frechet.moments(np.zeros((1, 3))), "at least 2"),
        (lambda: frechet.RunningMoments().moments(), "at least 2 rows of features; got 0"),
        (lambda: frechet.moments(np.array([[1.0], [np.nan]])), "1 are not"),
        (
            lambda: frechet.frechet_distance(np.zeros((3, 2)), np.zeros((3, 4))),
            "number of features",
        ),
        (lambda: frechet.precision_recall(np.zeros((3, 2)), np.zeros((9, 2)), k=3), "at least 4"),
        (lambda: frechet.precision_recall(np.zeros((3, 2)), np.zeros((9, 2)), k=0), "k >= 1"),
        (lambda: frechet.class_balance([0], [3], num_classes=3), "below 3"),
        (lambda: frechet.class_balance([0], [], num_classes=3), "1 and 0"),
        (lambda: digits_features(np.zeros((2, 28, 28, 1))), r"\(n, 8, 8, 1\)"),
        (lambda: digits_features(np.full((2, 8, 8, 1), np.nan)), "finite"),
    ],
)
def test_wrong_input_is_one_clear_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_quantizing_undoes_both_conventions_for_levels():
    level = np.arange(17).repeat(64).reshape(17, 8, 8, 1)
    noise = RNG.random(level.shape, dtype=np.float32)
    np.testing.assert_array_equal(quantized((level / 16).astype(np.float32)), level)
    np.testing.assert_array_equal(quantized(np.float32(level) / np.float32(17)), level)
    np.testing.assert_array_equal(quantized((level + 0.999 * noise) / 17), level)
    np.testing.assert_array_equal(quantized(np.full((1, 8, 8, 1), -9.0)), np.zeros((1, 8, 8, 1)))
    np.testing.assert_array_equal(quantized(np.full((1, 8, 8, 1), 9.0)), np.full((1, 8, 8, 1), 16))


def test_digits_classifier_is_right_on_the_held_out_half():
    test = images.load("digits", "test")
    found = digits_features(test.image / 16)
    assert found.features.shape == (len(test.image), 64)
    assert np.mean(found.label == test.label) > 0.97


def test_frechet_tells_digits_from_gaussian_images():
    # Both halves of the data are closer to each other than to images with the right covariance.
    train, test = (images.load("digits", split).image for split in images.SPLITS)
    x = train.reshape(len(train), -1) / 16
    gaussian = RNG.multivariate_normal(x.mean(0), np.cov(x.T), size=len(test), method="eigh")
    real, floor, ceiling = (
        digits_features(each).features
        for each in (test / 16, train / 16, gaussian.reshape(test.shape))
    )
    assert 5 * frechet.frechet_distance(real, floor) < frechet.frechet_distance(real, ceiling)
