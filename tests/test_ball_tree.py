# SPDX-License-Identifier: Apache-2.0
"""Trees hold their points, and no point in a ball or a box is nearer than its bound."""

import numpy as np
import pytest
from bregman_cases import CASES, make_case

from scorejax.bregman.divergences.sided import Sided
from scorejax.bregman.index import ball_tree
from scorejax.bregman.index.tree_building import build_tree


def make_tree(name, side, *, columns=slice(0, 4), leaf_size=16, num_points=300):
    case = make_case(name, side, num_points=num_points)
    space = Sided(case.divergence, side)
    x = case.divergence.coordinates(case.points.astype(np.float64))[:, columns]
    q = case.divergence.coordinates(case.queries.astype(np.float64))[:, columns]
    tree, order = build_tree(
        x, np.arange(x.shape[1]), space, leaf_size=leaf_size, rng=np.random.default_rng(0)
    )
    return space, x, q, tree, order


@pytest.mark.parametrize(("name", "side"), CASES)
def test_every_node_holds_its_points(name, side):
    space, x, _, tree, order = make_tree(name, side)
    np.testing.assert_array_equal(np.sort(order), np.arange(len(x)))
    for node in tree.nodes:
        own = x[order[node["start"] : node["stop"]]]
        assert np.all((own >= node["lower"]) & (own <= node["upper"]))
        assert np.all(space.distances(own, node["centre"]) <= node["radius"])
        assert node["radius"] <= space.distances(own, node["centre"]).max() * (1 + 1e-9) + 1e-9
    leaves = tree.leaves()
    assert np.all(leaves["left"] == -1) and leaves["stop"][-1] == len(x)
    np.testing.assert_array_equal(leaves["start"][1:], leaves["stop"][:-1])
    assert np.all(leaves["stop"] - leaves["start"] <= 16)
    for node in tree.nodes[tree.num_leaves :]:
        left, right = tree.nodes[node["left"]], tree.nodes[node["right"]]
        assert (left["start"], left["stop"]) == (node["start"], right["start"])
        assert right["stop"] == node["stop"]
    numbers = ball_tree.leaf_numbers(tree, order)
    np.testing.assert_array_equal(np.sort(numbers), numbers[order])


@pytest.mark.parametrize(("name", "side"), CASES)
def test_no_point_of_a_node_is_nearer_than_its_bounds(name, side):
    space, x, q, tree, order = make_tree(name, side)
    for row in q:
        distances = space.distances(x[order], row)
        nearest = np.array([distances[n["start"] : n["stop"]].min() for n in tree.nodes])
        for node_bounds in ball_tree.BOUNDS.values():
            # No tolerance: bounds are lowered by more than rounding.
            assert np.all(node_bounds(space, tree.nodes, row) <= nearest)


@pytest.mark.deep
@pytest.mark.parametrize(("name", "side"), CASES)
def test_no_place_in_a_ball_is_nearer_than_its_bound(name, side):
    # 10,000 places about each centre, of which those in the ball are kept: a thousand or more.
    space, _, q, tree, _ = make_tree(name, side, columns=slice(0, 2))
    rng = np.random.default_rng(1)
    for node in tree.leaves()[:4]:
        spread = rng.uniform(-0.5, 0.5, (10_000, 2)) * 4 * (node["upper"] - node["lower"])
        places = node["centre"] + spread * rng.uniform(size=(10_000, 1))
        domain = space.divergence.points if space.data_first else space.divergence.queries
        places = places[domain.contains(places).all(axis=1)]
        places = places[space.distances(places, node["centre"]) <= node["radius"]]
        assert len(places) > 100
        for row in q:
            lower = ball_tree.ball_bounds(space, np.array([node]), row)[0]
            assert lower <= space.distances(places, row).min()


@pytest.mark.parametrize(("name", "side"), CASES)
def test_the_bound_of_a_ball_is_its_least_divergence(name, side):
    # In two dimensions the least divergence over a ball without the query is on its edge, which is
    # found here along 20,001 rays by bisection.
    space, _, q, tree, _ = make_tree(name, side, columns=slice(0, 2), leaf_size=8)
    ball = max(tree.leaves(), key=lambda leaf: leaf["radius"])
    domain = space.divergence.points if space.data_first else space.divergence.queries
    angle = np.linspace(0, 2 * np.pi, 20_001)
    rays = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    low, high = np.zeros(len(rays)), np.full(len(rays), 100.0)
    for _ in range(60):
        reach = (low + high) / 2
        places = ball["centre"] + reach[:, None] * rays
        inside = domain.contains(places).all(axis=1)
        inside[inside] = space.distances(places[inside], ball["centre"]) <= ball["radius"]
        low, high = np.where(inside, reach, low), np.where(inside, high, reach)
    edge = ball["centre"] + low[:, None] * rays
    for row in q:
        found = ball_tree.ball_bounds(space, np.array([ball]), row)[0]
        if space.distances(row, ball["centre"]) <= ball["radius"]:
            assert found == 0
        else:
            # 24 bisections of the multiplier and 3e-4 of a ray's angle, both to second order.
            np.testing.assert_allclose(found, space.distances(edge, row).min(), rtol=1e-5)


@pytest.mark.parametrize(("name", "side"), CASES)
def test_the_bound_of_a_box_is_its_least_divergence(name, side):
    space, _, q, tree, _ = make_tree(name, side, columns=slice(0, 2))
    for node in tree.leaves()[:5]:
        # Edges and their middle parts; also the query's own coordinates, where they are inside.
        for row in q:
            sides = [
                np.append(np.linspace(node["lower"][j], node["upper"][j], 101), inside[j])
                for inside in [np.clip(row, node["lower"], node["upper"])]
                for j in range(2)
            ]
            places = np.stack(np.meshgrid(*sides), axis=-1).reshape(-1, 2)
            found = ball_tree.box_bounds(space, np.array([node]), row)[0]
            # Lowered by 1e-9 on purpose.
            best = space.distances(places, row).min()
            np.testing.assert_allclose(found, best, rtol=2e-9)
            assert found <= best


def test_bisection_may_stop_at_any_step_and_is_a_bound(monkeypatch):
    space, x, q, tree, order = make_tree("itakura_saito", "data_first")
    distances = space.distances(x[order], q[0])
    nearest = np.array([distances[n["start"] : n["stop"]].min() for n in tree.nodes])
    before = np.zeros(len(tree.nodes))
    for steps in range(1, 30, 4):
        monkeypatch.setattr(ball_tree, "BISECTIONS", steps)
        lower = ball_tree.ball_bounds(space, tree.nodes, q[0])
        assert np.all(lower <= nearest) and np.all(lower >= before)
        before = lower
    assert np.count_nonzero(before) > len(before) / 2


@pytest.mark.parametrize("bound", ball_tree.BOUNDS)
def test_range_search_visits_every_leaf_with_a_point_in_range(bound):
    space, x, q, tree, order = make_tree("exponential", "query_first")
    node_bounds = ball_tree.BOUNDS[bound]
    for row in q:
        distances = space.distances(x[order], row)
        for radius in (0.0, *np.quantile(distances, [0.01, 0.1, 0.5, 1])):
            found = ball_tree.leaves_within(tree, space, row, radius, node_bounds)
            has = [np.any(distances[n["start"] : n["stop"]] <= radius) for n in tree.leaves()]
            assert np.all(found >= has)
        assert not ball_tree.leaves_within(tree, space, row, -1.0, node_bounds).any()


@pytest.mark.parametrize("points", ["one", "equal", "outlier", "powers"])
def test_trees_of_awkward_points_are_shallow(points):
    x = {
        "one": np.ones((1, 3)),
        "equal": np.ones((500, 3)),
        "outlier": np.concatenate([np.ones((499, 3)), np.full((1, 3), 1e150)]),
        # Two-means splits off one point after the other.
        "powers": 2.0 ** np.arange(500)[:, None] * np.ones(3),
    }[points]
    space = Sided(make_case("squared_euclidean", "data_first").divergence)
    tree, order = build_tree(
        x, np.arange(x.shape[1]), space, leaf_size=4, rng=np.random.default_rng(0)
    )
    assert sorted(order.tolist()) == list(range(len(x)))
    depth = np.zeros(len(tree.nodes), int)
    for i in range(len(tree.nodes) - 1, tree.num_leaves - 1, -1):
        depth[[tree.nodes[i]["left"], tree.nodes[i]["right"]]] = depth[i] + 1
    # Each child has at least 5 % of its parent's points: log(125) / log(1 / 0.95) = 94 levels.
    assert depth.max() <= 94
