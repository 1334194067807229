# SPDX-License-Identifier: Apache-2.0
"""The divergences are what their convex functions say, to more digits than the textbook form."""

import pickle
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import rel_entr

from scorejax import bregman
from scorejax.bregman import divergences as dv
from scorejax.bregman.divergences import convex, generators
from scorejax.bregman.divergences.domain import POSITIVE, REAL, UNIT

RNG = np.random.default_rng(0)
MATRIX = np.array([[2.0, 0.3, 0.1], [0.3, 1.0, -0.2], [0.1, -0.2, 0.7]])
ALL = {
    "squared_euclidean": dv.squared_euclidean(),
    "mahalanobis weights": dv.mahalanobis(weights=np.array([0.5, 1.0, 3.0])),
    "mahalanobis matrix": dv.mahalanobis(matrix=MATRIX),
    "itakura_saito": dv.itakura_saito(),
    "itakura_saito smoothed": dv.itakura_saito(smoothing=0.01),
    "exponential": dv.exponential(),
    "generalized_kl": dv.generalized_kl(),
    "simplex_kl": dv.simplex_kl(),
    "logistic": dv.logistic(),
    "beta -0.5": dv.beta(b=-0.5),
    "beta 0.5": dv.beta(b=0.5),
    "beta 1.5": dv.beta(b=1.5),
    "beta 3": dv.beta(b=3.0),
}
every_divergence = pytest.mark.parametrize("divergence", ALL.values(), ids=ALL)


def _points(n=200):
    """Rows in (0, 1) that every divergence takes, over three orders of magnitude."""
    rows = np.exp(RNG.uniform(np.log(1e-3), np.log(0.9), size=(n, 3)))
    return rows / rows.sum(axis=1, keepdims=True)


def _textbook(divergence, x, y):
    x, y = divergence.coordinates(x), divergence.coordinates(y)
    return (divergence.phi(x) - divergence.phi(y) - divergence.gradient(y) * (x - y)).sum(axis=-1)


@every_divergence
def test_a_divergence_is_the_height_above_the_tangent(divergence):
    x, y = _points(), _points()
    # Terms of phi, up to 1e3 times the distance for the steepest, round to 1e-16 each.
    np.testing.assert_allclose(divergence.divergence(x, y), _textbook(divergence, x, y), rtol=1e-11)


@every_divergence
def test_gradient_and_its_inverse_undo_each_other(divergence):
    x = divergence.coordinates(_points())
    # exp(log x) loses |log x| < 10 units in the last place, powers 1 / |b - 1| <= 2 of them.
    np.testing.assert_allclose(divergence.inverse_gradient(divergence.gradient(x)), x, rtol=1e-13)


@every_divergence
def test_the_gradient_is_the_derivative_of_phi(divergence):
    x, step = divergence.coordinates(_points()), 1e-6
    slope = (divergence.phi(x * (1 + step)) - divergence.phi(x * (1 - step))) / (2 * step * x)
    # Central differences: relative error step^2, plus 1e-16 / step of phi / (x phi').
    np.testing.assert_allclose(divergence.gradient(x), slope, rtol=1e-6, atol=1e-7)


@every_divergence
def test_the_dual_exchanges_gradients(divergence):
    x, y = divergence.coordinates(_points()), divergence.coordinates(_points())
    dual = divergence.dual()
    slopes = divergence.gradient(x), divergence.gradient(y)
    direct = divergence.pointwise(x, y).sum(axis=-1)
    # The dual goes through log and exp: 1e-15, times what is left when close x and y cancel.
    np.testing.assert_allclose(dual.divergence(slopes[1], slopes[0]), direct, rtol=1e-9)
    np.testing.assert_allclose(_textbook(dual, slopes[1], slopes[0]), direct, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(dual.gradient(slopes[0]), x, rtol=1e-13)
    dual.check_points(slopes[1]), dual.check_queries(slopes[0])


@every_divergence
def test_no_divergence_is_negative_and_only_a_points_own_is_zero(divergence):
    x = _points()
    assert np.all(divergence.divergence(x, x) == 0)
    # To neighbouring numbers too, where the textbook form rounds to either sign.
    assert np.all(divergence.divergence(x, np.nextafter(x, 1.0)) >= 0)
    assert np.all(divergence.divergence(x, _points()) > 0)


def _log1p_exactly(t):
    """log(1 + t) of a small fraction by its series, in exact arithmetic."""
    return sum((-1) ** (i + 1) * t**i / Fraction(i) for i in range(1, 12))


@pytest.mark.parametrize("step", [1e-3, -1e-5, 1e-9, -1e-13])
def test_close_points_keep_their_digits(step):
    # t - log(1 + t) in fractions: in float64 the textbook form has no digit left at t = 1e-9.
    y = np.array([0.7])
    x = y * (1 + step)
    t = (Fraction(x[0]) - Fraction(y[0])) / Fraction(y[0])
    exact = t - _log1p_exactly(t)
    found = dv.itakura_saito().divergence(x, y)
    # Eleven terms leave t^12 / t^2 = 1e-30; a dozen operations round.
    np.testing.assert_allclose(found, float(exact), rtol=3e-15)
    # KL: y ((1 + t) log(1 + t) - t).
    exact = Fraction(y[0]) * ((1 + t) * _log1p_exactly(t) - t)
    np.testing.assert_allclose(dv.generalized_kl().divergence(x, y), float(exact), rtol=3e-15)
    # Beta at b = 3: (x - y)^2 (x + 2 y) / 6.
    exact = (Fraction(x[0]) - Fraction(y[0])) ** 2 * (Fraction(x[0]) + 2 * Fraction(y[0])) / 6
    np.testing.assert_allclose(dv.beta(b=3.0).divergence(x, y), float(exact), rtol=1e-14)
    # Exponential: e^y (e^t - 1 - t) = e^y t^2 (1 / 2 + t / 6 + ...), here about y = 0 exactly.
    exact = sum(Fraction(step) ** i / Fraction(int(np.prod(range(1, i + 1)))) for i in range(2, 12))
    found = dv.exponential().divergence(np.array([step]), np.array([0.0]))
    np.testing.assert_allclose(found, float(exact), rtol=3e-15)


def test_the_series_of_the_gap_meets_the_logarithm():
    t = np.concatenate([np.linspace(-0.9, 3, 1001), generators.NEAR * np.array([-1, 1])])
    t = t[np.abs(t) > 0.05]
    # t - log1p(t) itself loses 1e-16 / t of itself: 1e-13 at 0.05.
    np.testing.assert_allclose(generators.gap(t), t - np.log1p(t), rtol=1e-13)


def test_kl_on_the_simplex_is_scipys():
    x, y = _points(), _points()
    x[0] = [0.0, 0.25, 0.75]
    expected = rel_entr(x, y).sum(axis=-1)
    # SciPy's terms are of both signs and cancel: 1e-16 of the largest, about 1.
    np.testing.assert_allclose(dv.simplex_kl().divergence(x, y), expected, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(
        dv.generalized_kl().divergence(x, y), expected, rtol=1e-9, atol=1e-15
    )


def test_float32_rows_are_put_onto_the_simplex_in_double_precision():
    x, y = _points().astype(np.float32), _points().astype(np.float32)
    assert np.abs(x.sum(axis=1, dtype=np.float64) - 1).max() > 1e-9
    wide = [z.astype(np.float64) / z.sum(axis=1, keepdims=True, dtype=np.float64) for z in (x, y)]
    expected = rel_entr(*wide).sum(axis=-1)
    np.testing.assert_allclose(dv.simplex_kl().divergence(x, y), expected, rtol=1e-9, atol=1e-15)


def test_mahalanobis_is_the_quadratic_form():
    x, y = RNG.normal(size=(2, 50, 3))
    expected = np.einsum("ni,ij,nj->n", x - y, MATRIX, x - y)
    np.testing.assert_allclose(dv.mahalanobis(matrix=MATRIX).divergence(x, y), expected, rtol=1e-12)
    weights = np.array([0.5, 1.0, 3.0])
    np.testing.assert_allclose(
        dv.mahalanobis(weights=weights).divergence(x, y),
        ((x - y) ** 2 * weights).sum(1),
        rtol=1e-12,
    )


def test_the_beta_family_joins_its_named_members():
    x, y = _points(), _points()
    half = dv.squared_euclidean().divergence(x, y) / 2
    np.testing.assert_allclose(dv.beta(b=2.0).divergence(x, y), half, rtol=1e-12)
    # The limits are approached linearly in b, and rounding grows like 1e-16 / |b - 1|.
    kl, spectral = dv.generalized_kl().divergence(x, y), dv.itakura_saito().divergence(x, y)
    np.testing.assert_allclose(dv.beta(b=1 + 1e-6).divergence(x, y), kl, rtol=2e-5)
    np.testing.assert_allclose(dv.beta(b=1e-6).divergence(x, y), spectral, rtol=2e-5)


def test_itakura_saito_is_blind_to_a_common_scale():
    x, y = _points(), _points()
    found = dv.itakura_saito().divergence(1024 * x, 1024 * y)
    np.testing.assert_array_equal(found, dv.itakura_saito().divergence(x, y))


@pytest.mark.parametrize("kl", [dv.generalized_kl(), dv.logistic()], ids=["kl", "logistic"])
def test_zero_times_log_zero_is_zero(kl):
    zero, y = np.zeros((1, 1)), np.full((1, 1), 0.25)
    expected = 0.25 if kl.name == "generalized_kl" else -np.log(0.75)
    np.testing.assert_allclose(kl.divergence(zero, y), expected, rtol=1e-15)
    assert kl.phi(zero) == 0


def test_extreme_numbers_give_no_nan():
    tiny, huge = np.array([5e-324]), np.array([1e300])
    kl, spectral = dv.generalized_kl().divergence, dv.itakura_saito().divergence
    np.testing.assert_allclose(kl(tiny, np.ones(1)), 1.0)
    np.testing.assert_allclose(kl(huge, np.ones(1)), 1e300 * (np.log(1e300) - 1))
    np.testing.assert_allclose(spectral(tiny, np.ones(1)), -np.log(5e-324) - 1)
    np.testing.assert_allclose(spectral(tiny, huge), np.log(1e300) - np.log(5e-324) - 1)
    assert spectral(huge, tiny) == np.inf  # 1e624 it is
    exponential = dv.exponential().divergence
    np.testing.assert_allclose(exponential(np.zeros(1), np.array([-800.0])), 1.0)
    np.testing.assert_allclose(exponential(np.array([700.0]), np.zeros(1)), np.exp(700.0))


@every_divergence
def test_jax_arrays_give_the_same_in_single_precision(divergence):
    x, y = _points(20).astype(np.float32), _points(20).astype(np.float32)
    found = divergence.divergence(jnp.asarray(x), jnp.asarray(y))
    assert isinstance(found, jax.Array) and found.dtype == jnp.float32
    # A dozen operations at 6e-8, on terms up to a few times the distance.
    np.testing.assert_allclose(found, divergence.divergence(x, y), rtol=3e-5, atol=1e-7)


CONVEX = {
    "itakura_saito": (lambda x: -jnp.log(x), {"points": POSITIVE}, dv.itakura_saito()),
    "exponential": (jnp.exp, {"points": REAL}, dv.exponential()),
    "logistic": (lambda x: -jax.scipy.special.entr(x) - jax.scipy.special.entr(1 - x),
                 {"points": UNIT}, dv.logistic()),
    "generalized_kl": (lambda x: x * jnp.log(x) - x,
                       {"points": POSITIVE, "inverse_gradient": jnp.exp}, dv.generalized_kl()),
}  # fmt: skip


@pytest.mark.deep
@pytest.mark.parametrize(("phi", "options", "known"), CONVEX.values(), ids=CONVEX)
def test_a_divergence_made_from_a_convex_function_is_the_built_in_one(phi, options, known):
    made = bregman.from_convex(phi, **options)
    x = _points(50)
    far, near, nearer = _points(50), x * (1 + 1e-4), x * (1 + 1e-9)
    y = np.concatenate([far, near, nearer])
    x = np.concatenate([x, x, x])
    # The difference is kept where it has lost less than the quadrature: half the digits at worst.
    np.testing.assert_allclose(made.divergence(x, y), known.divergence(x, y), rtol=1e-7)
    np.testing.assert_allclose(
        made.divergence(x[:50], far), known.divergence(x[:50], far), rtol=1e-9
    )
    np.testing.assert_allclose(made.gradient(x), known.gradient(x), rtol=1e-12, atol=1e-15)
    # Bisection over exponents: their last digit, of a hundred, is 1e-14 of the number.
    np.testing.assert_allclose(made.inverse_gradient(made.gradient(x)), x, rtol=1e-11)


def test_a_function_that_is_not_convex_is_refused():
    with pytest.raises(ValueError, match="strictly convex"):
        bregman.from_convex(jnp.sin)
    with pytest.raises(ValueError, match="each entry"):
        bregman.from_convex(lambda x: jnp.sum(x**2))


@every_divergence
def test_name_and_options_make_the_same_divergence_again(divergence):
    again = bregman.get(divergence.name, **divergence.options)
    x, y = _points(5), _points(5)
    np.testing.assert_array_equal(again.divergence(x, y), divergence.divergence(x, y))
    assert (again.points, again.queries) == (divergence.points, divergence.queries)
    copy = pickle.loads(pickle.dumps(divergence))
    np.testing.assert_array_equal(copy.divergence(x, y), divergence.divergence(x, y))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dv.get("itakura_saitoh"), "did you mean 'itakura_saito'.*known: beta"),
        (lambda: dv.get("beta"), r"takes the options \['b'\]"),
        (lambda: dv.beta(b=1), "itakura_saito and generalized_kl"),
        (lambda: dv.get(dv.logistic(), b=1), "takes no"),
        (lambda: dv.mahalanobis(weights=np.array([1.0, -1.0])), "weights"),
        (lambda: dv.mahalanobis(matrix=np.diag([1.0, -1.0])), "positive definite"),
        (lambda: dv.mahalanobis(matrix=np.ones((2, 3))), "symmetric"),
        (lambda: dv.mahalanobis(), "either"),
        (lambda: dv.itakura_saito(smoothing=-1.0), "smoothing >= 0"),
        (
            lambda: dv.itakura_saito().check_points(np.array([[1.0, 0.0]])),
            "> 0; got 0.0 at row 0, column 1",
        ),
        (lambda: dv.generalized_kl().check_points(np.array([[-1e-9]])), ">= 0; got -1e-09"),
        (lambda: dv.generalized_kl().check_queries(np.array([[0.0]])), "queries > 0.*smoothing"),
        (
            lambda: dv.generalized_kl().check_points(np.array([[0.0]]), side="query_first"),
            "points > 0",
        ),
        (lambda: dv.logistic().check_queries(np.array([[1.0]])), r"in \(0, 1\)"),
        (lambda: dv.exponential().check_points(np.array([[710.0]])), "<= 709"),
        (
            lambda: dv.squared_euclidean().check_points(np.array([[np.inf]])),
            "finite numbers; got inf",
        ),
        (lambda: dv.squared_euclidean().check_points(np.array([1.0])), r"shape \(n, d\)"),
        (lambda: dv.squared_euclidean().check_points(np.array([["a"]])), "real numbers"),
        (lambda: dv.simplex_kl().check_points(np.array([[0.4, 0.5]])), "row 0 sums to 0.9"),
        (lambda: dv.logistic().check_points(np.array([[0.5]]), side="first"), "known: data_first"),
        (lambda: dv.get("beta", b="1.5"), "needs numbers for its options; got {'b': '1.5'}"),
        (lambda: dv.get("beta", b=[1.5]), "needs numbers"),
        (lambda: dv.get("beta", c=1.5), r"options \['b'\]; got \['c'\]"),
        (lambda: dv.get("itakura_saito", smoothing=None), "needs numbers"),
        (
            lambda: dv.mahalanobis(weights=[1.0, 2.0]).check_points(np.ones((3, 4))),
            "points of 2 columns; got 4",
        ),
        (lambda: dv.mahalanobis(matrix=[[np.inf]]), "finite numbers"),
        (lambda: convex.from_convex(jnp.square, name="beta"), "one of your own; 'beta' is"),
    ],
)
def test_wrong_input_is_one_clear_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_bfloat16_numbers_are_real_numbers():
    rows = jnp.array([[1.5, 2.0]], jnp.bfloat16)
    found = dv.squared_euclidean().check_points(rows)
    np.testing.assert_array_equal(found, [[1.5, 2.0]])


def test_zeros_are_allowed_where_the_divergence_has_a_limit():
    zero = np.array([[0.0, 1.0]])
    dv.generalized_kl().check_points(zero)
    dv.logistic().check_points(zero)
    dv.beta(b=0.5).check_points(zero)
    dv.beta(b=1.5).check_queries(zero)
    dv.itakura_saito(smoothing=1e-3).check_queries(zero)
    dv.simplex_kl(smoothing=1e-3).check_queries(zero)
