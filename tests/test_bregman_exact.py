# SPDX-License-Identifier: Apache-2.0
"""The exact engine answers as brute force in double precision does, ties by number, always."""

import copy
import pickle

import jax
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.neighbors import KNeighborsClassifier, KNeighborsTransformer, NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler

from scorejax import bregman
from scorejax.bregman import divergences as dv
from scorejax.bregman.divergences import three_point
from scorejax.bregman.divergences.domain import POSITIVE
from scorejax.bregman.scan import block_scan, exact
from tests.slow import slow_where

SIDES = pytest.mark.parametrize("side", dv.SIDES)
DIM = 6
ALL = {
    "squared_euclidean": dv.squared_euclidean(),
    "mahalanobis": dv.mahalanobis(weights=np.arange(1.0, 1.0 + DIM)),
    "itakura_saito": dv.itakura_saito(),
    "exponential": dv.exponential(),
    "generalized_kl": dv.generalized_kl(),
    "simplex_kl": dv.simplex_kl(),
    "logistic": dv.logistic(),
    "beta": dv.beta(b=1.5),
}
EVERY = pytest.mark.parametrize("divergence", ALL.values(), ids=ALL)


def brute_force(divergence, points, queries, k, side):
    """The first k of a stable sort of all distances in float64."""
    points, queries = (divergence.coordinates(np.asarray(z, np.float64)) for z in (points, queries))
    pairs = [(points, q) if side == "data_first" else (q, points) for q in queries]
    with np.errstate(all="ignore"):
        distances = np.stack([divergence.pointwise(*pair).sum(axis=-1) for pair in pairs])
    distances[np.isnan(distances)] = np.inf
    ids = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return ids, np.take_along_axis(distances, ids, axis=1)


def assert_exact(divergence, points, queries, k, side, **options):
    index = bregman.build_index(points, divergence, side=side, **options)
    found = bregman.search(index, queries, k)
    ids, distances = brute_force(divergence, points, queries, k, side)
    # The same sums of the same terms in the same order: equal to the last bit, and so are ties.
    np.testing.assert_array_equal(found.distances, distances)
    np.testing.assert_array_equal(found.ids, ids)
    assert np.all(found.candidates >= k) and not found.pages.any()
    return found


def sample(divergence, rng, n):
    """Rows in the divergence's domain, float32."""
    rows = rng.uniform(0.01, 0.99, size=(n, DIM))
    return (rows / rows.sum(1, keepdims=True) if divergence.sums_to_one else rows).astype(
        np.float32
    )


@EVERY
@SIDES
def test_answers_are_those_of_brute_force(divergence, side):
    rng = np.random.default_rng(0)
    points, queries = sample(divergence, rng, 3000), sample(divergence, rng, 16)
    found = assert_exact(divergence, points, queries, 10, side, block_rows=1024)
    # Rounding to 24 bits is far below the gaps between neighbours here: no second scan.
    assert found.candidates.mean() < 20


@EVERY
@SIDES
def test_duplicates_constant_columns_and_queries_among_the_points(divergence, side):
    rng = np.random.default_rng(1)
    points = sample(divergence, rng, 300)
    if not divergence.sums_to_one:
        points[:, 2] = 0.5
    points[100:200] = points[:100]
    points[200:260] = points[7]
    # 62 rows tie for the nearest of points[7]: all are looked at, and the first are named.
    found = assert_exact(divergence, points, points[:16], 10, side, block_rows=1024)
    assert found.candidates[7] >= 62
    np.testing.assert_array_equal(found.ids[7], [7, 107, *range(200, 208)])


@pytest.mark.parametrize("seed", slow_where(lambda seed: seed >= 4, range(12)))
@SIDES
def test_random_cases_of_all_kinds(seed, side):
    """A sweep over divergence, precision, spread, repetition, rounding and k; shapes are few."""
    rng = np.random.default_rng(seed)
    for divergence in ALL.values():
        points, queries = sample(divergence, rng, 300), sample(divergence, rng, 16)
        points = points.astype(rng.choice([np.float32, np.float64]))
        if not divergence.sums_to_one and rng.random() < 0.7:
            spread = 10 ** -rng.uniform(0, 7)  # far less than single precision can tell apart
            points, queries = (0.5 + spread * (z - 0.5) for z in (points, queries))
        if rng.random() < 0.5:
            points = rng.choice(points[:20], 300)
        if not divergence.sums_to_one and rng.random() < 0.4:
            points, queries = (np.ceil(8 * z) / 9 for z in (points, queries))  # many ties
        assert_exact(divergence, points, queries, int(rng.choice([1, 10, 300])), side)


@SIDES
def test_huge_and_subnormal_numbers(side):
    rng = np.random.default_rng(2)
    powers = {"squared_euclidean": (-200, 200), "itakura_saito": (-320, 300),
              "generalized_kl": (-320, 300), "beta": (-300, 190)}  # fmt: skip
    for name, (low, high) in powers.items():
        points, queries = (
            np.maximum(10.0 ** rng.uniform(low, high, size=(n, DIM)), 5e-324) for n in (300, 16)
        )
        assert_exact(ALL[name], points, queries, 10, side)


def test_zeros_where_they_are_allowed():
    rng = np.random.default_rng(3)
    for name in ("generalized_kl", "logistic", "beta", "simplex_kl"):
        points, queries = sample(ALL[name], rng, 300), sample(ALL[name], rng, 16)
        points[rng.random(points.shape) < 0.4] = 0
        points[:, 1] = 0 if not ALL[name].sums_to_one else 0.2
        if ALL[name].sums_to_one:
            points /= points.sum(axis=1, keepdims=True)
        assert_exact(ALL[name], points, queries, 10, "data_first")
    smoothed = dv.itakura_saito(smoothing=1e-3)
    assert_exact(smoothed, points, points[:16], 10, "query_first")


def test_distances_that_overflow_are_infinite_and_last():
    points = np.array([[1e200], [1.0], [-1e200], [2.0]])
    found = assert_exact(ALL["squared_euclidean"], points, np.zeros((1, 1)), 4, "data_first")
    np.testing.assert_array_equal(found.ids[0], [1, 3, 0, 2])


@SIDES
@pytest.mark.parametrize(
    "divergence",
    [dv.beta(b=3.0), dv.beta(b=-2.0), bregman.from_convex(lambda x: x**2)],
    ids=["beta 3", "beta -2", "own"],
)
def test_numbers_whose_powers_overflow_keep_their_order(divergence, side):
    rng, size = (
        np.random.default_rng(5),
        {3.0: 110, -2.0: -160}.get(divergence.options.get("b"), 200),
    )
    points = rng.uniform(1, 2, size=(40, 3)) * 10.0**size
    found = assert_exact(divergence, points, points[:6], 4, side)
    np.testing.assert_array_equal(found.ids[:, 0], np.arange(6))
    assert np.all(found.distances[:, 0] == 0)


def test_a_single_point_and_as_many_neighbours_as_points():
    one = np.full((1, DIM), 0.5)
    for divergence in (ALL["squared_euclidean"], ALL["logistic"]):
        assert_exact(divergence, one, np.concatenate([one, one / 2]), 1, "data_first")
    rng = np.random.default_rng(4)
    points = sample(ALL["exponential"], rng, 300)
    found = assert_exact(ALL["exponential"], points, points[:16], 300, "query_first")
    assert np.all(np.sort(found.ids, axis=1) == np.arange(300))


def test_a_divergence_of_ones_own_is_searched_exactly():
    import jax.numpy as jnp

    made = bregman.from_convex(lambda x: x * jnp.log(x), points=POSITIVE, inverse_gradient=None)
    rng = np.random.default_rng(5)
    points, queries = sample(made, rng, 300), sample(made, rng, 16)
    found = bregman.search(bregman.build_index(points, made), queries, 10)
    known = bregman.search(bregman.build_index(points, "generalized_kl"), queries, 10)
    np.testing.assert_array_equal(found.ids, known.ids)
    # The difference of two numbers of order one, summed over six coordinates.
    np.testing.assert_allclose(found.distances, known.distances, rtol=1e-9)


def test_streamed_blocks_answer_as_resident_ones_and_memory_maps_as_arrays(tmp_path):
    rng = np.random.default_rng(6)
    divergence = ALL["itakura_saito"]
    points, queries = sample(divergence, rng, 3000), sample(divergence, rng, 16)
    np.save(tmp_path / "points.npy", points)
    mapped = np.load(tmp_path / "points.npy", mmap_mode="r")
    index = bregman.build_index(mapped, divergence, device_bytes=0, block_rows=1024)
    assert index.resident is None and index.points is mapped
    found = bregman.search(index, queries, 10)
    resident = bregman.search(bregman.build_index(points, divergence), queries, 10)
    np.testing.assert_array_equal(found.ids, resident.ids)
    np.testing.assert_array_equal(found.distances, resident.distances)


def test_blocks_are_divided_among_devices():
    devices = jax.local_devices()[:2]
    assert len(devices) == 2, "conftest.py sets up two"
    rng = np.random.default_rng(7)
    points, queries = (sample(ALL["generalized_kl"], rng, n) for n in (3000, 16))
    index = bregman.build_index(points, "generalized_kl", block_rows=1024, devices=devices)
    used = [next(iter(block.vectors.devices())) for block in index.resident]
    assert used == [devices[0], devices[1], devices[0]]
    found = bregman.search(index, queries, 10)
    ids, _ = brute_force(ALL["generalized_kl"], points, queries, 10, "data_first")
    np.testing.assert_array_equal(found.ids, ids)


def test_many_queries_and_few_are_answered_alike():
    rng = np.random.default_rng(8)
    points, queries = (sample(ALL["logistic"], rng, n) for n in (300, 20))
    index = bregman.build_index(points, "logistic")
    together = bregman.search(index, queries, 3)
    for size in (1, 3):  # a product for each; 20 are filled up to 32
        alone = bregman.search(index, queries[:size], 3)
        np.testing.assert_array_equal(alone.ids, together.ids[:size])
    assert bregman.search(index, queries[:0], 3).ids.shape == (0, 3)


@EVERY
@SIDES
def test_the_scan_is_as_near_to_the_truth_as_its_bound_says(divergence, side):
    rng = np.random.default_rng(9)
    points, queries = sample(divergence, rng, 300), sample(divergence, rng, 16)
    index = bregman.build_index(points, divergence, side=side)
    form = index.frame.query_form(divergence.coordinates(queries.astype(np.float64)))
    ((_, block),) = index.blocks()
    scores, rows, _ = jax.device_get(
        block_scan.smallest_scores(block, form.vectors, form.heights, num=300)
    )
    ids, distances = brute_force(divergence, points, queries, 300, side)
    truth = np.zeros_like(distances)
    np.put_along_axis(truth, ids, distances, axis=1)
    found = form.scales[:, None] * scores + form.offsets[:, None]
    scanned = np.isfinite(scores)  # The outlying rows are not.
    assert np.all(scanned.sum(axis=1) == 300 - len(index.outlying))
    truth = np.take_along_axis(truth, np.minimum(rows, 299), axis=1)
    error = np.abs(found - truth, where=scanned, out=np.zeros_like(truth)).max(axis=1)
    assert np.all(error <= form.slack)
    # Nor is the bound idle: the worst case of 6 products is ten times the usual one.
    assert np.all(form.slack <= 1e-5 * form.scales)


def test_the_three_point_identity_holds_for_any_centre():
    rng = np.random.default_rng(10)
    for divergence in ALL.values():
        points, queries = (divergence.coordinates(sample(divergence, rng, n)) for n in (5, 4))
        points, queries = points.astype(np.float64), queries.astype(np.float64)
        for first in (True, False):
            frame = three_point.Frame(divergence, first, np.full(DIM, 0.3))
            frame = frame.in_units_of(frame.sizes(points).max(axis=1))
            vectors, heights = frame.point_form(points)
            form = frame.query_form(queries)
            found = form.heights[:, None] * heights - form.vectors @ vectors.T
            found = form.scales[:, None] * found + form.offsets[:, None]
            pair = (points[None], queries[:, None])
            expected = divergence.pointwise(*(pair if first else pair[::-1])).sum(axis=-1)
            # Queries are in float32: 6e-8 of the terms, which the slack knows.
            assert np.all(np.abs(found - expected) <= form.slack[:, None])


def test_a_bound_of_what_is_left_out_bounds_it():
    rng = np.random.default_rng(11)
    vectors = rng.normal(size=(3000, DIM)).astype(np.float32)
    block = block_scan.block_of([(vectors, np.zeros(3000))], (3, 1024), DIM)
    queries = rng.normal(size=(16, DIM)).astype(np.float32)
    scores, rows, bound = jax.device_get(
        block_scan.smallest_scores(block, queries, np.ones(16, np.float32), num=16)
    )
    truth = -queries @ vectors.T
    np.testing.assert_allclose(scores, np.sort(truth, axis=1)[:, :16], rtol=1e-5, atol=1e-6)
    others = np.array([np.delete(t, r).min() for t, r in zip(truth, rows, strict=True)])
    # Two orders of summation of six products.
    assert np.all(bound <= others + 1e-5)
    assert np.all(bound >= scores[:, -1] - 1e-5)


def test_scikit_learns_neighbours_are_ours():
    rng = np.random.default_rng(12)
    points, queries = rng.normal(size=(300, DIM)), rng.normal(size=(16, DIM))
    theirs = NearestNeighbors(n_neighbors=3).fit(points)
    ours = bregman.BregmanNeighbors(n_neighbors=3).fit(points)
    for rows in (queries, None):
        distances, ids = theirs.kneighbors(rows)
        found, found_ids = ours.kneighbors(rows)
        np.testing.assert_array_equal(found_ids, ids)
        # Theirs is |x|^2 + |y|^2 - 2 x.y: 1e-15 of terms a hundred times the distance.
        np.testing.assert_allclose(np.sqrt(found), distances, rtol=1e-10)
    np.testing.assert_array_equal(
        ours.kneighbors(queries, return_distance=False), ids_of(theirs, queries)
    )
    graph = ours.kneighbors_graph(queries)
    assert (graph != theirs.kneighbors_graph(queries)).nnz == 0


def ids_of(neighbours, queries):
    return neighbours.kneighbors(queries, return_distance=False)


def test_it_drops_into_a_pipeline():
    rng = np.random.default_rng(13)
    label = rng.integers(0, 2, 300)
    points = rng.gamma(5, np.where(label[:, None], 1.0, 2.0), size=(300, DIM))
    step = bregman.BregmanNeighbors(16, "logistic", side="query_first")
    assert clone(step).get_params() == step.get_params()
    scale = MinMaxScaler((0.01, 0.99), clip=True)
    pipeline = make_pipeline(scale, step, KNeighborsClassifier(9, metric="precomputed"))
    # Gammas of twice the scale in six dimensions overlap by 3 %; a coin would be right for 50 %.
    assert pipeline.fit(points[:200], label[:200]).score(points[200:], label[200:]) > 0.85


def test_as_a_transformer_it_is_scikit_learns():
    rng = np.random.default_rng(14)
    points, queries = rng.normal(size=(50, DIM)), rng.normal(size=(7, DIM))
    theirs = KNeighborsTransformer(mode="distance", n_neighbors=4).fit(points)
    ours = bregman.BregmanNeighbors(n_neighbors=4).fit(points)
    for rows in (points, queries):
        found, expected = ours.transform(rows), theirs.transform(rows)
        assert found.nnz == 5 * len(rows)
        assert (found.astype(bool) != expected.astype(bool)).nnz == 0
        # Rounding as above; a point's distance to itself is 0 here and its root of that there.
        np.testing.assert_allclose(np.sqrt(found.toarray()), expected.toarray(), atol=1e-7)
    names = ours.get_feature_names_out()
    assert names.tolist() == [f"bregmanneighbors{row}" for row in range(50)]
    with pytest.raises(ValueError, match="k <= 3, the number of points; got 4"):
        bregman.BregmanNeighbors(3).fit(POINTS).transform(POINTS)
    with pytest.raises(NotFittedError):
        bregman.BregmanNeighbors(3).get_feature_names_out()


def test_fitted_neighbours_can_be_pickled_and_copied():
    points = np.random.default_rng(0).gamma(2.0, size=(50, 4))
    fitted = bregman.BregmanNeighbors(3, "generalized_kl", side="query_first").fit(points)
    expected = fitted.kneighbors(points[:5])
    for other in (pickle.loads(pickle.dumps(fitted)), copy.deepcopy(fitted)):
        for ours, theirs in zip(expected, other.kneighbors(points[:5]), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_a_row_behind_many_duplicates_is_not_its_own_neighbour():
    neighbours = bregman.BregmanNeighbors(2).fit(np.zeros((6, DIM)))
    ids = neighbours.kneighbors(return_distance=False)
    np.testing.assert_array_equal(ids[0], [1, 2])
    np.testing.assert_array_equal(ids[5], [0, 1])


POINTS = np.full((3, DIM), 0.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bregman.build_index(np.zeros((0, 3))), "at least one"),
        (lambda: bregman.build_index(np.zeros(3)), r"got \(3,\)"),
        (lambda: bregman.build_index(POINTS, "kl"), "known: beta"),
        (lambda: bregman.build_index(-POINTS, "itakura_saito"), "points > 0; got -0.5 at row 0"),
        (lambda: bregman.build_index(POINTS, side="left"), "known: data_first, query_first"),
        (lambda: bregman.build_index(POINTS, block_rows=0), "block_rows >= 1"),
        (lambda: _search(POINTS, 4), "k <= 3, the number of points; got 4"),
        (lambda: _search(POINTS, 0), "1 <= k"),
        (lambda: _search(POINTS, 2.5), "a whole number 1 <= k <= 3.*got 2.5"),
        (lambda: _search(POINTS[:, :2], 1), "6 columns, as the points; got 2"),
        (lambda: _search(POINTS * 0, 1, "generalized_kl"), "queries > 0"),
        (lambda: bregman.range_search(bregman.build_index(POINTS), POINTS, -1), "radius >= 0; got"),
        (lambda: bregman.calibrate(bregman.build_index(POINTS), POINTS, 1), "got ExactIndex"),
        (lambda: bregman.BregmanNeighbors(3).fit(POINTS).kneighbors(), "k <= 2; got 3"),
        (lambda: bregman.BregmanNeighbors(1).fit(POINTS).kneighbors_graph(mode="x"), "mode"),
    ],
)
def test_wrong_input_is_one_clear_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def _search(queries, k, divergence="squared_euclidean"):
    return bregman.search(bregman.build_index(POINTS, divergence), queries, k)


def test_a_wrong_row_is_named_by_its_number_in_the_whole(monkeypatch):
    monkeypatch.setattr(exact, "READ_BYTES", 8 * DIM * 10)
    for row in (32, 33):  # the sample that the centre is of has every fourth row
        points = np.full((40, DIM), 0.5)
        points[row, 2] = np.nan
        with pytest.raises(ValueError, match=f"nan at row {row}, column 2"):
            bregman.build_index(points, "logistic")


@pytest.mark.slow
@SIDES
def test_two_hundred_thousand_points_in_128_dimensions(side):
    rng = np.random.default_rng(14)
    points = np.exp(rng.normal(size=(200_000, 128))).astype(np.float32)
    queries = np.exp(rng.normal(size=(4, 128))).astype(np.float32)
    for divergence in (ALL["itakura_saito"], ALL["generalized_kl"]):
        assert_exact(divergence, points, queries, 20, side)
