# SPDX-License-Identifier: Apache-2.0
"""Points within a radius by a scan, and scikit-learn's door: radius, smoothing, sparse rows."""

import numpy as np
import pytest
from bregman_cases import CASES, all_distances, make_case
from scipy.sparse import csr_array

from scorejax import bregman
from scorejax.bregman import index_files, neighbors
from tests.slow import slow_where

FEW = [("itakura_saito", "query_first"), ("simplex_kl", "data_first")]
COUNTS = np.random.default_rng(0).poisson(0.7, (60, 12)).astype(np.float64)


@pytest.mark.parametrize("setting", slow_where(lambda case: case not in FEW, CASES), ids="-".join)
def test_a_scan_finds_all_points_within_the_radius(setting):
    case = make_case(*setting)
    index = bregman.build_index(case.points, case.divergence, side=case.side)
    distances = all_distances(case)
    # Between two distances, so that rounding cannot move a point across.
    middle = np.unique(distances)[[distances.size // 20, distances.size // 20 + 1]].mean()
    for radius in (middle, 2 * distances.max()):
        found = bregman.range_search(index, case.queries, float(radius))
        for ids, own, every in zip(found.ids, found.distances, distances, strict=True):
            assert sorted(ids) == np.flatnonzero(every <= radius).tolist()
            np.testing.assert_allclose(own, every[ids], rtol=1e-9, atol=1e-13)
            assert np.all(np.diff(own) >= 0)
        assert (found.candidates >= [len(ids) for ids in found.ids]).all()


def test_a_query_beyond_single_precision_is_answered_too():
    points = np.array([[0.0, 0.0], [3.0, 4.0], [1e30, 0.0]])
    found = bregman.range_search(bregman.build_index(points), [[1e30, 0.0], [0.0, 0.0]], 25.0)
    assert [ids.tolist() for ids in found.ids] == [[2], [0, 1]]


@pytest.mark.parametrize("radius", [2.0, np.inf])
def test_outlying_points_are_found_where_they_are_within(radius):
    points = np.random.default_rng(2).normal(size=(300, 3))
    points[7] *= 1e7
    index = bregman.build_index(points)
    assert index.outlying.tolist() == [7]
    queries = points[[7, 8]]
    found = bregman.range_search(index, queries, radius)
    distances = ((points[None] - queries[:, None]) ** 2).sum(axis=2)
    for ids, every in zip(found.ids, distances, strict=True):
        assert sorted(ids) == np.flatnonzero(every <= radius).tolist()


def test_the_estimator_finds_rows_within_a_radius_as_its_nearest_ones_say():
    model = bregman.BregmanNeighbors(59, "squared_euclidean", radius=6.0).fit(COUNTS)
    distances, ids = model.kneighbors(COUNTS[:4] + 0.3, 60)
    near, rows = model.radius_neighbors(COUNTS[:4] + 0.3)
    for every, order, own, found in zip(distances, ids, near, rows, strict=True):
        np.testing.assert_array_equal(found, order[every <= 6.0])
        np.testing.assert_array_equal(own, every[every <= 6.0])
    others = model.radius_neighbors(radius=1e9, return_distance=False)
    assert [sorted(found) for found in others] == [
        [row for row in range(60) if row != i] for i in range(60)
    ]


def test_the_estimator_smooths_zeros_and_makes_sparse_counts_dense(monkeypatch):
    smooth = bregman.get("generalized_kl", smoothing=0.1)
    expected = smooth.divergence(COUNTS[:, None], COUNTS[None, :5])
    model = bregman.BregmanNeighbors(3, "generalized_kl", smoothing=0.1).fit(csr_array(COUNTS))
    distances, _ = model.kneighbors(csr_array(COUNTS[:5]))
    # The same formula in another order of summation.
    np.testing.assert_allclose(distances, np.sort(expected, axis=0)[:3].T, rtol=1e-9, atol=1e-13)
    np.testing.assert_array_equal(model.radius_neighbors(csr_array(COUNTS[:5]), 0.0)[1][3][0], 3)
    with pytest.raises(ValueError, match="Zeros need smoothing > 0"):
        bregman.BregmanNeighbors(3, "itakura_saito").fit(COUNTS)
    with pytest.raises(ValueError, match=r"logistic takes the options \[\]; got \['smoothing'\]"):
        bregman.BregmanNeighbors(3, "logistic", smoothing=0.1).fit(COUNTS)
    monkeypatch.setattr(neighbors, "MAX_DENSE_BYTES", COUNTS.nbytes - 1)
    with pytest.raises(ValueError, match=r"computes with dense rows, .* for this sparse X of \(60"):
        bregman.BregmanNeighbors(3).fit(csr_array(COUNTS))


def test_kl_is_answered_with_both_divergences_of_that_name():
    with pytest.raises(ValueError, match="did you mean 'generalized_kl' or 'simplex_kl'"):
        bregman.build_index(COUNTS, "kl")


@pytest.mark.parametrize(
    ("filter", "words"),
    [("auto", "filter scan: summed bounds would leave "), ("seed", "filter seed: as asked")],
)
def test_a_search_in_files_says_which_filter_it_took_and_why(filter, words, tmp_path, capsys):
    # Of white noise in many columns, bounds exclude nearly no point.
    noise = np.random.default_rng(1).normal(size=(90, 30))
    np.save(tmp_path / "queries.npy", noise[:2])
    bregman.build_index(noise, num_parts=2, path=tmp_path / "index", leaf_size=16)
    settings = {"k": 3, "filter": filter, "p": None, "calibration": None, "verify": True}
    files = {"queries": str(tmp_path / "queries.npy"), "out": str(tmp_path / "found")}
    index_files.prepare_search(str(tmp_path / "index"), **files, **settings)()
    assert words in capsys.readouterr().out
