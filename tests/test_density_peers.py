# SPDX-License-Identifier: Apache-2.0
"""The densities that models of tables are compared with, and the runs that are compared."""

import types

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm

from benchmarks import density_peers as peers
from configs.ar_csm import magic
from scorejax.data import tables


def two_clusters(num=400):
    """Rows of 0.5 N(-e, I / 4) + 0.5 N(e, I / 4) in 2 dimensions, e = (2, 2), prepared."""
    rng = np.random.default_rng(0)
    rows = rng.choice([-2, 2], (num, 1)) + 0.5 * rng.normal(size=(num, 2))
    return tables.prepare(rows, "ab", preparation="standardised", dequantize=False)


def test_the_gaussian_is_that_of_the_training_rows():
    table = two_clusters()
    log_prob, _ = peers.gaussian(table, 0)
    rows = table.train.astype(float)
    off = rows - rows.mean(axis=0)
    # At its own maximum of likelihood a Gaussian's mean log-density is -log|2 pi e C| / 2.
    covariance = off.T @ off / len(rows)
    expected = -np.linalg.slogdet(2 * np.pi * np.e * covariance)[1] / 2
    np.testing.assert_allclose(log_prob(rows).mean(), expected, rtol=1e-10)


def test_the_mixture_finds_the_clusters_and_its_density_is_normalised(monkeypatch):
    monkeypatch.setattr(peers, "REGULARISERS", (1e-6,))  # Others are for tables of many columns.
    table = two_clusters()
    log_prob, note = peers.mixture(table, 0)
    assert not note.startswith("1 ")
    std = table.preparation.std
    centres = [table.preparation(np.full((1, 2), value))[0] for value in (-2.0, 2.0)]
    parts = [multivariate_normal(c, np.diag(0.25 / std**2)).logpdf(table.test) for c in centres]
    truth = (np.logaddexp(*parts) - np.log(2)).mean()
    # Two Gaussians have 11 parameters, each worth 1/2 / 320 nats; validation may take twice as
    # many components. 0.15 is four times that, and a Gaussian is 0.6 below.
    assert abs(log_prob(table.test).mean() - truth) < 0.15
    axis = np.linspace(-4, 4, 161)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    # The trapezoidal rule with steps a quarter of the narrowest std: far below 1e-3.
    np.testing.assert_allclose(np.exp(log_prob(grid)).sum() * 0.05**2, 1, atol=1e-3)


def model_of(table):
    """A standard normal of a table's rows, with what a run's model has."""
    measure = lambda variables, rows: {"log_prob": jnp.sum(-0.5 * rows["x"] ** 2, axis=1)}
    return types.SimpleNamespace(data=table.view(), likelihood=lambda: measure)


def test_a_run_is_measured_on_the_split_that_is_its_own():
    splits = {("wine", seed): peers.load("wine", seed) for seed in (0, 1)}
    table = splits["wine", 1]
    assert peers.split_of(model_of(table), splits) == ("wine", 1)
    piece = peers.of_model(model_of(table), ({}, {}), table)
    expected = norm.logpdf(table.test).sum(axis=1) + table.dim * np.log(2 * np.pi) / 2
    # Single precision of 13 terms.
    np.testing.assert_allclose(piece["nats"], expected.mean(), rtol=1e-5)
    np.testing.assert_allclose(piece["median"], np.median(expected), rtol=1e-5)


def test_a_run_of_another_split_is_refused():
    splits = {("wine", 0): peers.load("wine", 0)}
    with pytest.raises(ValueError, match="test rows are none of: wine seed 0, standardised"):
        peers.split_of(model_of(tables.load("wine")), splits)
    with pytest.raises(ValueError, match="1 test rows have no finite log-density"):
        peers.judged(np.array([0.0, -np.inf]))


def test_runs_of_other_objectives_or_heads_are_other_densities():
    variants = ("csm", "denoising", "mixture")
    labels = [peers.label(magic.get_config(variant)) for variant in variants]
    assert labels == ["ar_csm csm score", "ar_csm denoising score", "ar_csm likelihood mixture"]
    assert peers.label({"system": "nice"}) == "nice"


def test_a_report_compares_seed_by_seed(capsys):
    piece = lambda nats: {"nats": nats, "standard_error": 0.1, "median": nats, "note": ""}
    pieces = {"wine/gaussian/0": piece(-3.0), "wine/gaussian/1": piece(-5.0)}
    pieces |= {"wine/ar_csm/0": piece(-2.0), "wine/ar_csm/1": piece(-4.0)}
    peers.report(pieces)
    gaussian, ours = capsys.readouterr().out.splitlines()[2:]
    assert gaussian.startswith("| wine | gaussian | -4.00 ± ") and "| ar_csm | -3.00 ± " in ours
    assert "| 1.00 ± 0.000 |" in ours
