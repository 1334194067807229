# SPDX-License-Identifier: Apache-2.0
"""The detector keeps its promise, says when it cannot, and is a scikit-learn estimator."""

import pickle
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import check_estimator

from scorejax.density.hypothesis import false_alarm_law
from scorejax.failures.detector import FailureDetector

DIM, NUM_CLASSES = 4, 3


def rows(num, seed, shift=0.0):
    """Features N(shift, I), and logits that are linear in them with noise."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(num, DIM)) + shift
    logits = x[:, :NUM_CLASSES] * 2 + rng.normal(size=(num, NUM_CLASSES))
    return x.astype(np.float32), logits.astype(np.float32)


@pytest.fixture(scope="module")
def detector():
    x, logits = rows(2000, 0)
    fitted = FailureDetector("gaussian", alpha=0.1).fit(x)
    x, logits = rows(999, 1)
    return fitted.calibrate(x, logits=logits)


def test_the_density_is_the_gaussian_of_the_training_rows(detector):
    train, (x, _) = rows(2000, 0)[0].astype(float), rows(50, 2)
    expected = stats.multivariate_normal(train.mean(0), np.cov(train.T, bias=True)).logpdf(x)
    # Float32 sums of four squares of order ten.
    np.testing.assert_allclose(detector.density_scores(x)["density"], expected, atol=1e-3)


def test_false_alarms_follow_their_law(detector):
    x, logits = rows(20_000, 3)
    law = false_alarm_law(999, 0.05)
    for p in detector.scored(x, logits=logits).p_values.values():
        # Each score at alpha / 2, given this calibration set: beta-binomial, one false alarm in
        # 10^5.
        low, high = law.count_interval(len(x), 1 - 1e-5)
        assert low <= np.sum(p <= 0.05) <= high
    flagged = detector.predict(x, logits=logits) == -1
    np.testing.assert_array_equal(flagged, detector.p_values(x, logits=logits) <= 0.1)
    assert flagged.mean() <= 2 * high / len(x)


def test_it_finds_rows_that_are_elsewhere(detector):
    assert (
        np.mean(detector.predict(*[rows(200, 4, shift=6.0)[0]], logits=rows(200, 4)[1]) < 0) > 0.99
    )


def test_a_row_is_scored_by_itself_with_atoms_and_ties_too(detector):
    # Of ReLU: half of the values are 0, so that the fit has noise, and calibration rows tie.
    x, z = (np.maximum(values, 0) for values in rows(700, 5))
    train = np.maximum(rows(500, 0)[0], 0)
    # Without rows of zeros alone, which are among those of calibration as well.
    relu = FailureDetector("gaussian", alpha=0.1).fit(train[train.any(axis=1)])
    assert (relu.preparation_.noise > 0).all()
    relu.calibrate(x[:400], logits=z[:400])
    p = relu.p_values(x, logits=z)
    np.testing.assert_array_equal(relu.p_values(x[::-1], logits=z[::-1])[::-1], p)
    alone = [relu.p_values(x[i : i + 1], logits=z[i : i + 1])[0] for i in (0, 399, 699)]
    np.testing.assert_array_equal(alone, p[[0, 399, 699]])


def test_the_units_of_the_features_do_not_matter():
    (x, _), (c, _), (fresh, _) = rows(500, 0), rows(200, 1), rows(100, 2, shift=1.0)
    # By a power of two, so that single precision rounds alike.
    p = [
        FailureDetector("gaussian").fit(s * x).calibrate(s * c).p_values(s * fresh)
        for s in (1.0, 2.0**-20)
    ]
    np.testing.assert_array_equal(*p)


def test_a_small_calibration_set_says_what_it_can_promise():
    detector = FailureDetector("gaussian", alpha=0.01).fit(rows(500, 0)[0])
    x, logits = rows(50, 1)
    message = r"alpha=0.01 by 2 scores needs 199 calibration rows; 50 can promise alpha=0.0393"
    with pytest.warns(UserWarning, match=message):
        detector.calibrate(x, logits=logits)
    far, logits = rows(20, 2, shift=50.0)
    assert (detector.predict(far, logits=logits) == 1).all()


def test_calibration_rows_that_were_fitted_to_are_noticed():
    x, _ = rows(300, 0)
    detector = FailureDetector("gaussian").fit(x)
    with pytest.warns(UserWarning, match="40 of 100 calibration rows equal a row of fit. If they"):
        detector.calibrate(np.concatenate([x[:40], rows(60, 1)[0]]))
    zero = FailureDetector("gaussian").fit(np.where(x > 0, x, np.float32(0)))
    with pytest.warns(UserWarning, match="40 of 100 calibration rows equal a row of fit. If they"):
        negative = np.where(x[:40] > 0, x[:40], np.float32(-0.0))
        zero.calibrate(np.concatenate([negative, rows(60, 1)[0]]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert detector.calibrate(rows(100, 1)[0]) is detector


def test_levels_hold_inside_each_predicted_class():
    (x, _), (c, c_logits), (fresh, logits) = rows(2000, 0), rows(3000, 1), rows(30_000, 2)
    detector = FailureDetector("gaussian", alpha=0.1, by_class=True)
    detector.fit(x, logits=rows(2000, 0)[1]).calibrate(c, logits=c_logits)
    flagged = detector.predict(fresh, logits=logits) == -1
    for label in range(NUM_CLASSES):
        inside = logits.argmax(axis=1) == label
        size = int(np.sum(c_logits.argmax(axis=1) == label))
        _, high = false_alarm_law(size, 0.05).count_interval(int(inside.sum()), 1 - 1e-5)
        assert flagged[inside].sum() <= 2 * high


def test_a_detector_survives_a_pickle(detector):
    x, logits = rows(20, 6)
    again = pickle.loads(pickle.dumps(detector))
    np.testing.assert_array_equal(
        again.p_values(x, logits=logits), detector.p_values(x, logits=logits)
    )


def test_a_new_fit_needs_a_new_calibration_and_parameters_call_for_theirs():
    x, _ = rows(300, 0)
    detector = FailureDetector("gaussian", alpha=0.2).fit(x).calibrate(rows(100, 1)[0])
    before = detector.predict(x)
    for changes in ({"alpha": 0.01}, {"delta": 0.1}, {"by_class": True}, {"logit_score": "energy"}):
        old = {name: getattr(detector, name) for name in changes}
        detector.set_params(**changes)
        with pytest.raises(ValueError, match=f"{next(iter(changes))} was .*: call calibrate again"):
            detector.predict(x)
        detector.set_params(**old)
    np.testing.assert_array_equal(detector.predict(x), before)
    for changes in ({"density": "maf"}, {"explained": 0.5}, {"density_options": {"ridge": 1.0}}):
        old = {name: getattr(detector, name) for name in changes}
        for call in (detector.calibrate, detector.predict, detector.density_scores):
            detector.set_params(**changes)
            with pytest.raises(ValueError, match="call fit again"):
                call(x)
        detector.set_params(**old)
    # A level that has been set anew holds after a new calibration.
    detector.set_params(alpha=0.5).calibrate(rows(100, 1)[0])
    assert detector.levels_[0] > 0.4
    detector.fit(2 * x)
    with pytest.raises(NotFittedError, match="not calibrated"):
        detector.predict(x)


def test_a_fit_that_fails_leaves_no_detector():
    x, _ = rows(300, 0)
    detector = FailureDetector("gaussian").fit(x).calibrate(rows(100, 1)[0])
    detector.set_params(density_options={"ridge": -1.0})
    with pytest.raises(ValueError, match="ridge"):
        detector.fit(100 * x + 50)
    # The preparation of the new rows beside the density of the old ones would answer wrongly.
    for call in (detector.calibrate, detector.density_scores, detector.predict):
        with pytest.raises(NotFittedError, match="not fitted"):
            call(x)


def test_a_calibration_that_is_interrupted_leaves_the_one_before(monkeypatch):
    x, _ = rows(300, 0)
    detector = FailureDetector("gaussian", alpha=0.2).fit(x).calibrate(rows(100, 1)[0])
    before = detector.predict(x)

    def interrupted(*args):
        raise KeyboardInterrupt

    detector.set_params(alpha=0.05)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("scorejax.failures.detector.measured", interrupted)
        detector.calibrate(rows(100, 2)[0], logits=rows(100, 2)[1])
    with pytest.raises(ValueError, match=r"alpha was 0.2 in .*: call calibrate again"):
        detector.predict(x)
    np.testing.assert_array_equal(detector.set_params(alpha=0.2).predict(x), before)


@pytest.mark.parametrize(
    ("change", "explained", "seen"),
    [
        (lambda x: x * [1, 1, 0, 1], 1.0, 3),  # a constant unit
        (lambda x: x * [1, 1, 0, 1], 0.9, 3),
        (lambda x: x[:, [0, 1, 2, 2]], 1.0, 3),  # a unit twice
        (lambda x: x[:3], 1.0, 2),  # rows that span a plane
        (lambda x: x, 1.0, None),
        (lambda x: x, 0.5, None),  # as asked
    ],
)
def test_fit_says_once_which_dimensions_no_p_value_sees(change, explained, seen):
    detector = FailureDetector("gaussian", explained=explained, density_options={"ridge": 0.01})
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        detector.fit(change(rows(300, 0)[0]))
    messages = [str(warning.message) for warning in warned]
    if seen is None:
        assert not messages
        return
    (message,) = messages
    assert "\n" not in message and "of 4 dimensions" in message and "in no p-value" in message
    assert f"sees {detector.preparation_.directions.shape[1]} of 4" in message
    assert detector.preparation_.directions.shape[1] <= seen


def test_rows_too_far_for_the_arithmetic_of_a_density_are_the_least_likely(monkeypatch):
    # A masked flow has NaN for 1e36, where inf meets inf.
    flow = lambda params, x: jnp.where(jnp.abs(x).max(axis=1) > 1e30, jnp.nan, -(x[:, 0] ** 2))
    monkeypatch.setattr("scorejax.density.gaussian.log_prob", flow)
    x, far = rows(64, 0)[0], rows(19, 1)[0]
    far = np.concatenate([np.full((1, DIM), 1e36, np.float32), far])
    detector = FailureDetector("gaussian", alpha=0.5).fit(x)
    assert detector.density_scores(far)["density"][0] == -np.inf
    p = detector.calibrate(far).p_values(far)
    # As low as the one calibration row that is as far: (1 + 1) / (20 + 1).
    assert p[0] == 2 / 21 and (p[1:] > p[0]).all()


def test_tables_are_matched_by_the_names_of_their_columns():
    pyarrow = pytest.importorskip("pyarrow")
    table = lambda values, names: pyarrow.table(dict(zip(names, values.T, strict=True)))
    (x, _), (c, z), units, classes = rows(300, 0), rows(100, 1), list("abcd"), list("pqr")
    with warnings.catch_warnings():
        # scikit-learn's, of names that a second validation does not find.
        warnings.simplefilter("error")
        detector = FailureDetector("gaussian", alpha=0.2, held_out=0.3).fit(table(x, units))
        detector.calibrate(table(c, units), logits=table(z, classes))
        flagged = detector.predict(table(c, units), logits=table(z, classes))
        np.testing.assert_array_equal(detector.predict(table(c, units), logits=z), flagged)
    turned = table(z[:, ::-1], classes[::-1])
    with pytest.raises(ValueError, match=r"columns of calibrate, .*'q', 'r'\]; got \['r', 'q'"):
        detector.predict(table(c, units), logits=turned)


def test_a_tiny_alpha_is_warned_of_in_few_digits():
    detector = FailureDetector("gaussian", alpha=1e-300).fit(rows(300, 0)[0])
    with pytest.warns(UserWarning) as warned:
        detector.calibrate(rows(100, 1)[0])
    assert "needs 1e+300 calibration rows; 100 can" in str(warned[0].message)


def test_calls_out_of_order_name_the_calls_that_are_missing():
    x, _ = rows(50, 0)
    with pytest.raises(NotFittedError, match="call fit, then calibrate"):
        FailureDetector("gaussian").predict(x)
    with pytest.raises(NotFittedError, match="call calibrate, or fit with held_out"):
        FailureDetector("gaussian").fit_predict(x)


def test_one_unit_that_is_much_larger_does_not_hide_the_others():
    rng = np.random.default_rng(0)
    draw = lambda num, shift: (rng.normal(size=(num, 9)) + shift) * [*[1.0] * 8, 1100.0]
    away = np.array([3.0] * 8 + [0.0])
    detector = FailureDetector("gaussian").fit(draw(500, 0.0)).calibrate(draw(200, 0.0))
    # |away| is 8.5 standard deviations: a share of 10^-6 of the rows has a likely density.
    assert (detector.predict(draw(100, away)) == -1).all()


def test_units_that_single_precision_cannot_tell_apart_are_named():
    x = np.random.default_rng(0).normal(size=(300, 3))
    rounding = pytest.warns(
        UserWarning, match="1 of 3 units, the first is 1, vary less than single"
    )
    with rounding, pytest.warns(UserWarning, match="sees 2 of 3 dimensions"):
        FailureDetector("gaussian").fit(x + np.array([0.0, 1e9, 0.0]))
    with pytest.raises(ValueError, match=r"varies in single precision.*Subtract their mean"):
        FailureDetector("gaussian").fit(x + 1e9)


def test_random_states_are_those_of_scikit_learn():
    relu = np.maximum(rows(200, 0)[0], 0)
    fitted = lambda state: FailureDetector("gaussian", random_state=state).fit(relu).density_
    numbers = lambda state: np.concatenate(list(map(np.ravel, jax.tree.leaves(fitted(state)))))
    np.testing.assert_array_equal(numbers(3), numbers(np.int64(3)))
    states = [np.random.RandomState(seed) for seed in (5, 5)]
    np.testing.assert_array_equal(*map(numbers, states))
    assert (numbers(states[0]) != numbers(np.random.RandomState(5))).any()  # it has moved on
    assert np.isfinite(numbers(None)).all() and np.isfinite(numbers(2**32 - 1)).all()


def test_a_class_without_calibration_rows_is_named():
    with pytest.warns(UserWarning) as warned:
        of_two_classes()
    assert "no calibration row is predicted to be of class 2: new" in str(warned[0].message)


def of_two_classes():
    """A detector of which only the classes 0 and 1 have calibration rows."""
    (x, _), logits = rows(300, 0), np.tile(np.float32([[1, 0, -1], [0, 1, -1]]), (150, 1))
    detector = FailureDetector("gaussian", alpha=0.5, by_class=True).fit(x)
    return detector.calibrate(rows(300, 1)[0], logits=logits)


def quietly(call):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d, x, z: FailureDetector(alpha=1.5).fit(x), "alpha needs to lie in"),
        (lambda d, x, z: FailureDetector(alpha="a").fit(x), "alpha needs to lie in .* got 'a'"),
        (lambda d, x, z: FailureDetector(held_out="a").fit(x), "held_out needs to lie in"),
        (lambda d, x, z: FailureDetector(explained="a").fit(x), "explained needs to lie in"),
        (lambda d, x, z: FailureDetector(random_state=-1).fit(x), "between 0 and 2"),
        (lambda d, x, z: FailureDetector(random_state="a").fit(x), "'a' cannot be used to seed"),
        (
            lambda d, x, z: FailureDetector("gaussian").fit(1e300 + x.astype(float)),
            "finite; got inf in row 0",
        ),
        (lambda d, x, z: FailureDetector("gausian").fit(x), "did you mean 'gaussian'"),
        (
            lambda d, x, z: FailureDetector("gaussian", density_options={"rige": 1}).fit(x),
            "name in density_options 'rige': did you mean 'ridge'",
        ),
        (
            lambda d, x, z: FailureDetector("gaussian", held_out=0.5).fit(x[:2]),
            "held_out needs 3 rows or more.* got 2",
        ),
        (lambda d, x, z: FailureDetector("gaussian").fit(x, z), "pass logits by name"),
        (lambda d, x, z: d.p_values(x, logits=z[:-1]), "5 rows need logits"),
        (lambda d, x, z: d.p_values(x), r"had logits \(n, 3\), .* need the same; got none"),
        (lambda d, x, z: d.p_values(x, logits=z[:, :2]), r"need the same; got \(n, 2\)"),
        (lambda d, x, z: d.p_values(x, logits=z * np.nan), "logits need to be finite; got nan"),
        (lambda d, x, z: d.p_values(x[:, :2], logits=z), "4 features"),
        (lambda d, x, z: d.p_values(x[:0], logits=z[:0]), "minimum of 1"),
        (lambda d, x, z: FailureDetector("gaussian").fit(x * np.nan), "finite; got nan in row 0"),
        (lambda d, x, z: FailureDetector("gaussian").fit(0 * x + 0.1), "all 4 units are constant"),
        (lambda d, x, z: d.calibrate(x[:-1], logits=z), r"4 rows need logits \(4, k\)"),
        (lambda d, x, z: FailureDetector(delta=0.0).fit(x), "delta needs to lie in"),
        (
            lambda d, x, z: quietly(of_two_classes).p_values(x, logits=0 * z + [0, 0, 2]),
            "group 2 has none",
        ),
    ],
)
def test_bad_input_is_one_line(detector, call, message):
    x, logits = rows(5, 7)
    with pytest.raises(ValueError, match=message) as error:
        call(detector, x, logits)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_it_is_an_estimator_of_scikit_learn():
    with warnings.catch_warnings():
        # Its data sets have some ten rows, which cannot calibrate alpha.
        warnings.simplefilter("ignore", UserWarning)
        check_estimator(FailureDetector("gaussian", held_out=0.4, density_options={"ridge": 1e-3}))


@pytest.mark.parametrize("name", ["features", "logits"])
def test_masked_entries_are_refused(name, detector):
    given = dict(zip(("features", "logits"), rows(5, 3), strict=True))
    masked = np.ma.masked_array(given[name], np.zeros((5, given[name].shape[1]), bool))
    given[name] = masked  # Without masked entries it is an array as any other.
    whole = detector.p_values(given["features"], logits=given["logits"])
    np.testing.assert_array_equal(whole, detector.p_values(rows(5, 3)[0], logits=rows(5, 3)[1]))
    masked[3, 1] = np.ma.masked
    with pytest.raises(ValueError, match=f"{name} need a value in each place; row 3"):
        detector.p_values(given["features"], logits=given["logits"])


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_probabilities_are_no_logits_and_their_logarithms_are(dtype, detector):
    x, logits = rows(20, 3)
    probabilities = np.asarray(jax.nn.softmax(logits), dtype)
    with pytest.raises(ValueError, match="sum to 1, as probabilities do"):
        detector.p_values(x, logits=probabilities)
    if dtype == np.float64:  # The softmax of logarithms is the softmax that they are of.
        by_logarithm = detector.scored(x, logits=np.log(probabilities)).scores["max_softmax"]
        expected = detector.scored(x, logits=logits).scores["max_softmax"]
        np.testing.assert_allclose(by_logarithm, expected, rtol=1e-4, atol=1e-6)  # float32
