# SPDX-License-Identifier: Apache-2.0
"""A few odd rows, or columns of other units, leave the scan in memory as quick and as exact.

Its work is the number of points whose divergence is computed in double precision.
"""

import numpy as np
import pytest

from scorejax import bregman
from scorejax.bregman.scan import outlying

NUM, DIM, K = 4000, 16, 5


def normal(rng, num):
    return rng.normal(size=(num, DIM))


def gamma(rng, num):
    return rng.gamma(2.0, size=(num, DIM))


def with_entry(value, row=7, column=3):
    def change(points, queries):
        points[row, column] = value
        return points, queries

    return change


def longer(factor, num):
    def change(points, queries):
        points[100 : 100 + num] *= factor
        return points, queries

    return change


def tilted(decibels):
    tilt = 10 ** np.linspace(0, decibels / 10, DIM)
    return lambda points, queries: (points * tilt, queries * tilt)


ODD = {
    "one long row": (normal, "squared_euclidean", "data_first", longer(1e4, 1)),
    "one infinite length": (normal, "squared_euclidean", "data_first", longer(1e200, 1)),
    "many long rows": (normal, "squared_euclidean", "data_first", longer(1e4, outlying.MOST)),
    "a tiny entry": (gamma, "itakura_saito", "query_first", with_entry(1e-6)),
    "a large entry": (gamma, "generalized_kl", "data_first", with_entry(1e6)),
    "tilt": (gamma, "itakura_saito", "data_first", tilted(80)),
    "tilt, query first": (gamma, "itakura_saito", "query_first", tilted(80)),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_rows_are_scanned_as_plain_ones_are(name):
    draw, divergence, side, change = ODD[name]
    rng = np.random.default_rng(0)
    points, queries = draw(rng, NUM), draw(rng, 4)
    plain = bregman.search(bregman.build_index(points, divergence, side=side), queries, K)
    points, queries = change(points.copy(), queries)
    index = bregman.build_index(points, divergence, side=side)
    found = bregman.search(index, queries, K)
    with np.errstate(over="ignore"):  # Of the row whose length is infinite.
        pairs = (points[None], queries[:, None])
        truth = index.divergence.pointwise(*(pairs if side == "data_first" else pairs[::-1]))
        truth = truth.sum(axis=-1)
    np.testing.assert_array_equal(found.ids, np.argsort(truth, axis=1, kind="stable")[:, :K])
    np.testing.assert_array_equal(found.distances, np.sort(truth, axis=1)[:, :K])
    # Every query ranks the rows that are left out; beside them the work may double.
    assert np.all(found.candidates - len(index.outlying) <= 2 * plain.candidates.max())


def test_an_odd_row_is_found_by_a_query_beside_it():
    rng = np.random.default_rng(1)
    points = normal(rng, NUM)
    points[[7, 2000]] *= 1e4
    index = bregman.build_index(points, "squared_euclidean")
    assert index.outlying.tolist() == [7, 2000]
    found = bregman.search(index, points[[7, 2000]] + 0.5, 2)
    assert found.ids[:, 0].tolist() == [7, 2000]
    np.testing.assert_allclose(found.distances[:, 0], DIM * 0.25, rtol=1e-10)  # float64 at 1e4


def test_rows_at_an_infinite_distance_are_found_once_each():
    points = normal(np.random.default_rng(5), 300)
    points[[7, 200]] *= 1e200
    index = bregman.build_index(points, "squared_euclidean")
    assert index.outlying.tolist() == [7, 200]
    found = bregman.search(index, points[:3], len(points))
    np.testing.assert_array_equal(np.sort(found.ids, axis=1), [np.arange(300)] * 3)
    np.testing.assert_array_equal(found.ids[:, -2:], [[7, 200]] * 3)
    assert np.all(np.isinf(found.distances[:, -2:]))


def test_rows_are_outlying_whatever_the_pieces_that_they_come_in():
    rng = np.random.default_rng(2)
    sizes = rng.uniform(1, 2, size=(3, 1000))
    sizes[0, [5, 600]], sizes[1, 999], sizes[2, 3] = (
        100.0,
        np.inf,
        1e9,
    )  # The third decides nothing.
    for cut in (1000, 300, 7):
        largest = outlying.LargestRows(3)
        for start in range(0, 1000, cut):
            largest.add(sizes[:, start : start + cut], start)
        left_out = largest.outlying()
        assert left_out.tolist() == [5, 600, 999]
        expected = np.delete(sizes, left_out, axis=1).max(axis=1)
        np.testing.assert_array_equal(largest.largest(without=left_out), expected)


def test_points_that_their_owner_changes_are_found_as_they_were():
    rng = np.random.default_rng(3)
    owned = normal(rng, 300)
    read_only, before = owned[:], owned.copy()
    read_only.flags.writeable = False
    for points in (owned, owned[:], read_only, np.asarray(owned, order="F")):
        index = bregman.build_index(points, "squared_euclidean")
        owned[:] = 0
        found = bregman.search(index, before[:4], 1)
        assert found.ids[:, 0].tolist() == [0, 1, 2, 3] and np.all(found.distances == 0)
        owned[:] = before


def test_points_that_nobody_can_change_are_not_copied(tmp_path):
    frozen = normal(np.random.default_rng(4), 300)
    np.save(tmp_path / "points.npy", frozen)
    frozen.flags.writeable = False
    for points in (frozen, np.load(tmp_path / "points.npy", mmap_mode="r")):
        assert np.shares_memory(bregman.build_index(points, "squared_euclidean").points, points)
