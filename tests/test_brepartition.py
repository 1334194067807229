# SPDX-License-Identifier: Apache-2.0
"""The index against brute force in double precision, whatever its parts and filter."""

import jax.numpy as jnp
import numpy as np
import pytest
from bregman_cases import (
    CASES,
    DIVERGENCES,
    Case,
    all_distances,
    assert_exact,
    brute_force,
    make_case,
)

from scorejax import bregman
from scorejax.bregman import divergences
from scorejax.bregman.index import brepartition, filters, planning
from scorejax.bregman.index.approximate import Calibration
from scorejax.bregman.index.ball_tree import BOUNDS
from scorejax.bregman.index.filters import Nearest, PageReader
from tests.slow import slow_where

WAYS = [(f, b) for f in ("paper", "seed", "sums") for b in BOUNDS] + [("scan", None)]


def build(case: Case, num_parts: int, **options):
    options = {"leaf_size": 16, "side": case.side, **options}
    return brepartition.build_index(case.points, case.divergence, num_parts=num_parts, **options)


# By default every divergence in seven parts, and one of them in any number.
@pytest.mark.parametrize(
    "setting",
    slow_where(
        lambda setting: setting[2] != 7 and setting[0] != "itakura_saito",
        [(name, side, num_parts) for name, side in CASES for num_parts in (1, 2, 7, 14)],
    ),
    ids=lambda setting: "-".join(map(str, setting)),
)
def test_every_filter_answers_as_brute_force(setting, monkeypatch):
    name, side, num_parts = setting
    # What is expected of filters does not matter here, and takes most of a small build.
    monkeypatch.setattr(planning, "MEASURED_QUERIES", 1)
    case = make_case(name, side, num_points=120, num_queries=2)
    index = build(case, num_parts, leaf_size=8)
    for filter, bound in WAYS:
        found = brepartition.search(index, case.queries, 5, filter=filter, bound=bound)
        assert_exact(found, case, 5)


@pytest.mark.parametrize("gauge", ["none", "mean", "corner"])
@pytest.mark.parametrize("name", ["generalized_kl", "exponential", "itakura_saito"])
def test_every_gauge_answers_as_brute_force(name, gauge):
    case = make_case(name, "data_first", num_points=150)
    index = build(case, 3, gauge=gauge)
    for filter in ("paper", "scan"):
        assert_exact(brepartition.search(index, case.queries, 5, filter=filter), case, 5)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_with_queries_first_it_is_an_index_of_the_dual_on_gradients(name):
    case = make_case(name, "query_first", num_points=150)
    found = brepartition.search(build(case, 3), case.queries, 5)
    slopes = lambda x: case.divergence.gradient(case.divergence.coordinates(x.astype(np.float64)))
    index = brepartition.build_index(
        slopes(case.points), case.divergence.dual(), num_parts=3, leaf_size=16
    )
    dual = brepartition.search(index, slopes(case.queries), 5)
    # The dual goes through the inverse gradient: 1e-15, times what is left when x and y cancel.
    np.testing.assert_allclose(dual.distances, found.distances, rtol=1e-9)


@pytest.mark.parametrize(("num_points", "k"), [(1, 1), (2, 1), (2, 2), (40, 40)])
def test_few_points_and_k_up_to_all_of_them(num_points, k):
    case = make_case("squared_euclidean", "data_first", num_points=50)
    case = case._replace(points=case.points[:num_points])
    index = build(case, 2, leaf_size=1)
    for filter, bound in WAYS:
        assert_exact(
            brepartition.search(index, case.queries, k, filter=filter, bound=bound), case, k
        )


def test_of_equal_distances_the_smaller_ids_come_first_whatever_the_filter():
    case = make_case("squared_euclidean", "data_first", num_points=60)
    points = np.repeat(case.points[40:50], 6, axis=0)
    case = case._replace(points=points, queries=points[:2])
    index = build(case, 2)
    for filter, bound in WAYS:
        found = brepartition.search(index, case.queries, 8, filter=filter, bound=bound)
        ids, distances = brute_force(case, 8)
        np.testing.assert_array_equal(found.distances, distances)
        np.testing.assert_array_equal(found.ids, ids)


@pytest.mark.parametrize("side", ["data_first", "query_first"])
def test_zeros_huge_and_subnormal_values(side):
    rng = np.random.default_rng(1)
    x = 10.0 ** rng.uniform(-300, 100, (80, 4))
    x[:6, 0], x[3:9, 1], x[10] = 5e-324, 1e-310, 1e150
    case = Case(divergences.itakura_saito(), side, x, x[:3] * 1.5)
    # x / y overflows for many pairs: their divergence is infinite, and they are all ties.
    assert_exact_in_all_ways(case, build(case, 2), finite_only=True)


def test_points_with_zeros_where_they_are_allowed():
    rng = np.random.default_rng(2)
    x = rng.poisson(0.5, (200, 6)).astype(np.float64)
    x[:, 3] = 0
    case = Case(divergences.generalized_kl(), "data_first", x, rng.uniform(0.1, 2, (4, 6)))
    assert_exact_in_all_ways(case, build(case, 2))
    # The other way about, it is queries that may have zeros.
    case = Case(divergences.generalized_kl(), "query_first", x + 0.1, x[:4])
    assert_exact_in_all_ways(case, build(case, 2))


def test_probabilities_of_zero_and_one():
    rng = np.random.default_rng(3)
    x = rng.integers(0, 2, (100, 5)).astype(np.float64)
    x[50:] = rng.uniform(0.01, 0.99, (50, 5))
    case = Case(divergences.logistic(), "data_first", x, x[-4:])
    assert_exact_in_all_ways(case, build(case, 5))


def test_exponentials_near_overflow():
    rng = np.random.default_rng(4)
    x = rng.uniform(-700, 700, (120, 4))
    case = Case(divergences.exponential(), "data_first", x, x[:4] + 0.1)
    assert_exact_in_all_ways(case, build(case, 2), finite_only=True)


def assert_exact_in_all_ways(case: Case, index, k: int = 4, *, finite_only: bool = False):
    _, distances = brute_force(case, k)
    if finite_only:
        assert np.isfinite(distances).any()
    for filter, bound in WAYS:
        found = brepartition.search(index, case.queries, k, filter=filter, bound=bound)
        np.testing.assert_allclose(
            found.distances, distances, rtol=1e-9, err_msg=f"{filter} {bound}"
        )


def test_whole_numbers_and_half_precision_are_taken_as_they_are():
    rng = np.random.default_rng(5)
    for dtype in (np.uint8, np.int64, np.float16):
        x = rng.integers(0, 100, (60, 5)).astype(dtype)
        case = Case(divergences.squared_euclidean(), "data_first", x, x[:3])
        assert_exact(brepartition.search(build(case, 2), case.queries, 3), case, 3)


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("name", ["itakura_saito", "simplex_kl"])
def test_range_search_finds_all_points_within_the_radius(name, bound):
    case = make_case(name, "data_first")
    index = build(case, 7)
    distances = all_distances(case)
    for radius in (0.0, np.quantile(distances, 0.05), 2 * distances.max()):
        found = brepartition.range_search(index, case.queries, float(radius), bound=bound)
        for ids, own, every in zip(found.ids, found.distances, distances, strict=True):
            assert set(ids) == set(np.flatnonzero(every <= radius))
            assert np.all(np.diff(own) >= 0)


@pytest.mark.deep
def test_any_radii_that_sum_to_a_distance_keep_all_nearer_points():
    # Of a sum, not all terms can exceed radii that sum to as much: for any way to allot them.
    case = make_case("itakura_saito", "query_first")
    index = build(case, 7)
    rng = np.random.default_rng(6)
    ids, distances = brute_force(case, 5)
    position = np.argsort(index.ids)
    for q, own, nearest in zip(index.coordinates(case.queries), distances, ids, strict=True):
        for weights in rng.exponential(size=(20, 7)) ** 3:
            radii = filters.allot(own[-1], weights)
            for bound in BOUNDS.values():
                assert filters.union(index, q, radii, bound)[position[nearest]].all()


@pytest.mark.parametrize("name", ["squared_euclidean", "exponential"])
def test_summed_bounds_leave_a_subset_of_what_radii_leave(name):
    case = make_case(name, "data_first", num_points=800)
    index = build(case, 7)
    tau = brute_force(case, 5)[1][:, -1]
    rng = np.random.default_rng(7)
    for q, own in zip(index.coordinates(case.queries), tau, strict=True):
        for node_bounds in BOUNDS.values():
            summed, lower = filters.summed_bounds(
                index, filters.leaf_bounds(index, q, node_bounds), own
            )
            assert np.all(lower <= own)
            for weights in rng.uniform(size=(5, 7)):
                kept = filters.union(index, q, filters.allot(own, weights), node_bounds)
                assert kept[summed].all()


def test_auto_scans_where_a_filter_leaves_much_and_filters_where_it_leaves_little():
    rng = np.random.default_rng(8)
    spread = rng.normal(size=(4000, 30))
    index = brepartition.build_index(spread, "squared_euclidean", num_parts=2)
    assert index.shares.at(10)[0] > planning.LARGEST_SHARE
    found = brepartition.search(index, spread[:2], 10)
    assert found.candidates.tolist() == [4000, 4000]
    # A curve in space: of one dimension, whatever the number of coordinates.
    t = rng.uniform(0, 6, (20_000, 1))
    curve = np.concatenate([np.sin(t * f) for f in np.linspace(0.2, 1, 30)], axis=1)
    index = brepartition.build_index(curve, "squared_euclidean", num_parts=1)
    found = brepartition.search(index, curve[:1], 10)
    assert found.candidates.max() < 0.05 * len(curve)


def test_auto_scans_for_more_neighbours_than_a_filter_can_spare():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(40, 4)) * 50
    points = centres[rng.integers(40, size=8000)] + rng.normal(size=(8000, 4))
    index = brepartition.build_index(points, "squared_euclidean", num_parts=1)
    assert index.shares.at(100)[0] < planning.LARGEST_SHARE / 2
    assert index.shares.at(8000) == (1.0, 1.0)
    assert planning.preference(index, 1, 8000)[0] == "scan"


def test_measured_shares_are_those_of_searches():
    case = make_case("squared_euclidean", "data_first", num_points=2000, num_queries=300)
    index = build(case, 7)
    found = brepartition.search(index, case.queries, 10, filter="sums")
    share = found.candidates / len(case.points)
    # 8 queries against 300: their mean is within 5 standard errors in all but 1e-6 of draws.
    tolerance = 5 * share.std() * np.sqrt(1 / planning.MEASURED_QUERIES + 1 / 300)
    assert abs(index.shares.at(10)[0] - share.mean()) < tolerance


def test_the_number_of_parts_is_measured_when_it_is_not_given():
    case = make_case("itakura_saito", "data_first")
    index = brepartition.build_index(case.points, "itakura_saito", leaf_size=16)
    assert len(index.parts) in (1, 2, 4, 8)
    assert_exact(brepartition.search(index, case.queries, 5), case, 5)


@pytest.mark.deep
@pytest.mark.parametrize("filter", ["paper", "sums"])
def test_conformal_answers_hold_all_neighbours_as_often_as_promised(filter):
    # The share of 500 queries is below p by 3 standard errors of it and of the 200 calibration
    # queries' rank: in 0.2 % of draws, for each p, if the promise holds; the seed is fixed.
    case = make_case("squared_euclidean", "data_first", num_points=1000, num_queries=700)
    index = build(case, 2, leaf_size=64)
    calibration = brepartition.calibrate(index, case.queries[:200], 5, filter=filter, bound="box")
    queries = case.queries[200:]
    exact = brepartition.search(index, queries, 5, filter=filter, bound="box")
    before = np.zeros(len(queries))
    for p in (0.7, 0.8, 0.9):
        found = brepartition.search(index, queries, 5, p=p, calibration=calibration)
        complete = np.all(found.distances <= exact.distances * (1 + 1e-12), axis=1)
        error = np.sqrt(p * (1 - p) * (1 / 500 + 1 / 200))
        assert complete.mean() >= p - 3 * error
        assert np.all(found.distances >= exact.distances * (1 - 1e-12))
        assert np.all(found.candidates >= before - 1e-9) or filter == "sums"
        assert found.candidates.mean() <= exact.candidates.mean()
        before = found.candidates
    everything = brepartition.search(index, queries, 5, p=1.0, calibration=calibration)
    np.testing.assert_array_equal(everything.ids, exact.ids)


@pytest.mark.deep
def test_the_papers_approximation_is_nested_in_p_and_exact_at_one():
    case = make_case("exponential", "data_first", num_points=600, num_queries=500)
    index = build(case, 2, gauge="none", leaf_size=64)
    exact = brepartition.search(index, case.queries, 5, filter="paper", bound="box")
    before = np.zeros(len(case.queries))
    for p in (0.5, 0.7, 0.8, 0.9, 1.0):
        found = brepartition.search(index, case.queries, 5, p=p, filter="paper", bound="box")
        assert np.all(found.candidates >= before)
        before = found.candidates
        # p - 3 standard errors over 500 queries; what the paper promises is a heuristic, and here
        # a cautious one.
        complete = np.all(found.distances <= exact.distances * (1 + 1e-12), axis=1)
        assert complete.mean() >= p - 3 * np.sqrt(p * (1 - p) / 500)
        assert np.all(found.distances >= exact.distances * (1 - 1e-12))
    np.testing.assert_array_equal(found.candidates, exact.candidates)
    np.testing.assert_array_equal(found.ids, exact.ids)


def test_a_calibration_too_small_for_p_answers_exactly():
    case = make_case("squared_euclidean", "data_first", num_queries=8)
    index = build(case, 2)
    calibration = brepartition.calibrate(index, case.queries, 5)
    assert calibration.threshold(0.95) == 1.0
    assert calibration.threshold(0.5) == np.sort(calibration.scores)[4]


def test_pages_are_between_those_of_one_order_and_one_for_each_candidate():
    case = make_case("squared_euclidean", "data_first", num_points=800)
    index = build(case, 2, page_bytes=400)
    per_page = 400 // (14 * 4)
    for filter, bound in WAYS:
        found = brepartition.search(index, case.queries, 5, filter=filter, bound=bound)
        assert np.all(found.pages <= np.minimum(found.candidates, -(-800 // per_page)))
        assert np.all(found.pages >= -(-found.candidates // per_page))


def test_a_row_longer_than_a_page_counts_for_all_its_pages():
    case = make_case("squared_euclidean", "data_first")
    index = build(case, 2, page_bytes=10)
    reader = PageReader(index.rows)
    filters.refine(
        index, index.coordinates(case.queries)[0], np.array([3, 7]), reader, Nearest(1, index.ids)
    )
    assert reader.num_pages == 2 * 6 and index.rows.num_pages == 300 * 6


BUILD_MISTAKES = [
    ({"num_parts": 15}, "num_parts needs to be in \\[1, 14\\]; got 15"),
    ({"num_parts": 0}, "num_parts"),
    ({"num_parts": 2, "leaf_size": 0}, "leaf_size >= 1; got 0"),
    ({"num_parts": 2, "page_bytes": 0}, "page_bytes"),
    ({"num_parts": 2, "page_bytes": 2**45}, "page_bytes needs to be in"),
    ({"num_parts": 2, "gauge": "meen"}, "did you mean 'mean'"),
    ({"num_parts": 2, "side": "query"}, "unknown side 'query'"),
]


@pytest.mark.parametrize(("options", "message"), BUILD_MISTAKES)
def test_builds_that_cannot_be(options, message):
    case = make_case("squared_euclidean", "data_first", num_points=60)
    with pytest.raises(ValueError, match=message):
        brepartition.build_index(case.points, case.divergence, **options)


@pytest.mark.parametrize("points", [np.zeros((0, 3)), np.zeros(3), np.array([[1.0, np.nan]])])
def test_points_that_cannot_be(points):
    with pytest.raises(ValueError, match="needs points"):
        brepartition.build_index(points, "squared_euclidean")


CASE = make_case("squared_euclidean", "data_first", num_points=60)
LEARNT = Calibration("sums", "box", 2, np.ones(3), build(CASE, 2).fingerprint)
SEARCH_MISTAKES = [
    ({"k": 61}, "k needs to be a whole number in \\[1, 60\\]; got 61"),
    ({"k": 0}, "got 0"),
    ({"k": 2, "p": 0.0}, "p needs to be in \\(0, 1\\]"),
    ({"k": 2, "filter": "sum"}, "did you mean 'sums'"),
    ({"k": 2, "bound": "bax"}, "did you mean 'box'"),
    ({"k": 2, "p": 0.5, "filter": "scan", "calibration": LEARNT}, "calibration is for .*'sums'"),
    ({"k": 2, "p": 0.5, "bound": "ball", "calibration": LEARNT}, "calibration is for .*'box'"),
]


@pytest.mark.parametrize(("options", "message"), SEARCH_MISTAKES)
def test_searches_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        brepartition.search(build(CASE, 2), CASE.queries, **options)
    with pytest.raises(ValueError, match="queries need 14 columns, as the index has; got 3"):
        brepartition.search(build(CASE, 2), CASE.queries[:, :3], 1)


def test_a_calibration_is_for_its_own_index(tmp_path):
    calibration = brepartition.calibrate(build(CASE, 2), CASE.queries, 2)
    saved = build(CASE, 2, path=tmp_path / "index")
    brepartition.search(saved, CASE.queries, 2, p=0.5, calibration=calibration)
    others = [build(CASE, 3), build(CASE._replace(points=CASE.points[::-1].copy()), 2)]
    for other in [*others, build(CASE, 2, leaf_size=8)]:
        with pytest.raises(ValueError, match="the calibration is of another index"):
            brepartition.search(other, CASE.queries, 2, p=0.5, calibration=calibration)


def test_no_queries_have_no_neighbours():
    case = make_case("squared_euclidean", "data_first")
    for filter in ("sums", "scan"):
        found = brepartition.search(build(case, 2), case.queries[:0], 3, filter=filter)
        assert found.ids.shape == found.distances.shape == (0, 3)
        assert found.pages.shape == (0,)


def test_the_face_of_the_package_chooses_the_engine(tmp_path):
    case = make_case("itakura_saito", "data_first")
    scan = bregman.build_index(case.points, "itakura_saito")
    parts = bregman.build_index(case.points, "itakura_saito", num_parts=2)
    disk = bregman.build_index(case.points, "itakura_saito", num_parts=3, path=tmp_path / "index")
    assert isinstance(scan, bregman.ExactIndex) and isinstance(parts, bregman.BregmanIndex)
    for index in (scan, parts, disk, bregman.open_index(tmp_path / "index")):
        assert_exact(bregman.search(index, case.queries, 5), case, 5)
        assert_exact(bregman.search(index, case.queries, 5, p=1.0), case, 5)
        with pytest.raises(ValueError, match=r"p needs to be in \(0, 1\]; got 1\.5"):
            bregman.search(index, case.queries, 5, p=1.5)


@pytest.mark.slow
def test_divergences_of_ones_own_have_an_index():
    # JAX compiles their functions for every shape: a minute.
    own = bregman.from_convex(jnp.cosh)
    rng = np.random.default_rng(9)
    x = rng.normal(size=(70, 6)) @ rng.normal(size=(6, 6))
    for side in divergences.SIDES:
        case = Case(own, side, x[:66], x[66:68])
        index = build(case, 2, leaf_size=16)
        for filter, bound in WAYS:
            found = brepartition.search(index, case.queries, 3, filter=filter, bound=bound)
            assert_exact(found, case, 3)
