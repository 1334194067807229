# SPDX-License-Identifier: Apache-2.0
"""Inception score, kernel distance, and what a Fréchet distance tends to.

Reference numbers are those of torch-fidelity 0.4.0 on the same features.
"""

from typing import NamedTuple

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy import stats

from scorejax.data.view import ImageView
from scorejax.evaluate import frechet, sample_quality, sample_report
from scorejax.evaluate.inception_score import inception_score
from scorejax.evaluate.kernel_distance import kernel_distance, squared_mmd
from scorejax.random import row_keys
from scorejax.runs import Run


def features():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(300, 16)), 1.2 * rng.normal(size=(200, 16)) + 0.3
    return first, second, 3 * rng.normal(size=(100, 7))


def test_numbers_are_those_of_another_implementation():
    first, second, logits = features()
    assert inception_score(logits).mean == pytest.approx(2.8672917244587492, rel=1e-12)
    split = inception_score(logits, num_splits=10)
    assert split == pytest.approx((2.501123745268127, 0.22222809644025712), rel=1e-12)
    # Its square root is that of eigenvalues of an unsymmetric matrix: half of the digits are right.
    assert frechet.frechet_distance(first, second) == pytest.approx(3.0453248450748873, rel=1e-7)
    assert squared_mmd(first[:200], second) == pytest.approx(0.469379549105152, rel=1e-12)


def test_the_inception_score_has_its_extremes():
    # One class and sure of it: 1. All of k classes in equal parts, and sure of each: k.
    sure = 50 * np.eye(5)
    assert inception_score(np.tile(sure[0], (8, 1))).mean == pytest.approx(1)
    assert inception_score(np.tile(sure, (4, 1))).mean == pytest.approx(5)
    with pytest.raises(ValueError, match="n at least num_splits=9; got"):
        inception_score(sure, num_splits=9)


def test_the_kernel_distance_of_one_law_to_itself_is_zero_in_the_mean():
    # 200 pairs of samples; a two-sided t-test at 1e-6.
    rng = np.random.default_rng(0)
    pairs = rng.normal(size=(200, 2, 30, 4))
    found = [squared_mmd(*pair) for pair in pairs]
    assert stats.ttest_1samp(found, 0).pvalue > 1e-6
    # By definition, term by term.
    x, y = pairs[0]
    kernel = lambda a, b: (a @ b / 4 + 1) ** 3
    off = lambda z: np.mean(
        [kernel(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j]
    )
    across = np.mean([kernel(a, b) for a in x for b in y])
    assert squared_mmd(x, y) == pytest.approx(off(x) + off(y) - 2 * across)


def test_the_kernel_distance_of_subsets_covers_that_of_all():
    first, second, _ = features()
    found = kernel_distance(first, second, num_subsets=200, subset_size=50)
    # Subsets are not independent of each other; six of their standard errors are more than enough.
    assert abs(found.mean - squared_mmd(first, second)) < 6 * found.standard_error
    with pytest.raises(ValueError, match="at least two rows each"):
        squared_mmd(first[:1], second)
    with pytest.raises(ValueError, match="at least two rows each"):
        squared_mmd(first, second[:, :3])


def test_the_limit_of_the_frechet_distance_has_lost_its_bias():
    # Gaussians of 20 dimensions: the closed form is known, and 500 samples are far above it.
    rng = np.random.default_rng(0)
    reference = frechet.Moments(np.zeros(20), np.eye(20))
    shift, scale = 0.2, 1.1
    exact = 20 * (shift**2 + (scale - 1) ** 2)
    finite, limits = [], []
    for seed in range(40):
        samples = shift + scale * rng.normal(size=(500, 20))
        finite.append(frechet.gaussian_frechet_distance(reference, frechet.moments(samples)))
        limits.append(frechet.frechet_distance_infinity(reference, samples, seed=seed).distance)
    # A t-test at 1e-6; the bias of the plain distance is plain.
    assert np.mean(finite) - exact > 5 * stats.sem(finite)
    assert stats.ttest_1samp(limits, exact).pvalue > 1e-6
    assert abs(np.mean(limits) - exact) < (np.mean(finite) - exact) / 5


def test_statistics_are_read_as_they_were_written(tmp_path):
    first, _, _ = features()
    path = tmp_path / "stats.npz"
    frechet.save_statistics(path, frechet.moments(first))
    for value, expected in zip(frechet.load_statistics(path), frechet.moments(first), strict=True):
        np.testing.assert_array_equal(value, expected)
    np.testing.assert_allclose(frechet.load_statistics(path).covariance, np.cov(first.T))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"mu": np.zeros(3)}, "it lacks sigma"),
        ({"pool_3": np.zeros((3, 2))}, "it lacks mu, sigma"),
        ({"mu": np.zeros(3), "sigma": np.eye(2)}, r"got \(3,\) and \(2, 2\)"),
        ({"mu": np.full(2, np.nan), "sigma": np.eye(2)}, "finite mu and sigma"),
        (b"no npz at all", "is not a file of reference statistics"),
        (b"PK\x03\x04 cut short", "is not a file of reference statistics"),
        (b"", "is not a file of reference statistics"),
    ],
)
def test_a_file_that_is_no_statistics_is_named_in_one_line(content, message, tmp_path):
    path = tmp_path / "stats.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.savez(path, **content)
    with pytest.raises(ValueError, match=message) as raised:
        frechet.load_statistics(path)
    assert "\n" not in str(raised.value) and str(path) in str(raised.value)


def test_metrics_by_name_take_what_they_need():
    first, second, logits = features()
    samples = sample_quality.Features(frechet.moments(second), second, logits)
    whole = sample_quality.Features(frechet.moments(first), first)
    for name, metric in sample_quality.METRICS.items():
        found = metric(whole, samples)
        assert all(np.isfinite(value) for value in found.values())
        if name not in sample_quality.NEED_FEATURES:
            assert metric(whole._replace(pool=None), samples) == found
            continue
        with pytest.raises(ValueError, match=f"{name} needs the features of real images"):
            metric(whole._replace(pool=None), samples)
    assert sample_quality.METRICS["fid"](whole, samples)["fid"] == pytest.approx(3.04532484507)


class Identity:
    """Stands for a network: its features are the image that it is given."""

    def apply(self, variables, x):
        assert x.shape[-1] == 3
        return frechet.Moments(x, x)  # any pair by name


def test_images_are_stored_before_they_are_looked_at():
    # Levels are cut, not rounded; failures are black, or white where they are too large.
    x = np.array([0.0, 0.9999 / 255, 1.0001 / 255, 0.5, 1.2, -3.0, np.nan, np.inf])
    x = x.reshape(8, 1, 1, 1)
    stored = sample_quality.stored_levels(x)
    assert stored.dtype == np.uint8
    np.testing.assert_array_equal(stored.ravel(), [0, 0, 1, 127, 255, 0, 0, 255])
    # Grey is three equal channels.
    found = sample_quality.inception_features(Identity())({}, stored)["mean"]
    np.testing.assert_allclose(255 * found[:, 0, 0, 1], stored.ravel(), atol=1e-4)


@pytest.mark.parametrize("levels", [17, 256])
def test_data_are_looked_at_as_samples_that_are_alike(levels):
    images = np.arange(levels, dtype=np.uint8).reshape(-1, 1, 1, 1)
    found = sample_quality.inception_features(Identity(), levels)({}, images)["mean"]
    cut = np.floor(255 * images.astype(float) / (levels - 1) + 1e-9)
    np.testing.assert_allclose(255 * found, np.broadcast_to(cut, found.shape), atol=1e-4)


def test_samples_that_failed_are_counted():
    images = np.full((3, 2, 2, 1), 0.5)
    images[1, 0, 0] = np.nan
    draw = lambda variables, rngs: {"image": images[rngs]}
    look = sample_quality.look_at_samples(sample_quality.inception_features(Identity()), draw)
    found = look(({}, {}), {"rng": np.array([2, 1, 0])})
    np.testing.assert_array_equal(found["finite"], [True, False, True])
    assert np.isfinite(found["mean"]).all()


def test_few_images_are_a_caveat_of_fid_alone():
    (line,) = sample_quality.caveats(("fid", "is"), 2047, 50_000)
    assert line.startswith("FID of 2047 samples, fewer than its 2048 features, is biased")
    assert len(sample_quality.caveats(("fid_infinity",), 100, 2000)) == 2
    assert not sample_quality.caveats(("fid",), 2048) + sample_quality.caveats(("kid",), 100, 100)


class Seen(NamedTuple):
    pool: jax.Array
    logits: jax.Array


class Pixels:
    """Stands for InceptionV3: features are sums of rows of pixels, logits sums of columns."""

    def apply(self, variables, x):
        return Seen(x[..., 0].sum(axis=1), x[..., 0].sum(axis=2))


def test_a_report_is_of_all_samples_and_all_training_images_and_resumes(tmp_path, capsys):
    view, num, drawn = ImageView("digits", 8), 30, []

    def draw(variables, rngs):
        drawn.append(len(rngs))
        return {"image": jax.vmap(lambda rng: jax.random.uniform(rng, (8, 8, 1)))(rngs)}

    train = view.stored("train").image
    metrics = ("fid", "is", "precision_recall")
    judge = sample_report.Judge(metrics, draw, {}, Pixels(), {}, view, train, None)
    run, out = Run(ConfigDict(), {}, 0), str(tmp_path / "fid")
    report, parts = sample_report.sample_report(judge, run, num, seed=5, batch_size=8, out=out)
    said = capsys.readouterr().err
    assert (
        "warning: FID of 30 samples" in said and f"warning: FID of {len(train)} real images" in said
    )
    assert len(report["caveats"]) == 2

    rngs = row_keys(jax.random.key(5), num)
    x = np.floor(255 * np.asarray(draw({}, rngs)["image"][..., 0])) / 255
    real = np.floor(255 * train[..., 0].astype(float) / 16) / 255
    # Features are sums of eight numbers in single precision.
    distance = frechet.frechet_distance(real.sum(axis=1), x.sum(axis=1))
    assert report["fid"] == pytest.approx(distance, rel=1e-5)
    assert report["inception_score"] == pytest.approx(inception_score(x.sum(axis=2)).mean, rel=1e-5)
    covered = frechet.precision_recall(real.sum(axis=1), x.sum(axis=1))
    assert (report["precision"], report["recall"]) == covered
    assert report["num_samples"] == num and report["num_not_finite"] == 0
    saved = frechet.load_statistics(f"{out}_reference.npz")
    np.testing.assert_allclose(saved.covariance, np.cov(real.sum(axis=1).T), atol=1e-5)

    drawn.clear()
    judge = judge._replace(metrics=("fid",))
    again, _ = sample_report.sample_report(judge, run, num, seed=5, batch_size=8, out=out)
    assert again["fid"] == report["fid"] and not drawn
    for part in parts:
        part.remove()
    assert [path.name for path in tmp_path.iterdir()] == ["fid_reference.npz"]


def test_statistics_of_another_network_are_refused(tmp_path):
    path = tmp_path / "stats.npz"
    frechet.save_statistics(path, frechet.Moments(np.zeros(64), np.eye(64)))
    with pytest.raises(ValueError, match="has 64 features per image, InceptionV3 has 2048"):
        sample_quality.load_reference(path)
