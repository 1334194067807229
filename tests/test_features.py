# SPDX-License-Identifier: Apache-2.0
"""Features made fit for densities: units that are dead, atoms, principal components, residuals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorejax.data.features import FeaturePreparation
from scorejax.density import gaussian
from scorejax.random import row_keys

RNG = jax.random.key(0)


def rows(num=400, seed=0):
    """Four units that vary, in a correlated way, and two that do not."""
    rng = np.random.default_rng(seed)
    live = rng.normal(size=(num, 4)) @ np.random.default_rng(9).normal(size=(4, 4)) + 1
    return np.insert(live, [1, 3], [0.0, 7.0], axis=1)


def test_training_rows_are_whitened_without_their_dead_units(x64):
    x = rows()
    prepared = FeaturePreparation.of(x, explained=1.0)(jnp.asarray(x))
    np.testing.assert_allclose(np.mean(prepared.x, axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(np.cov(prepared.x.T), np.eye(4), atol=1e-10)
    np.testing.assert_allclose(prepared.residual_norm, 0, atol=1e-10)
    np.testing.assert_array_equal(prepared.dead_norm, 0)


def test_the_log_determinant_makes_densities_those_of_the_features(x64):
    x = rows()[:, [0, 2, 3, 5]]
    prepare = FeaturePreparation.of(x, explained=1.0)
    white = prepare(jnp.asarray(x)).x
    found = gaussian.log_prob(gaussian.fit(RNG, white), white) + prepare.log_det
    expected = gaussian.log_prob(gaussian.fit(RNG, x), jnp.asarray(x))
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_what_the_components_and_the_live_units_leave_out_is_measured(x64):
    x = rows()
    prepare = FeaturePreparation.of(x, explained=0.8)
    live = x[:, prepare.kept]
    values, vectors = np.linalg.eigh(np.corrcoef(live.T))
    num = prepare.directions.shape[1]
    shares = np.cumsum(values[::-1]) / values.sum()
    assert 1 <= num < 4 and shares[num - 1] >= 0.8 and (num == 1 or shares[num - 2] < 0.8)
    new = rows(5, seed=1)
    new[2, 1], new[3, 4] = 3.0, 3.0  # one dead unit by 3, one by -4
    found = prepare(jnp.asarray(new))
    outside = (new[:, prepare.kept] - live.mean(axis=0)) / live.std(axis=0) @ vectors[:, : 4 - num]
    np.testing.assert_allclose(found.residual_norm, np.linalg.norm(outside, axis=1), rtol=1e-9)
    np.testing.assert_allclose(found.dead_norm, [0, 0, 3, 4, 0], atol=1e-12)


def test_a_few_components_have_the_density_of_the_projection_that_they_see(x64):
    # That of the rows' coordinates along an orthonormal basis of the row space of the map, which
    # automatic differentiation finds without the class.
    x = rows() * [1.0, 1.0, 1e3, 1.0, 1e-3, 1.0]
    prepare = FeaturePreparation.of(x, explained=0.8)
    jacobian = np.asarray(jax.jacobian(lambda row: prepare(row[None]).x[0])(jnp.asarray(x[0])))
    assert jacobian.shape[0] < 4
    gram = np.linalg.slogdet(jacobian @ jacobian.T)[1]
    assert prepare.log_det == pytest.approx(gram / 2, rel=1e-9)
    basis = np.linalg.qr(jacobian.T)[0]
    coordinates = jnp.asarray(x @ basis)
    expected = gaussian.log_prob(gaussian.fit(RNG, coordinates, ridge=0.0), coordinates)
    white = prepare(jnp.asarray(x)).x
    found = gaussian.log_prob(gaussian.fit(RNG, white, ridge=0.0), white) + prepare.log_det
    # Sums of some squares in double precision, with scales that are a million apart.
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_each_unit_is_judged_on_its_own_scale(x64):
    x = rows()
    scales = np.array([1e-6, 1.0, 1e5, 1.0, 2.0, 0.1])
    for explained in (0.8, 1.0):
        plain, scaled = (
            FeaturePreparation.of(x * s, explained=explained) for s in (np.ones(6), scales)
        )
        np.testing.assert_array_equal(scaled.dead, plain.dead)
        white = scaled(jnp.asarray(x * scales[None])).x, plain(jnp.asarray(x)).x
        # Directions have no sign.
        np.testing.assert_allclose(*map(np.abs, white), rtol=1e-9, atol=1e-9)
        if explained == 1.0:
            moved = -np.log(scales[plain.kept]).sum()
            assert scaled.log_det - plain.log_det == pytest.approx(moved, rel=1e-12)
    # Nor does a single value that is far from all others make other units dead.
    x[0, 5] = 1e6
    np.testing.assert_array_equal(FeaturePreparation.of(x).kept, [0, 2, 3, 5])


def test_a_unit_is_dead_if_single_precision_is_the_cause_of_its_values():
    noise = np.random.default_rng(0).normal(size=400)
    x = np.stack([noise, 0.1 + 1e-8 * noise, 1e7 + noise, 1e-42 * noise, 1e-30 * noise], axis=1)
    prepare = FeaturePreparation.of(x, explained=1.0)
    np.testing.assert_array_equal(prepare.dead, [1, 2, 3])
    assert np.isfinite(prepare(x.astype(np.float32)).x).all()
    with pytest.raises(ValueError, match=r"varies in single precision; .* of all 2 units"):
        FeaturePreparation.of(x[:, 1:3])


def test_only_units_with_atoms_get_noise_and_a_row_gets_that_of_its_key():
    x = rows()
    x[:, 5] = np.maximum(x[:, 5], 1.0)  # as ReLU does, to half of the rows
    prepare = FeaturePreparation.of(x, explained=1.0, noise=0.01)
    np.testing.assert_allclose(prepare.noise, [0, 0, 0, 0.01 * x[:, 5].std()])
    compiled = jax.jit(prepare)
    clean, noisy = compiled(x), compiled(x, RNG)
    back = lambda white: prepare.whitening.inverse(np.asarray(white, float)) @ prepare.directions.T
    moved = (back(noisy.x) - back(clean.x)) * prepare.std
    # 400 squares of normal numbers: their mean is 1 within five of sqrt(2 / 400).
    assert abs(np.mean((moved[:, 3] / prepare.noise[3]) ** 2) - 1) < 5 * np.sqrt(2 / 400)
    np.testing.assert_allclose(moved[:, :3], 0, atol=1e-4)  # rounding of float32
    np.testing.assert_array_equal(noisy.residual_norm, clean.residual_norm)
    reverse = compiled(x[::-1], row_keys(RNG, len(x))[::-1])
    np.testing.assert_allclose(reverse.x[::-1], noisy.x, atol=1e-5)


def test_the_map_compiles_and_has_a_gradient_where_residuals_vanish():
    x = rows().astype(np.float32)
    prepare = FeaturePreparation.of(x, explained=1.0)
    total = lambda x: sum(jnp.sum(leaf) for leaf in prepare(x))
    assert np.isfinite(jax.jit(jax.grad(total))(x[:2])).all()


def test_rows_of_unit_norm_lose_their_scale():
    x = rows().astype(np.float32)
    prepare = FeaturePreparation.of(x, unit_norm=True)
    # The same rows up to the rounding of single precision.
    np.testing.assert_allclose(prepare(4 * x).x, prepare(x).x, atol=1e-5)
    assert np.isfinite(prepare(0 * x[:1]).x).all()


def test_dependent_columns_leave_no_direction_without_variance():
    x = rows()
    assert FeaturePreparation.of(np.concatenate([x, x], axis=1), explained=1.0).log_det < np.inf
    few = x[:3]  # three rows span a plane
    assert FeaturePreparation.of(few, explained=1.0).directions.shape[1] == 2


def bad():
    x = rows()
    spoilt = x.copy()
    spoilt[:2, 0] = np.inf
    return {
        "2 of 400 rows": lambda: FeaturePreparation.of(spoilt),
        "all 6 units are constant": lambda: FeaturePreparation.of(np.full((5, 6), 0.1)),
        r"got shape \(1, 6\)": lambda: FeaturePreparation.of(x[:1]),
        "explained share of variance needs to lie": lambda: FeaturePreparation.of(x, explained=99),
        "noise needs to be at least 0; got -1": lambda: FeaturePreparation.of(x, noise=-1),
        r"rows \(b, 6\) as in training; got \(400, 5\)": lambda: FeaturePreparation.of(x)(x[:, 1:]),
    }


@pytest.mark.parametrize("message", bad())
def test_what_cannot_be_prepared_is_refused(message):
    with pytest.raises(ValueError, match=message):
        bad()[message]()
