# SPDX-License-Identifier: Apache-2.0
"""Hypothesis looks for points that make an engine answer other than brute force in float64 does.

Entries are drawn from few numbers, so that duplicates, ties and constant columns are common, among
them zeros where they are allowed, subnormal and huge numbers, and neighbours in floating point.
Shapes are few, for every shape is compiled.
"""

import functools
import itertools
from typing import NamedTuple

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from scorejax import bregman
from scorejax.bregman import divergences
from scorejax.bregman.divergences import SIDES, Divergence, cauchy
from scorejax.bregman.divergences.sided import Sided
from scorejax.bregman.index import brepartition, partition
from scorejax.bregman.index.ball_tree import BOUNDS

DIM = 3
NEAR = [0.25, np.nextafter(0.25, 1), 0.25 * (1 + 1e-8)]
REAL = [0.0, -0.0, *NEAR, 1.0, -1.0, 5e-324, -1e-310, 1e-160, 1e150, -1e200]
POSITIVE = [*NEAR, 1.0, 3.0, 5e-324, 1e-310, 1e-160, 1e150]
# Of the first argument, and of the second.
VALUES = {
    "squared_euclidean": (REAL, REAL),
    "itakura_saito": (POSITIVE, POSITIVE),
    "exponential": ([*NEAR, 0.0, -1.0, -745.0, -1e5, 300.0, 709.0],) * 2,
    "generalized_kl": ([0.0, *POSITIVE], POSITIVE),
    "logistic": ([0.0, 1.0, *NEAR, 5e-324, 1e-310, 1 - 2**-53], [*NEAR, 1e-310, 1 - 2**-53]),
    "beta_1.5": ([0.0, *POSITIVE],) * 2,
}
DIVERGENCES = {
    name: divergences.beta(b=1.5) if name == "beta_1.5" else divergences.get(name)
    for name in VALUES
}
few = lambda num: hypothesis.settings(
    max_examples=num,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)


class Case(NamedTuple):
    divergence: Divergence
    side: str
    points: np.ndarray
    queries: np.ndarray
    k: int


@st.composite
def cases(draw) -> Case:
    """Points (n, 3), two queries, and a k up to n."""
    name, side = draw(st.sampled_from([*VALUES])), draw(st.sampled_from(SIDES))
    num, k = draw(st.sampled_from([(1, 1), (24, 1), (24, 5), (24, 24)]))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    of_points, of_queries = VALUES[name] if side == "data_first" else VALUES[name][::-1]
    divergence = DIVERGENCES[name]
    domains = divergence.points, divergence.queries
    domains = domains if side == "data_first" else domains[::-1]
    points = draw(_rows(num, of_points, dtype, domains[0]))
    if draw(st.booleans()):
        points[:, 1] = points[0, 1]
    if draw(st.booleans()):
        points[num // 2 :] = points[: num - num // 2]
    return Case(divergence, side, points, draw(_rows(2, of_queries, dtype, domains[1])), k)


def _rows(num, values, dtype, domain):
    """Rows of those values that are in the domain once they are in the data's precision."""
    with np.errstate(all="ignore"):
        cast = np.array(values, dtype)
    cast = cast[domain.contains(cast) & np.isfinite(cast)]
    return arrays(np.int8, (num, DIM), elements=st.integers(0, len(cast) - 1)).map(cast.__getitem__)


def all_distances(case: Case) -> np.ndarray:
    """Every divergence (2, n) in float64; infinite at worst, never NaN."""
    x, y = case.points.astype(np.float64), case.queries.astype(np.float64)
    pair = lambda q: (x, q[None]) if case.side == "data_first" else (q[None], x)
    with np.errstate(over="ignore"):
        distances = np.stack([case.divergence.divergence(*pair(q)) for q in y])
    assert not np.isnan(distances).any()
    return distances


def assert_exact(found, case: Case) -> None:
    distances = all_distances(case)
    nearest = np.sort(distances, axis=1)[:, : case.k]
    # One formula, whose loops may round a last digit otherwise at the end of an array; subnormal
    # distances have fewer digits.
    close = {"rtol": 1e-12, "atol": 1e-310}
    np.testing.assert_allclose(found.distances, nearest, **close)
    np.testing.assert_allclose(np.take_along_axis(distances, found.ids, axis=1), nearest, **close)
    for ids, own in zip(found.ids, found.distances, strict=True):
        assert len(set(ids.tolist())) == case.k
        assert np.all(np.diff(ids)[own[1:] == own[:-1]] > 0)


@few(60)
@hypothesis.given(cases())
def test_the_scan_in_memory_answers_as_brute_force(case):
    index = bregman.build_index(case.points, case.divergence, side=case.side)
    assert_exact(bregman.search(index, case.queries, case.k), case)


@pytest.mark.deep
@few(60)
@hypothesis.given(
    cases(),
    st.sampled_from([*itertools.product(("paper", "seed", "sums"), BOUNDS), ("scan", None)]),
    st.sampled_from([1, 2, 3]),
    st.sampled_from(cauchy.GAUGES),
    st.sampled_from([1, 5]),
)
def test_every_filter_answers_as_brute_force(case, way, num_parts, gauge, leaf_size):
    options = {"side": case.side, "num_parts": num_parts, "gauge": gauge, "leaf_size": leaf_size}
    index = brepartition.build_index(case.points, case.divergence, **options)
    filter, bound = way
    found = brepartition.search(index, case.queries, case.k, filter=filter, bound=bound)
    assert_exact(found, case)


@few(100)
@hypothesis.given(cases(), st.sampled_from([1, 2, 3]), st.sampled_from(cauchy.GAUGES))
def test_cauchy_bounds_hold(case, num_parts, gauge):
    space, parts = Sided(case.divergence, case.side), partition.contiguous(DIM, num_parts)
    x, queries = case.points.astype(np.float64), case.queries.astype(np.float64)
    with np.errstate(all="ignore"):
        place = cauchy.gauge_of(space, x, gauge)
        tuples = cauchy.point_tuples(space, place, x, parts)
        for q in queries:
            own = np.stack([space.distances(x[:, part], q[part]) for part in parts], axis=1)
            query = cauchy.query_tuple(space, place, q, parts, tuples)
            found = cauchy.bounds(tuples.values, query)
            # No tolerance: what rounding may add is in the bounds.
            assert np.all(found.lower <= own) and np.all(own <= found.upper)


@few(30)
@hypothesis.given(cases(), st.sampled_from([-1, 0, 1, 7]))
def test_more_neighbours_than_points_or_none_is_one_clear_line(case, beyond):
    k = len(case.points) + beyond if beyond > 0 else beyond
    for build in (bregman.build_index, functools.partial(bregman.build_index, num_parts=2)):
        index = build(case.points, case.divergence, side=case.side)
        message = (
            rf"k .*\[1, {len(case.points)}\]; got {k}|1 <= k <= {len(case.points)}, .*; got {k}"
        )
        with pytest.raises(ValueError, match=message):
            bregman.search(index, case.queries, k)
