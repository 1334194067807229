# SPDX-License-Identifier: Apache-2.0
"""Tables: white in training, untouched by the test rows, and drawn alike from a seed."""

import jax
import numpy as np
import pytest

from scorejax.data import preparation, tables

rng = np.random.default_rng(0)


@pytest.mark.parametrize("name, rows, columns", [("wine", 178, 13), ("breast_cancer", 569, 30)])
def test_a_table_is_white_where_it_is_trained_on(name, rows, columns):
    table = tables.load(name, seed=1)
    held = round(0.1 * rows)
    assert [len(part) for part in (table.train, table.valid, table.test)] == [
        rows - 2 * held, held, held,
    ]  # fmt: skip
    # Single precision of values of some units: 1e-5.
    np.testing.assert_allclose(table.train.mean(axis=0), 0, atol=1e-5)
    covariance = np.cov(table.train, rowvar=False)
    np.testing.assert_allclose(covariance, np.eye(table.dim), atol=1e-5)
    # Test rows are not: their mean is off by a standard error of 1 / sqrt(n) each.
    assert np.abs(table.test.mean(axis=0)).max() > 0.5 / np.sqrt(held)
    assert len(table.columns) == table.dim <= columns


def test_what_says_the_same_is_dropped():
    table = tables.load("breast_cancer")
    assert "mean radius" in table.columns
    assert not {"mean perimeter", "mean area"} & set(table.columns)
    x = rng.normal(size=(50, 2))
    rows = np.stack([x[:, 0], -3 * x[:, 0] + 1, np.ones(50), x[:, 1]], axis=1)
    assert preparation.distinct_columns(rows).tolist() == [0, 3]


def test_rounded_values_are_spread_over_their_cells_and_others_left():
    rows = np.stack([rng.integers(0, 5, 2000) * 0.5, rng.normal(size=2000)], axis=1)
    widths = preparation.cell_widths(rows)
    assert widths.tolist() == [0.5, 0.0]
    spread = preparation.dequantized(rng, rows, widths)
    np.testing.assert_array_equal(spread[:, 1], rows[:, 1])
    off = (spread - rows)[:, 0]
    # Uniform on (-1/4, 1/4): variance 1/48, whose estimate from 2000 has an error of 2 %.
    assert np.abs(off).max() <= 0.25
    np.testing.assert_allclose(off.var(), 1 / 48, rtol=0.1)


def test_the_split_and_the_fit_are_functions_of_the_seed():
    first, again, other = (tables.load("wine", seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.test, again.test)
    assert not np.array_equal(first.preparation.mean, other.preparation.mean)


def test_whitening_changes_a_gaussian_density_by_its_log_det():
    # log N(x; m, C) = log N(w(x); 0, I) + log_det, with m and C those of the rows that w is of.
    rows = rng.normal(size=(200, 3)) @ rng.normal(size=(3, 3)) + 5
    whiten = preparation.Whitening.of(rows)
    mean, covariance = rows.mean(axis=0), np.cov(rows, rowvar=False)
    off = rows[:4] - mean
    expected = -0.5 * np.einsum("bi,ij,bj->b", off, np.linalg.inv(covariance), off)
    expected -= 0.5 * np.linalg.slogdet(2 * np.pi * covariance)[1]
    white = whiten(rows[:4])
    found = -0.5 * np.sum(white**2, axis=1) - 1.5 * np.log(2 * np.pi) + whiten.log_det
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_batches_are_training_rows_with_new_noise():
    table = tables.load("wine")
    source = table.training_source(300, noise=0.05)
    _, batch = source.next(source.init(0, jax.random.key(0)), None, None)
    distance = np.linalg.norm(batch["image"][:, None] - table.train[None], axis=-1)
    # 300 draws are all 142 rows at least twice; noise of 13 coordinates is 0.18 long, 0.36 at most.
    assert set(distance.argmin(axis=1)) == set(range(len(table.train)))
    assert distance.min(axis=1).min() > 0 and distance.min(axis=1).max() < 0.36


@pytest.mark.parametrize(
    "options, message",
    [
        ({"name": "wines"}, "unknown table 'wines': did you mean 'wine'"),
        ({"name": "wine", "held_out": 0.5}, "held_out needs to lie between 0 and 0.5; got 0.5"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(options, message):
    with pytest.raises(ValueError, match=message):
        tables.load(**options)


def test_rows_in_a_plane_and_bad_noise_are_refused():
    rows = np.repeat(rng.normal(size=(20, 1)), 2, axis=1)
    with pytest.raises(ValueError, match="whitening needs more rows than columns"):
        preparation.Whitening.of(rows)
    with pytest.raises(ValueError, match="noise needs to be 0 or a positive number; got -1"):
        tables.load("wine").training_source(4, noise=-1)
