# SPDX-License-Identifier: Apache-2.0
"""The rules of NCSNv2 for ladders, against the published ladders, simulation and brute force."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.spatial.distance import pdist

from scorejax import distances, schedules
from scorejax.evaluate import ladder
from tests.compilation import optimised_jit

# dim: (sigma_max, levels, steps per level, step size) of the published settings.
PUBLISHED = {
    3072: (50.0, 232, 5, 6.2e-6),
    12288: (90.0, 500, 5, 3.3e-6),
    27648: (140.0, 788, 4, 4.9e-6),
    49152: (190.0, 1086, 3, 1.8e-6),
    196608: (348.0, 2311, 3, 9e-7),
}
SIGMA_MIN = 0.01
published = pytest.mark.parametrize("dim", PUBLISHED)


def ratio_of(dim):
    sigma_max, levels, _, _ = PUBLISHED[dim]
    return (sigma_max / SIGMA_MIN) ** (1 / (levels - 1))


def test_the_official_ladders_and_step_sizes(golden):
    # Double precision on both sides; the file rounds step sizes of up to 155 in single precision.
    file = golden("e_sigmas")
    names = [key[4:-7] for key in file if key.startswith("out/") and key.endswith("_sigmas")]
    assert len(names) == 8
    # The eighth is evenly spaced, which ours never are, and has no step sizes.
    for name in (name for name in names if name != "uniform7"):
        sigmas = file[f"out64/{name}_sigmas"]
        ours = schedules.geometric_sigmas(sigmas[-1], sigmas[0], int(file[f"out/{name}_levels"]))
        np.testing.assert_allclose(ours, sigmas, rtol=1e-12)
        sizes = schedules.langevin_step_sizes(ours, float(file[f"out64/{name}_step_lr"]))
        np.testing.assert_allclose(sizes, file[f"out64/{name}_stepsizes"], rtol=1e-9)


@published
def test_the_published_number_of_levels_follows_from_the_dimension(dim):
    # 232.007, 500.036, 788.561, 1086.515, 2311.251 levels, with the part of one left out.
    sigma_max, levels, _, _ = PUBLISHED[dim]
    assert len(schedules.ncsnv2_sigmas(SIGMA_MIN, sigma_max, dim)) == levels


@published
def test_an_overlap_of_one_half_takes_fewer_levels(dim):
    # One digit in the specification's table.
    expected = {3072: 219.2, 12288: 472.2, 27648: 744.5, 49152: 1025.7, 196608: 2181.6}
    ratio = schedules.geometric_ratio(dim, overlap=0.5)
    levels = 1 + np.log(PUBLISHED[dim][0] / SIGMA_MIN) / np.log(ratio)
    assert levels == pytest.approx(expected[dim], abs=0.051)


@published
def test_the_ratios_and_overlaps_of_the_published_ladders(dim):
    # Five and four digits in the specification's table.
    ratios = {3072: 1.03756, 12288: 1.01841, 27648: 1.01220, 49152: 1.00912, 196608: 1.00454}
    overlaps = {3072: 0.5670, 12288: 0.5669, 27648: 0.5662, 49152: 0.5665, 196608: 0.5669}
    overlap = schedules.shell_overlap(ratio_of(dim), dim)
    assert overlap == pytest.approx(overlaps[dim], abs=5.1e-5)
    ratio = schedules.geometric_ratio(dim, overlap=overlap)
    assert ratio == pytest.approx(ratios[dim], abs=5.1e-6)
    # The overlap has a rounding of 1e-16 sqrt(2 dim) in its argument, which the inverse sees.
    assert ratio == pytest.approx(ratio_of(dim), rel=1e-14)


@pytest.mark.parametrize("dim", [64, 500, 3072, 10**6])
@pytest.mark.parametrize("overlap", [0.3, 0.5, 0.567, 0.9])
def test_the_ratio_has_the_overlap_asked_for(dim, overlap):
    # Solved to 1e-14 in the ratio; the overlap changes by sqrt(2 dim) times that.
    ratio = schedules.geometric_ratio(dim, overlap=overlap)
    assert schedules.shell_overlap(ratio, dim) == pytest.approx(overlap, abs=1e-10)


def test_in_few_dimensions_the_ratio_is_capped():
    assert [schedules.geometric_ratio(dim) for dim in (1, 4, 5, 10, 17)] == [2.0] * 5
    assert schedules.geometric_ratio(18) < 2.0
    assert schedules.geometric_ratio(10, largest=1.5) == 1.5
    assert schedules.geometric_ratio(3072, largest=1.01) == 1.01


def test_no_ladder_has_less_than_its_two_ends():
    np.testing.assert_allclose(schedules.ncsnv2_sigmas(0.9, 1.0, 5), [1.0, 0.9], rtol=1e-15)


@pytest.mark.parametrize("dim", [500, 3072])
def test_the_overlap_is_that_of_simulated_shells(dim):
    # |x| of N(0, s^2 I) is s times a chi variable. Of 1e6 draws the share has a standard error of
    # 5e-4. The mean radius is not sqrt(dim) but 1 / (4 sqrt(dim)) less, which moves the share by
    # .14 / sqrt(dim), and skewness by some more.
    ratio = schedules.geometric_ratio(dim)
    radius = np.sqrt(np.random.default_rng(0).chisquare(dim, 10**6))
    share = np.mean(np.abs(radius - np.sqrt(dim) * ratio) <= 3 * ratio / np.sqrt(2))
    assert share == pytest.approx(schedules.shell_overlap(ratio, dim), abs=0.002 + 0.2 / dim**0.5)


@pytest.mark.parametrize(
    ("distance", "mean", "bound"),
    [(1, 0.39813, 0.44125), (3, 0.09843, 0.16233), (6, 2.093e-3, 5.554e-3)],
)
def test_components_as_far_apart_as_the_noise_is_wide_share_responsibility(distance, mean, bound):
    # Two unit Gaussians: why sigma_max is the largest distance (Proposition 1). 1e6 draws.
    x = np.random.default_rng(0).normal(size=10**6)
    responsibility = 1 / (1 + np.exp(distance * (distance / 2 - x)))
    error = responsibility.std() / 1000
    assert responsibility.mean() == pytest.approx(mean, abs=4 * error + 5e-6)
    assert 0.5 * np.exp(-(distance**2) / 8) == pytest.approx(bound, rel=1e-3)
    assert responsibility.mean() < bound


@published
def test_the_variance_after_a_level_in_closed_form_is_the_recursion(dim):
    _, _, steps, size = PUBLISHED[dim]
    ratio, step = ratio_of(dim), size / SIGMA_MIN**2
    variance = ratio**2
    for _ in range(steps):
        variance = (1 - step) ** 2 * variance + 2 * step
    ours = schedules.langevin_variance_ratio(step, ratio, steps)
    assert ours == pytest.approx(variance, rel=1e-12)  # a few roundings
    # Five digits in the specification's table.
    expected = {3072: 1.05547, 12288: 1.03135, 27648: 1.02474, 49152: 1.01737, 196608: 1.00885}
    assert ours == pytest.approx(expected[dim], abs=5.1e-6)
    if dim == 3072:
        assert ours == pytest.approx(1.0554746249, abs=1e-10)


@published
def test_the_published_step_sizes_are_the_best_ones_but_for_the_church(dim):
    _, _, steps, size = PUBLISHED[dim]
    best = schedules.langevin_step_size(ratio_of(dim), steps)
    expected = {
        3072: 0.061839,
        12288: 0.033363,
        27648: 0.023114,
        49152: 0.017671,
        196608: 0.0089377,
    }
    # The specification's numbers come from a flat minimum; they are off by up to 9e-6.
    assert best == pytest.approx(expected[dim], abs=1e-5)
    # Two digits are published; the church's is twice the best (2.12).
    rounded = size / SIGMA_MIN**2 / best
    assert rounded == pytest.approx(2.12, abs=0.01) if dim == 27648 else abs(rounded - 1) < 0.02
    ahead = [
        schedules.langevin_variance_ratio(best * k, ratio_of(dim), steps) for k in (0.99, 1, 1.01)
    ]
    assert ahead[1] < min(ahead[0], ahead[2])
    if dim == 27648:
        assert ahead[1] == pytest.approx(1.02236, abs=5.1e-6)


@pytest.mark.parametrize("ratio", [1.001, 1.04, 1.5, 2.0, 10.0])
@pytest.mark.parametrize("num_steps", [1, 3, 5, 100])
def test_the_step_size_is_where_a_search_finds_the_least_variance(ratio, num_steps):
    # On a grid there is one minimum only, and a search near it knows its place to the square root
    # of the rounding of the values, 1e-8, over the root of their curvature.
    variance = lambda step: schedules.langevin_variance_ratio(step, ratio, num_steps)
    best = schedules.langevin_step_size(ratio, num_steps)
    values = np.array([variance(step) for step in np.geomspace(1e-6, 1 - 1e-6, 2000)])
    falls = np.diff(values) < 0
    assert falls[0] and np.sum(falls[1:] != falls[:-1]) <= 1
    found = minimize_scalar(
        variance, bounds=(best / 3, min(3 * best, 1)), method="bounded", options={"xatol": 1e-10}
    )
    assert found.x == pytest.approx(best, rel=1e-4)
    assert variance(best) <= min(values.min(), found.fun) * (1 + 1e-15)
    assert variance(best) > 1


def test_a_budget_is_spent_in_whole_steps_at_each_level():
    assert schedules.langevin_steps(232, 1160) == 5
    assert schedules.langevin_steps(232, 1159) == 4
    assert schedules.langevin_steps(232, 232) == 1


def test_the_steady_state_of_many_levels():
    ratio, step = ratio_of(3072), 6.2e-6 / SIGMA_MIN**2
    variance = 1.0
    for _ in range(500):
        variance *= ratio**2  # in units of the next level
        for _ in range(5):
            variance = (1 - step) ** 2 * variance + 2 * step
    steady = schedules.steady_variance_ratio(step, ratio, 5)
    assert steady == pytest.approx(variance, rel=1e-12)
    assert steady == pytest.approx(1.12830, abs=5e-6)
    assert schedules.steady_variance_ratio(0.01, 2.0, 1) == np.inf


@functools.partial(optimised_jit, static_argnums=(2, 4))
def chain_variances(sigmas, sizes, steps, rng, num):
    """Variance at the end of each level of `num` chains on a point mass: score -x / sigma^2."""

    def level(x, inputs):
        sigma, alpha, key = inputs
        step = lambda x, key: (
            x - alpha * x / sigma**2 + jnp.sqrt(2 * alpha) * jax.random.normal(key, x.shape),
            None,
        )
        x, _ = jax.lax.scan(step, x, jax.random.split(key, steps))
        return x, jnp.var(x)

    start = sigmas[0] * jax.random.normal(rng, (num,))
    keys = jax.random.split(rng, len(sigmas) + 1)[1:]
    return jax.lax.scan(level, start, (sigmas, sizes, keys))[1]


@pytest.mark.deep
def test_a_million_chains_have_the_variance_of_the_recursion_at_every_level():
    # A variance of 1e6 Gaussians has a relative standard error of sqrt(2e-6); four of them, at
    # twelve levels a false alarm in a thousand runs.
    sigmas, steps, num = schedules.geometric_sigmas(0.1, 1.0, 12), 3, 10**6
    relative = schedules.langevin_step_size(sigmas[0] / sigmas[1], steps)
    sizes = schedules.langevin_step_sizes(sigmas, relative * sigmas[-1] ** 2)
    measured = chain_variances(sigmas, sizes, steps, jax.random.key(0), num) / sigmas**2
    ratio, variance = sigmas[0] / sigmas[1], 1 / (sigmas[0] / sigmas[1]) ** 2
    for found in measured:
        variance = schedules.langevin_variance_ratio(relative, ratio * np.sqrt(variance), steps)
        assert found == pytest.approx(variance, rel=4 * np.sqrt(2 / num))
    steady = schedules.steady_variance_ratio(relative, ratio, steps)
    assert measured[-1] < 1.05 * steady
    # Steps of one size, that of the lowest level, cannot follow: the error grows on the way, to
    # nearly ten times the variance at the ninth level; the consistent ones stay within 30 %.
    constant = np.full_like(sizes, sizes[-1])
    errors = chain_variances(sigmas, constant, steps, jax.random.key(0), num) / sigmas**2
    assert (np.diff(errors[:8]) > 0).all() and errors[7] > 5 * measured[7]


CLOUDS = {
    "random": lambda rng: rng.normal(size=(700, 5)),
    "duplicates": lambda rng: np.repeat(rng.normal(size=(100, 5)), 7, axis=0),
    "far from zero": lambda rng: 1e3 + rng.normal(size=(700, 5)),
    "two points": lambda rng: rng.normal(size=(2, 3)),
    "one place": lambda rng: np.ones((5, 3)),
}


@pytest.mark.deep
@pytest.mark.parametrize("name", CLOUDS)
def test_the_largest_distance_is_that_of_all_pairs(name):
    # Single precision of centred coordinates: 1e-6 of the distance.
    x = CLOUDS[name](np.random.default_rng(0))
    expected = pdist(x).max()
    assert distances.max_pairwise_distance(x, block_size=64) == pytest.approx(expected, rel=2e-6)
    assert jax.local_device_count() == 2
    assert ladder.largest_distance(x) == pytest.approx(expected, rel=2e-6)
    bounds = distances.sampled_max_distance(jax.random.key(0), x, num_rows=20)
    assert bounds.lower <= expected * (1 + 2e-6) and expected <= bounds.upper * (1 + 2e-6)
    # A ball of the smallest radius r has two points sqrt(2) r apart or farther (Jung's theorem).
    assert bounds.upper <= 1.45 * expected + 1e-12
    assert bounds.quantile <= bounds.lower * (1 + 2e-6)


@pytest.mark.parametrize("num", [500, 2100])
def test_an_outlier_sets_the_largest_distance_and_the_quantile_of_small_samples_only(num):
    # Every row is in the sample: the outlier has a share of 2 / num of the pairs.
    x = np.random.default_rng(0).normal(size=(num, 5))
    x[0] = 1000
    bounds = distances.sampled_max_distance(jax.random.key(0), x, num_rows=num)
    # All rows meet the outlier, at 1000 sqrt(5) but for their own length, which is below 6.
    assert bounds.lower == pytest.approx(1000 * 5**0.5, abs=6)
    assert bounds.upper < 1.5 * 1000 * 5**0.5
    assert bounds.quantile < 12 if num > 2000 else bounds.quantile > 1000


def test_a_sample_of_every_row_has_the_quantile_and_the_distance_of_the_set():
    # Single precision, as above.
    x = np.random.default_rng(0).normal(size=(200, 5))
    found = distances.sampled_max_distance(jax.random.key(0), x, num_rows=1000)
    assert found.quantile == pytest.approx(np.quantile(pdist(x), 0.999), rel=2e-6)
    assert found.lower == pytest.approx(pdist(x).max(), rel=2e-6)


def test_two_devices_find_what_one_does():
    # The same sums in the same order, but for how the compiler splits them.
    x = np.random.default_rng(2).normal(size=(101, 6, 6, 1))
    one = distances.max_pairwise_distance(x)
    assert ladder.largest_distance(x) == pytest.approx(one, rel=1e-6)


def test_mirrored_images_count_where_training_mirrors():
    images = np.zeros((2, 2, 2, 1))
    images[0, :, 0] = images[1, :, 0] = 1
    assert ladder.largest_distance(images) == pytest.approx(0, abs=1e-7)
    assert ladder.largest_distance(images, flips=True) == pytest.approx(2, rel=1e-6)
    x = np.random.default_rng(1).normal(size=(30, 4, 4, 2))
    both = np.concatenate([x, x[:, :, ::-1]]).reshape(60, -1)
    assert ladder.largest_distance(x, flips=True) == pytest.approx(pdist(both).max(), rel=2e-6)


def test_the_report_of_a_data_set_is_what_the_rules_say():
    x = np.random.default_rng(0).uniform(size=(50, 8, 8, 1))
    found = ladder.ladder_report(jax.random.key(0), x, sigma_min=0.01, steps_per_level=5)
    report, pictures = found.scalars, found.pictures
    largest = pdist(x.reshape(50, -1)).max()
    assert report["sigma_max"] == pytest.approx(largest, rel=2e-6)
    assert report["num_scales"] == len(schedules.ncsnv2_sigmas(0.01, largest, 64))
    assert report["nfe"] == 5 * report["num_scales"] + 1
    assert report["relative_step"] == schedules.langevin_step_size(report["ratio"], 5)
    assert 1 < report["variance_ratio"] < report["steady_variance_ratio"]
    assert report["distance_of_999_in_1000_pairs"] <= largest * (1 + 2e-6)
    assert report["ratio"] ** (report["num_scales"] - 1) == pytest.approx(largest / 0.01, rel=1e-5)
    assert report["step_size"] == report["relative_step"] * 0.01**2
    assert pictures.keys() == {"ladder", "distances"}


def test_the_report_keeps_to_a_budget_and_counts_mirrored_pairs():
    # Two images whose mirror images alone are far apart; half of the pairs mirror one of them.
    x = np.zeros((2, 8, 8, 1))
    x[:, :, 0] = 1
    x[1, 0, 0] = 0.9
    call = lambda budget: ladder.ladder_report(
        jax.random.key(0), x, sigma_min=0.01, max_nfe=budget, flips=True
    )
    report = call(400).scalars
    assert report["distance_of_999_in_1000_pairs"] == pytest.approx(4, rel=1e-5)
    assert report["steps_per_level"] == 399 // report["num_scales"]
    assert 400 - report["num_scales"] < report["nfe"] <= 400
    with pytest.raises(ValueError, match="a step for each level"):
        call(report["num_scales"])


NAN = float("nan")


def sampled(**options):
    return distances.sampled_max_distance(jax.random.key(0), np.eye(3), **options)


def report(**options):
    images = np.eye(4).reshape(2, 2, 4, 1)
    return ladder.ladder_report(jax.random.key(0), images, sigma_min=0.01, **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: schedules.ncsnv2_sigmas(1.0, 0.5, 64), "sigma_min=1.0, sigma_max=0.5"),
        (lambda: schedules.ncsnv2_sigmas(0.01, 1.0, 0), "dim >= 1; got 0"),
        (lambda: schedules.ncsnv2_sigmas(0.01, NAN, 64), "sigma_max=nan"),
        (lambda: schedules.ncsnv2_sigmas(NAN, 1.0, 64), "sigma_min=nan"),
        (lambda: schedules.ncsnv2_sigmas(0.01, np.inf, 64), "sigma_max=inf"),
        (lambda: schedules.ncsnv2_sigmas(5e-8, 1.0, 64), "2\\^-24 = 6e-08; got 5e-08"),
        (lambda: schedules.shell_overlap(1.1, 0), "dim >= 1; got 0"),
        (lambda: schedules.shell_overlap(NAN, 64), "finite ratio of levels; got nan"),
        (lambda: schedules.geometric_ratio(0), "dim >= 1; got 0"),
        (lambda: schedules.geometric_ratio(64, overlap=0.0), "0 < overlap < 0.99; got 0.0"),
        (lambda: schedules.geometric_ratio(64, largest=1.0), "ratio above 1; got 1.0"),
        (lambda: schedules.geometric_ratio(64, largest=NAN), "ratio above 1; got nan"),
        (lambda: schedules.geometric_ratio(64, overlap=1.0), "overlap < 0.99; got 1.0"),
        (lambda: schedules.geometric_ratio(64, overlap=NAN), "got nan"),
        (lambda: schedules.langevin_step_sizes(np.array([1.0]), 0.1), ">= 2; got 1"),
        (lambda: schedules.langevin_step_sizes(np.array([1.0, 1.0]), 0.1), "levels that decrease"),
        (lambda: schedules.langevin_step_sizes(np.array([0.1, 1.0]), 0.1), "levels that decrease"),
        (lambda: schedules.langevin_step_sizes(np.array([1.0, NAN]), 0.1), "levels that decrease"),
        (lambda: schedules.langevin_step_sizes(np.array([1.0, 0.0]), 0.1), "positive levels"),
        (lambda: schedules.langevin_step_sizes(np.array([1.0, 0.1]), 0.0), "> 0; got 0.0"),
        (lambda: schedules.langevin_step_sizes(np.array([1.0, 0.1]), NAN), "got nan"),
        (lambda: schedules.langevin_step_size(1.0, 5), "above 1; got 1.0"),
        (lambda: schedules.langevin_step_size(1.1, 0), "at least 1 step per level; got 0"),
        (lambda: schedules.langevin_step_size(NAN, 5), "above 1; got nan"),
        (lambda: schedules.langevin_variance_ratio(2.0, 1.1, 5), "< 2; got 2.0"),
        (lambda: schedules.langevin_variance_ratio(NAN, 1.1, 5), "< 2; got nan"),
        (lambda: schedules.langevin_variance_ratio(0.1, NAN, 5), "finite ratio of levels; got nan"),
        (lambda: schedules.steady_variance_ratio(0.1, 0.0, 5), "finite ratio of levels; got 0.0"),
        (lambda: schedules.steady_variance_ratio(0.1, 1.1, 0), "at least 1 step per level; got 0"),
        (lambda: schedules.langevin_steps(232, 231), "num_scales=232, max_nfe=231"),
        (lambda: schedules.langevin_steps(0, 231), "num_scales=0, max_nfe=231"),
        (lambda: distances.max_pairwise_distance(np.ones((1, 2))), "at least 2 points; got 1"),
        (lambda: distances.max_pairwise_distance(np.array([[1.0], [NAN]])), "finite points"),
        (lambda: distances.max_pairwise_distance(np.eye(2), block_size=0), ">= 1; got 0"),
        (lambda: sampled(num_rows=1), "num_rows=1, num_steps=100"),
        (lambda: sampled(num_steps=0), "num_rows=256, num_steps=0"),
        (lambda: report(), "steps_per_level=None, max_nfe=None"),
        (lambda: report(steps_per_level=5, max_nfe=100), "steps_per_level=5, max_nfe=100"),
        (lambda: report(steps_per_level=0), "at least 1 step per level; got 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_ladder_is_refused_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
