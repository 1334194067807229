# SPDX-License-Identifier: Apache-2.0
"""A search of many points takes no more memory than docs/papers/brepartition.md says."""

import tracemalloc

import numpy as np
import pytest

from scorejax.bregman.index import brepartition


@pytest.fixture(scope="module")
def many():
    """An index of many points, and queries of which hardly any point can be left out."""
    rng = np.random.default_rng(0)
    points, queries = rng.normal(size=(100_000, 16)).astype(np.float32), rng.normal(size=(64, 16))
    return brepartition.build_index(points, "squared_euclidean", num_parts=4), queries


@pytest.mark.deep
@pytest.mark.parametrize("k", [10, pytest.param(50_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("filter", ["sums", "seed", "paper", "scan"])
def test_a_search_takes_the_memory_that_the_page_says(many, filter, k):
    index, queries = many
    queries = queries if filter == "scan" else queries[:1]
    tracemalloc.start()
    found = brepartition.search(index, queries, k, filter=filter)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    of_scan = 64 * 8192 * 36 + 8 * 8192 * index.num_columns + 40 * k * len(queries)
    of_filter = 17 * index.num_points + 130 * k + 2**22
    assert peak <= (of_scan if filter == "scan" else of_filter)
    distances = np.sum((index.rows.block(0, 100_000).astype(np.float64) - queries[0]) ** 2, axis=1)
    np.testing.assert_allclose(found.distances[0], np.sort(distances)[:k], rtol=1e-12)
