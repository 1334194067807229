# SPDX-License-Identifier: Apache-2.0
"""Scores of features and logits against scikit-learn, and formulas in double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp, softmax
from sklearn.covariance import EmpiricalCovariance
from sklearn.neighbors import NearestNeighbors

from scorejax.failures import feature_scores as fs
from scorejax.failures import scores
from scorejax.failures.scores import SCORES

RNG = np.random.default_rng(0)
NUM, DIM, CLASSES = 200, 6, 3
MIXING = RNG.normal(size=(DIM, DIM))
LABELS = RNG.integers(CLASSES, size=NUM)
CENTRES = 3 * RNG.normal(size=(CLASSES, DIM))
FEATURES = (CENTRES[LABELS] + RNG.normal(size=(NUM, DIM)) @ MIXING).astype(np.float32)
KERNEL, BIAS = RNG.normal(size=(DIM, CLASSES)), RNG.normal(size=CLASSES)
LOGITS = (FEATURES @ KERNEL + BIAS).astype(np.float32)
NEW = (CENTRES[RNG.integers(CLASSES, size=40)] + 2 * RNG.normal(size=(40, DIM))).astype(np.float32)
NEW_LOGITS = (NEW @ KERNEL + BIAS).astype(np.float32)
RIGHT = LOGITS.argmax(axis=1)
"""Labels that make every row a correctly classified one."""


def test_scores_of_logits_are_their_formulas():
    # float32 against float64, for logits of size 10: a few 1e-7 of the largest term.
    z = NEW_LOGITS.astype(float)
    p, log_p = softmax(z, axis=1), log_softmax(z, axis=1)
    np.testing.assert_allclose(np.exp(scores.max_softmax(NEW_LOGITS)), p.max(axis=1), rtol=2e-6)
    entropy = np.sum(p * log_p, axis=1)
    np.testing.assert_allclose(scores.negative_entropy(NEW_LOGITS), entropy, rtol=1e-5, atol=2e-6)
    np.testing.assert_array_equal(scores.max_logit(NEW_LOGITS), NEW_LOGITS.max(axis=1))
    for t in (1.0, 2.0):
        expected = t * logsumexp(z / t, axis=1)
        np.testing.assert_allclose(scores.energy(NEW_LOGITS, t), expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "float16"])
def test_scores_of_integer_logits_are_those_of_the_real_numbers(dtype):
    # Differences of int8 and of uint8 wrap, of these by 256.
    logits = np.array([[100, -100, 3], [0, 120, 90], [7, 7, 7]])
    logits = np.abs(logits) if dtype == "uint8" else logits
    for score in (scores.max_softmax, scores.negative_entropy, scores.max_logit, scores.energy):
        found, expected = score(logits.astype(dtype)), score(logits.astype(np.float32))
        assert jnp.issubdtype(found.dtype, jnp.floating)
        # Half precision has 11 bits, and nothing below 6e-8.
        tolerances = {"rtol": 2e-3, "atol": 1e-7} if dtype == "float16" else {"rtol": 0}
        np.testing.assert_allclose(found, expected, **tolerances)
    if dtype != "float16":
        params = SCORES["virtual_logit"].fit(FEATURES, LOGITS, LABELS)
        found, expected = (
            fs.virtual_logit(params, NEW[:3], logits.astype(kind)) for kind in (dtype, np.float32)
        )
        np.testing.assert_array_equal(found, expected)


def test_probabilities_that_round_to_one_do_not_tie():
    logits = np.stack([np.arange(20.0, 100, 5), *np.zeros((2, 16))], axis=1).astype(np.float32)
    assert np.all(np.diff(softmax(logits.astype(np.float32), axis=1).max(axis=1)) >= 0)
    value = np.asarray(scores.max_softmax(logits), float)
    assert np.all(np.diff(value) > 0) or value[-1] == 0
    np.testing.assert_allclose(
        value[:13], -np.log1p(2 * np.exp(-logits[:13, 0].astype(float))), rtol=1e-5
    )


def test_mahalanobis_scores_are_those_of_scikit_learn():
    # float32 products of numbers up to 30 times larger than the distances they cancel to.
    tied = EmpiricalCovariance().fit(
        FEATURES - np.stack([FEATURES[c == LABELS].mean(0) for c in range(CLASSES)])[LABELS]
    )
    distances = []
    for c in range(CLASSES):
        tied.location_ = FEATURES[c == LABELS].astype(float).mean(axis=0)
        distances.append(tied.mahalanobis(NEW.astype(float)))
    params = fs.fit_mahalanobis(FEATURES, LABELS, ridge=0.0)
    nearest = np.min(distances, axis=0)
    np.testing.assert_allclose(fs.mahalanobis(params, NEW), -nearest, rtol=1e-4, atol=1e-4)
    background = EmpiricalCovariance().fit(FEATURES.astype(float)).mahalanobis(NEW.astype(float))
    params = fs.fit_relative_mahalanobis(FEATURES, LABELS, ridge=0.0)
    value = fs.relative_mahalanobis(params, NEW)
    np.testing.assert_allclose(value, background - nearest, rtol=1e-4, atol=1e-4)


def test_a_constant_feature_passes_and_stands_out_when_it_changes():
    wide = np.concatenate([FEATURES, np.full((NUM, 1), 5, np.float32)], axis=1)
    params = fs.fit_mahalanobis(wide, LABELS)
    same = np.concatenate([NEW, np.full((40, 1), 5, np.float32)], axis=1)
    narrow = fs.mahalanobis(fs.fit_mahalanobis(FEATURES, LABELS), NEW)
    # The ridge of 1e-6 changes the other directions by as much relative to their variance.
    np.testing.assert_allclose(fs.mahalanobis(params, same), narrow, rtol=1e-3, atol=1e-3)
    same[:, -1] += 1
    assert np.all(fs.mahalanobis(params, same) < narrow - 1e3)


@pytest.mark.parametrize("k", [1, 50])
def test_neighbour_scores_are_those_of_scikit_learn(k):
    unit = lambda rows: rows / np.linalg.norm(rows.astype(float), axis=1, keepdims=True)
    peer = NearestNeighbors(n_neighbors=k).fit(unit(FEATURES))
    expected = -peer.kneighbors(unit(NEW))[0][:, -1]
    value = fs.nearest_neighbours(fs.fit_nearest_neighbours(FEATURES, k=k), NEW)
    # 2e-7 of the square.
    np.testing.assert_allclose(value**2, expected**2, atol=4e-7)
    blocks = fs.BLOCK_BYTES
    try:
        fs.BLOCK_BYTES = 4 * NUM * 7  # in blocks of 7 rows, and one of 5
        again = fs.nearest_neighbours(fs.fit_nearest_neighbours(FEATURES, k=k), NEW)
    finally:
        fs.BLOCK_BYTES = blocks
    np.testing.assert_allclose(again**2, expected**2, atol=4e-7)
    assert fs.nearest_neighbours(fs.fit_nearest_neighbours(FEATURES), NEW[:0]).shape == (0,)


def test_the_virtual_logit_is_its_formula():
    # In float64, by the paper's steps: origin, principal subspace, residual, scale.
    origin = -np.linalg.pinv(KERNEL.T) @ BIAS
    np.testing.assert_allclose(origin @ KERNEL + BIAS, 0, atol=1e-12)  # all logits are equal there
    moved = FEATURES.astype(float) - origin
    values, directions = np.linalg.eig(
        EmpiricalCovariance(assume_centered=True).fit(moved).covariance_
    )
    residual = directions[:, np.argsort(-values)[2:]]
    alpha = (
        LOGITS.astype(float).max(axis=1).mean() / np.linalg.norm(moved @ residual, axis=1).mean()
    )
    expected = logsumexp(NEW_LOGITS.astype(float), axis=1)
    expected -= alpha * np.linalg.norm((NEW - origin) @ residual, axis=1)
    for head in ((KERNEL, BIAS), None):  # least squares find the head
        params = fs.fit_virtual_logit(FEATURES, LOGITS, head=head, dim=2)
        value = fs.virtual_logit(params, NEW, NEW_LOGITS)
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-4)
    assert fs.fit_virtual_logit(FEATURES, LOGITS).residual.shape == (DIM, DIM - DIM // 2)


def test_stored_patterns_are_means_of_the_rows_classified_correctly():
    labels = np.where(np.arange(NUM) % 3 == 0, (RIGHT + 1) % CLASSES, RIGHT)
    params = fs.fit_stored_patterns(FEATURES, LOGITS, labels)
    value = fs.stored_pattern_energy(params, NEW, NEW_LOGITS)
    for row, z, one in zip(NEW, NEW_LOGITS, value, strict=True):
        c = z.argmax()
        pattern = FEATURES[(np.arange(NUM) % 3 != 0) & (c == RIGHT)].astype(float).mean(axis=0)
        np.testing.assert_allclose(one, pattern @ row, rtol=1e-4, atol=1e-4)


def test_odin_steps_along_the_sign_of_the_gradient_before_it_scores():
    # For two logits (0, u), u = w.x, max softmax rises with |u|: the step adds eps |w|_1 to |u|.
    w = np.array([1.0, -2.0, 0.5], np.float32)
    logits_fn = lambda x: jnp.stack([jnp.zeros(len(x)), x @ w], axis=1)
    x = RNG.normal(size=(20, 3)).astype(np.float32)
    value = jax.jit(lambda x: scores.odin(logits_fn, x, temperature=10.0, eps=0.1))(x)
    u = (np.abs(x.astype(float) @ w) + 0.1 * np.abs(w).sum()) / 10
    np.testing.assert_allclose(value, -np.log1p(np.exp(-u)), rtol=1e-5)


@pytest.mark.parametrize("name", SCORES)
def test_every_score_fits_and_scores_each_row_by_itself(name):
    params = SCORES[name].fit(FEATURES, LOGITS, RIGHT)
    value = np.asarray(SCORES[name].score(params, NEW, NEW_LOGITS))
    assert value.shape == (40,) and value.dtype == np.float32 and np.all(np.isfinite(value))
    alone = np.concatenate(
        [SCORES[name].score(params, NEW[i : i + 1], NEW_LOGITS[i : i + 1]) for i in range(3)]
    )
    # One row at a time, products may be added in another order.
    np.testing.assert_allclose(value[:3], alone, rtol=1e-4, atol=1e-4)
    # A row far from all training rows, whose logits are all equal, is the least normal of all.
    far, equal = (
        np.full((1, DIM), -50, np.float32) * np.sign(CENTRES.sum(axis=0))[None],
        np.zeros((1, CLASSES)),
    )
    lowest = SCORES[name].score(params, far.astype(np.float32), equal.astype(np.float32) - 10)
    assert lowest[0] < np.quantile(SCORES[name].score(params, FEATURES, LOGITS), 0.02)


@pytest.mark.parametrize("name", list(SCORES)[4:])
def test_rows_of_other_shapes_than_those_fitted_to_are_refused(name):
    # One column, or one row of logits, would broadcast; the index of a class unknown is clamped.
    params = SCORES[name].fit(FEATURES, LOGITS, RIGHT)
    attempts = [(NEW[:, :1], NEW_LOGITS), (NEW[:, :-1], NEW_LOGITS)]
    if name in ("virtual_logit", "stored_patterns"):
        attempts += [(NEW, NEW_LOGITS[:1]), (NEW[:1], NEW_LOGITS), (NEW[:3], NEW_LOGITS[:2])]
    if name == "stored_patterns":
        attempts += [(NEW, np.tile(NEW_LOGITS, 2)), (NEW, NEW_LOGITS[:, :2])]
    for features, logits in attempts:
        with pytest.raises(ValueError, match=r"fitted to .*; got|features need logits") as e:
            SCORES[name].score(params, features, logits)
        assert "\n" not in str(e.value)


def test_neighbours_of_nothing_are_refused():
    params = fs.fit_nearest_neighbours(FEATURES)
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match=f"finite; got {bad} in row 2, column 1"):
            fs.nearest_neighbours(params, altered(NEW, (2, 1), bad))


def altered(array, index, value):
    array = np.array(array)
    array[index] = value
    return array


@pytest.mark.parametrize(
    ("attempt", "words"),
    [
        (lambda: fs.fit_mahalanobis(FEATURES, LABELS[:-1]), "as many integer labels"),
        (lambda: fs.fit_mahalanobis(FEATURES, LABELS * 2), "class 1 of 5 has none"),
        (lambda: fs.fit_mahalanobis(FEATURES, LABELS - 1), r"0 .. 1; got -1 .. 1"),
        (
            lambda: fs.fit_mahalanobis(altered(FEATURES, (7, 2), np.nan), LABELS),
            "got nan in row 7, column 2",
        ),
        (lambda: fs.fit_mahalanobis(np.ones((NUM, 2)), LABELS), "all are constant"),
        (
            lambda: fs.fit_mahalanobis(FEATURES[:, [0, 0]], LABELS, ridge=-1.0),
            "ridge needs to be at least 0; got -1.0",
        ),
        (lambda: fs.fit_nearest_neighbours(FEATURES[:20]), "1 <= k <= 20.*got k=50"),
        (lambda: fs.fit_virtual_logit(FEATURES, LOGITS[:-1]), "200 rows .* got 199"),
        (lambda: fs.fit_virtual_logit(FEATURES, LOGITS, dim=DIM), "0 < dim < 6"),
        (
            lambda: fs.fit_stored_patterns(FEATURES, LOGITS, np.where(RIGHT == 2, 1, RIGHT)),
            "class 2 of 3 has none",
        ),
        (lambda: fs.fit_nearest_neighbours(FEATURES[:0]), r"at least one; got \(0, 6\)"),
    ],
)
def test_rows_that_cannot_be_fitted_are_refused_in_one_line(attempt, words):
    with pytest.raises(ValueError, match=words) as error:
        attempt()
    assert "\n" not in str(error.value)
