# SPDX-License-Identifier: Apache-2.0
"""Masked networks: what a context may depend on, dimension by dimension as in one pass."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorejax.models.autoregressive import AutoregressiveModel
from scorejax.models.masked_ar import MaskedTrunk, hidden_degrees
from scorejax.models.univariate import MixtureHead, ScoreHead
from tests.random_variables import random_variables

IMAGE_ORDER = (4, 0, 5, 2, 1, 3)
CASES = {
    "one dimension": ((1,), MaskedTrunk(5, 2, 3), False),
    "one dimension given another": ((1,), MaskedTrunk(5, 2, 3), True),
    "two dimensions": ((2,), MaskedTrunk(5, 1, 3, activation="softplus"), False),
    "waves of dimensions in another order": (
        (3,),
        MaskedTrunk(6, 2, 3, order=(2, 0, 1), num_frequencies=2),
        False,
    ),
    "an image in another order": ((2, 3, 1), MaskedTrunk(16, 3, 3, order=IMAGE_ORDER), True),
}


def rows(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def some_case(name):
    """The trunk of the name, random parameters for it, data and the condition."""
    shape, trunk, conditional = CASES[name]
    x, condition = rows(3, *shape), rows(3, 2, seed=1) if conditional else None
    variables = random_variables(trunk, x, condition, seed=2, mean=0.0, std=0.7)
    return trunk, variables, x, condition


@pytest.mark.parametrize("name", CASES)
def test_a_context_depends_on_all_earlier_dimensions_and_exactly_not_on_others(name):
    # Oracle 6. Masked weights are zeros, and so are all products with them: not small, but 0.0.
    trunk, variables, x, condition = some_case(name)
    jacobian = jax.jit(jax.jacobian(lambda x: trunk.apply(variables, x, condition)))(x)
    dim, order = x[0].size, trunk.dimension_order(x[0].size)
    within = np.stack([jacobian.reshape(3, dim, 3, 3, dim)[b, :, :, b] for b in range(3)])
    size = np.abs(within).max(axis=(0, 2))[np.ix_(order, order)]
    assert (np.triu(size) == 0.0).all()
    assert (size[np.tril_indices(dim, -1)] > 0).all()


@pytest.mark.parametrize("head", [ScoreHead(5, 2, num_frequencies=2), MixtureHead(2)])
def test_a_score_depends_on_no_later_dimension(head):
    model = AutoregressiveModel(MaskedTrunk(6, 2, 3, order=(2, 0, 1)), head)
    x = rows(1, 3)
    variables = random_variables(model, x, seed=0, mean=0.0, std=0.7)
    jacobian = jax.jit(jax.jacobian(lambda x: model.apply(variables, x)))(x)[0, :, 0]
    jacobian = jacobian[np.ix_((2, 0, 1), (2, 0, 1))]
    assert (np.triu(jacobian, 1) == 0.0).all() and (np.tril(jacobian) != 0).sum() == 6


def moved_condition(trunk, variables, x, condition, t):
    return trunk.apply(variables, x, t + condition)[0]


@pytest.mark.parametrize("hidden", [16, 3])
def test_all_contexts_may_depend_on_the_condition(x64, hidden):
    # Also in one dimension, and by a function that is not affine: its second derivative is not 0.
    for dim in (1, 4):
        trunk, x, condition = MaskedTrunk(hidden, 1, 2), rows(1, dim), rows(1, 2, seed=1)
        variables = random_variables(trunk, x, condition, seed=2, mean=0.0, std=0.7)
        along = functools.partial(moved_condition, trunk, variables, x, condition)
        second = jax.jit(jax.jacfwd(jax.jacfwd(along)))(0.0)
        assert (np.abs(second) > 1e-3).all()


@functools.partial(jax.jit, static_argnums=0)
def both_ways(trunk, variables, x, condition=None):
    """Contexts (b, D, h) in the order: in one pass, and by advances that see NaN for later x."""
    flat, dim = x.reshape(len(x), -1), x[0].size
    order = trunk.dimension_order(dim)
    turn = jnp.asarray(np.argsort(order))

    def step(cache, position):
        seen = jnp.where((turn < position)[None], flat, jnp.nan).reshape(x.shape)
        return trunk.apply(variables, cache, seen, position, condition, method="advance")

    at_once = trunk.apply(variables, x, condition).reshape(len(x), dim, -1)[:, order]
    return at_once, jax.lax.scan(step, trunk.empty(x), jnp.arange(dim))[1].swapaxes(0, 1)


@pytest.mark.parametrize("name", CASES)
def test_dimension_by_dimension_is_as_in_one_pass(x64, name):
    # The same sums of at most 16 terms in another order: a hundred roundings of numbers of size 10.
    np.testing.assert_allclose(*both_ways(*some_case(name)), atol=2e-13)


def test_fewer_units_than_dimensions_do_as_well(x64):
    trunk, x = MaskedTrunk(4, 2, 2), rows(2, 9)
    variables = random_variables(trunk, x, seed=0, mean=0.0, std=0.7)
    np.testing.assert_allclose(*both_ways(trunk, variables, x), atol=2e-13)


def test_all_advances_cost_about_one_pass():
    # Products in units of D^2, with 2 D units a layer and 8 features. One pass: 2 for the first
    # layer, 4 for each of the two others, 16 for the contexts: 26. Advances evaluate slices of
    # ceil(2 D / (D - 1)) = 3 units in place of 2: 2 + 6 + 6 + 16 = 30. Masks and activations, which
    # XLA counts too, add a few per cent at 32 rows.
    ratios = []
    for dim in (16, 64):
        trunk, x = MaskedTrunk(2 * dim, 3, 8), jnp.ones((32, dim))
        variables = random_variables(trunk, x, seed=0, mean=0.0, std=0.1)
        flops = lambda f, *args: jax.jit(f).lower(*args).cost_analysis()["flops"]
        one_pass = flops(lambda x, t=trunk, v=variables: t.apply(v, x), x)
        step = lambda cache, x, p, t=trunk, v=variables: t.apply(v, cache, x, p, method="advance")
        ratios.append(dim * flops(step, trunk.empty(x), x, 0) / one_pass)
    assert 30 / 26 < ratios[1] <= ratios[0] < 1.1 * 30 / 26


def test_permuting_columns_and_order_together_changes_nothing():
    # Oracle 12. The same numbers take the same way, so the contexts are equal bit for bit.
    trunk, x = MaskedTrunk(6, 2, 3, order=(2, 0, 3, 1)), rows(5, 4)
    variables = random_variables(trunk, x, seed=0, mean=0.0, std=0.7)
    columns = np.array([3, 0, 1, 2])
    moved = trunk.clone(order=np.argsort(columns)[np.array(trunk.order)])
    found = jax.jit(moved.apply)(variables, x[:, columns])
    np.testing.assert_array_equal(found, jax.jit(trunk.apply)(variables, x)[:, columns])


@pytest.mark.parametrize("kind", ["gaussian", "logistic"])
def test_the_joint_density_of_mixtures_integrates_to_one(x64, kind):
    # With steps below 0.4 of the smallest scale, the trapezoidal rule errs by less than
    # exp(-5 pi^2). Beyond 25 lies less than exp(-18) of the mass, logistic scales being below 1.2.
    model = AutoregressiveModel(MaskedTrunk(4, 1, 3, order=(1, 0)), MixtureHead(2, kind))
    variables = random_variables(model, rows(1, 2), seed=1, mean=0.0, std=0.2)
    axis = np.arange(-25, 25, 0.2)
    x = jnp.asarray(np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2))

    def density(model, x):
        c = model.contexts(x)
        return model.log_prob(x, c).sum(axis=1), model.univariate.components(c)

    log_prob, (_, means, scales) = jax.jit(nn.apply(density, model))(variables, x)
    assert scales.min() > 0.55 and scales.max() < 1.2 and np.abs(means).max() < 3
    np.testing.assert_allclose(np.exp(log_prob).sum() * 0.2**2, 1, atol=1e-7)


@pytest.mark.parametrize(("hidden", "lowest", "highest"), [(16, 1, 5), (5, 1, 5), (3, 0, 9)])
def test_degrees_are_sorted_and_spread_evenly(hidden, lowest, highest):
    degrees = hidden_degrees(hidden, lowest, highest)
    assert len(degrees) == hidden and (np.diff(degrees) >= 0).all()
    assert degrees[0] == lowest and degrees[-1] == highest
    if hidden >= highest - lowest + 1:
        counts = np.bincount(degrees)[lowest:]
        assert counts.min() >= 1 and counts.max() - counts.min() <= 1
    else:
        gaps = np.diff(degrees)
        assert gaps.max() - gaps.min() <= 1


def test_new_contexts_vary_as_much_early_in_the_order_as_late():
    # Up to a factor of four: without the masks in the fan-in it is twenty.
    trunk, x = MaskedTrunk(64, 2, 8), rows(64, 32)
    c, _ = jax.jit(trunk.init_with_output)(jax.random.key(0), x)
    spread = np.asarray(c).std(axis=0).mean(axis=1)
    assert spread[0] == 0 and spread[1:].min() > 0.2 and spread[1:].max() < 0.8


@pytest.mark.parametrize("order", [(0, 0, 2), (1, 2, 3), [0.0, 0.5, 2.0]])
def test_an_order_that_is_no_permutation_is_refused(order):
    with pytest.raises(ValueError, match=r"order needs each of 0 .. 2 once; got .* is missing$"):
        MaskedTrunk(4, 1, 2, order=order)


def test_what_does_not_fit_is_refused_in_one_line():
    with pytest.raises(ValueError, match="an entry for each of the 4 dimensions; got 3"):
        jax.eval_shape(MaskedTrunk(4, 1, 2, order=(2, 0, 1)).init, jax.random.key(0), rows(1, 4))
    with pytest.raises(ValueError, match="hidden needs to be at least 1; got 0"):
        MaskedTrunk(0, 1, 2)
    with pytest.raises(ValueError, match="unknown activation 'swich': did you mean 'swish'"):
        MaskedTrunk(4, 1, 2, activation="swich")
    trunk, x = MaskedTrunk(4, 1, 2), rows(1, 3)
    variables = random_variables(trunk, x, rows(1, 2), seed=0, mean=0.0, std=0.5)
    with pytest.raises(ValueError, match="condition needs an array, as in initialisation"):
        trunk.apply(variables, x)


@pytest.mark.parametrize("wide", [False, True])
def test_scores_and_cache_have_the_precision_of_the_data(wide):
    with jax.enable_x64(wide):
        dtype = jnp.dtype("float64" if wide else "float32")
        model = AutoregressiveModel(MaskedTrunk(4, 2, 2), ScoreHead(4))
        x = jax.ShapeDtypeStruct((2, 3), dtype)
        s, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), x)
        cache = jax.eval_shape(lambda x: model.apply({}, x, method="empty"), x)
        assert {leaf.dtype for leaf in jax.tree.leaves((s, cache))} == {dtype}
