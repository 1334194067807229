# SPDX-License-Identifier: Apache-2.0
"""Scores of masks and instances against scikit-learn, brute force and counting by hand."""

import itertools
import tracemalloc

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import f1_score, jaccard_score, precision_score, recall_score

from scorejax.data.nuclei import nuclei
from scorejax.evaluate import segmentation, segmentation_pictures


def discs(size, *circles):
    """Instances of discs (row, column, radius); later ones lie over earlier ones."""
    row, column = np.mgrid[:size, :size]
    instances = np.zeros((size, size), np.int32)
    for number, (y, x, radius) in enumerate(circles, start=1):
        instances[(row - y) ** 2 + (column - x) ** 2 <= radius**2] = number
    return instances


def random_instances(seed, size=24):
    """Squares over one another: cut, touching, and with gaps in their numbers."""
    rng = np.random.default_rng(seed)
    instances = np.zeros((size, size), np.int32)
    for number in rng.permutation(12)[: rng.integers(0, 9)]:
        top, left = rng.integers(0, size - 4, 2)
        instances[top : top + rng.integers(3, 9), left : left + rng.integers(3, 9)] = 3 * number + 1
    return instances


def disturbed(instances, seed):
    """Shifted by a pixel or two, some instances lost: what a fair network might predict."""
    rng = np.random.default_rng(seed)
    moved = np.roll(instances, rng.integers(-2, 3, 2), axis=(0, 1))
    return np.where(np.isin(moved, rng.permutation(40)[:8]), 0, moved)


def pixel_sets(instances):
    return [set(np.flatnonzero(instances == i)) for i in np.unique(instances) if i > 0]


def brute_force_aji(truth, prediction):
    truth, prediction = pixel_sets(truth), pixel_sets(prediction)
    if not truth and not prediction:
        return 1.0
    inter = union = 0
    used = set()
    for g in truth:
        ious = [len(g & p) / len(g | p) for p in prediction]
        best = int(np.argmax(ious)) if ious else None
        if best is None or ious[best] == 0:
            union += len(g)
            continue
        inter += len(g & prediction[best])
        union += len(g | prediction[best])
        used.add(best)
    union += sum(len(p) for i, p in enumerate(prediction) if i not in used)
    return inter / union


def brute_force_pq(truth, prediction):
    """By an optimal assignment, which needs no uniqueness argument."""
    truth, prediction = pixel_sets(truth), pixel_sets(prediction)
    if not truth and not prediction:
        return 1.0
    ious = np.array([[len(g & p) / len(g | p) for p in prediction] for g in truth])
    ious = ious.reshape(len(truth), len(prediction))
    good = np.where(ious > 0.5, ious, 0)
    rows, columns = linear_sum_assignment(good, maximize=True)
    kept = good[rows, columns]
    hits = int((kept > 0).sum())
    misses = len(truth) - hits + len(prediction) - hits
    return kept.sum() / (hits + misses / 2)


def test_pixel_scores_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    for share in (0.02, 0.3, 0.9):
        truth, found = rng.random((2, 20, 30)) < share
        scores = segmentation.pixel_scores(truth, found)
        pair = truth.ravel(), found.ravel()
        expected = [f(*pair) for f in (jaccard_score, f1_score, precision_score, recall_score)]
        # The same four integers divided once: only the order of operations may differ.
        np.testing.assert_allclose(scores, expected, rtol=1e-12)


def test_two_empty_masks_agree_and_one_does_not():
    empty, full = np.zeros((4, 4), bool), np.ones((4, 4), bool)
    assert segmentation.pixel_scores(empty, empty) == (1, 1, 1, 1)
    assert segmentation.pixel_scores(empty, full) == (0, 0, 0, 0)
    assert segmentation.pixel_scores(full, empty) == (0, 0, 0, 0)
    for score in (
        segmentation.aggregated_jaccard,
        lambda a, b: segmentation.panoptic_quality(a, b).pq,
    ):
        assert score(1 * empty, 1 * empty) == 1
        assert score(1 * empty, 1 * full) == score(1 * full, 1 * empty) == 0


def test_aji_and_pq_are_those_of_a_brute_force_over_sets_of_pixels():
    for seed in range(60):
        truth = random_instances(seed)
        found = random_instances(seed + 1000) if seed % 3 == 0 else disturbed(truth, seed)
        aji = segmentation.aggregated_jaccard(truth, found)
        quality = segmentation.panoptic_quality(truth, found)
        np.testing.assert_allclose(aji, brute_force_aji(truth, found), rtol=1e-12)
        np.testing.assert_allclose(quality.pq, brute_force_pq(truth, found), rtol=1e-12)
        np.testing.assert_allclose(quality.pq, quality.sq * quality.rq, rtol=1e-12)


def test_scores_of_many_instances_need_no_table_of_all_pairs():
    # 5000 bars of 2 x 4 pixels against the same bars moved by a pixel, which cuts the last ones.
    truth = np.kron(np.arange(1, 5001, dtype=np.int32).reshape(100, 50), np.ones((2, 4), np.int32))
    found = np.zeros_like(truth)
    found[:, 1:] = truth[:, :-1]
    tracemalloc.start()
    aji = segmentation.aggregated_jaccard(truth, found)
    pq = segmentation.panoptic_quality(truth, found).pq
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Bars share 6 of 8 pixels, of 10 together; those of the last column were cut, and have 8.
    sums = 4900 * 6 + 100 * 6, 4900 * 10 + 100 * 8
    assert aji == pytest.approx(sums[0] / sums[1], rel=1e-12)
    assert pq == pytest.approx((4900 * 6 / 10 + 100 * 6 / 8) / 5000, rel=1e-12)
    # A table of 5000 x 5000 counts has 200 MB; the arrays here are 40,000 numbers, 0.3 MB each.
    assert peak < 8e6


def test_scores_of_instances_counted_by_hand():
    # True: two bars of 4 pixels. Predicted: the first with one pixel less and, apart, 2 pixels.
    truth = np.array([[1, 1, 1, 1, 0, 2, 2, 2, 2, 0, 0]])
    found = np.array([[5, 5, 5, 0, 0, 0, 0, 0, 0, 7, 7]])
    # AJI: intersections 3; unions 4, the missed 4 and the surplus 2. PQ: 3/4 of 1 + 1/2 + 1/2.
    assert segmentation.aggregated_jaccard(truth, found) == pytest.approx(3 / 10)
    assert segmentation.panoptic_quality(truth, found) == pytest.approx((3 / 8, 3 / 4, 1 / 2))
    # Two true bars merged into one: it is the best match of both, and counts twice.
    merged = np.array([[1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0]])
    assert segmentation.aggregated_jaccard(truth, merged) == pytest.approx(8 / 18)
    assert segmentation.panoptic_quality(truth, merged).pq == 0
    # At IoU 1/2 exactly there is no match.
    half = np.array([[1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]])
    assert segmentation.panoptic_quality(1 * (truth == 1), half).pq == 0


def test_scores_do_not_depend_on_the_numbers_of_instances():
    truth, found = random_instances(1), disturbed(random_instances(1), 2)
    renamed = np.where(found > 0, 1000 - 7 * found, 0)
    for score in (segmentation.aggregated_jaccard, segmentation.panoptic_quality):
        np.testing.assert_allclose(score(truth, found), score(truth, renamed), rtol=1e-12)


def test_the_published_batch_scores_are_the_golden_ones(golden):
    numbers = golden("g_metrics")
    truth, probability = numbers["in/y_true"], numbers["in/y_pred"]
    for threshold in (0.5, 0.3):
        scores = segmentation.batch_iou_and_dice(truth, probability, threshold=threshold)
        expected = [numbers[f"out64/{name}_{threshold}"] for name in ("iou", "dice")]
        # The golden numbers are exact ratios of counts in double precision.
        np.testing.assert_allclose(scores, expected, rtol=1e-12)


def test_the_published_scores_depend_on_the_batch_and_ours_do_not():
    truth = np.stack([np.eye(8), np.ones((8, 8))])
    found = np.stack([np.ones((8, 8)), np.ones((8, 8))])
    together = segmentation.batch_iou_and_dice(truth, found)[0]
    apart = [segmentation.batch_iou_and_dice(t, f)[0] for t, f in zip(truth, found, strict=True)]
    assert together == pytest.approx(72 / 128) and np.mean(apart) == pytest.approx((1 / 8 + 1) / 2)
    assert np.isnan(segmentation.batch_iou_and_dice(0 * truth, 0 * found)).all()


def test_the_watershed_separates_touching_discs():
    truth = discs(48, (24, 15, 9), (24, 32, 10))
    assert segmentation.separate(truth > 0).max() == 2
    assert segmentation.panoptic_quality(truth, segmentation.separate(truth > 0)).sq > 0.95
    # Also where the border of the image cuts them, and without any that are not there.
    truth = discs(48, (2, 10, 8), (2, 25, 8), (40, 44, 7), (30, 10, 6))
    found = segmentation.separate(truth > 0)
    assert found.max() == 4 and ((found > 0) == (truth > 0)).all()
    assert segmentation.panoptic_quality(truth, found).rq == 1


def test_every_pixel_of_a_mask_is_of_some_instance():
    rng = np.random.default_rng(0)
    masks = [rng.random((20, 20)) < 0.3, np.ones((9, 9), bool), np.zeros((9, 9), bool)]
    for mask in masks:
        found = segmentation.separate(mask)
        np.testing.assert_array_equal(found > 0, mask)
        assert len(np.unique(found[mask])) == found.max()
    assert segmentation.separate(masks[1]).max() == 1


def test_the_watershed_is_worth_its_while_on_generated_nuclei():
    from scipy import ndimage

    instances = nuclei(6, 96, 0).instances
    cut = [segmentation.panoptic_quality(t, segmentation.separate(t > 0)).pq for t in instances]
    touching = [segmentation.panoptic_quality(t, ndimage.label(t > 0)[0]).pq for t in instances]
    # Exact masks, about half of whose nuclei touch: regions alone lose those, the watershed few.
    assert np.mean(cut) > np.mean(touching) + 0.1 and np.mean(cut) > 0.6


def test_scores_of_a_perfect_probability_are_one_and_of_noise_are_low():
    truth = discs(64, (15, 15, 8), (45, 40, 9), (20, 50, 6))
    perfect = segmentation.image_scores(truth, 0.9 * (truth > 0))
    assert set(perfect) == {"iou", "dice", "precision", "recall", "aji", "pq", "sq", "rq"}
    assert set(perfect.values()) == {1.0}
    noise = np.random.default_rng(0).random(truth.shape)
    assert segmentation.image_scores(truth, noise)["pq"] < 0.05
    predicted = segmentation.separate(noise > 0.4, min_distance=5)
    expected = segmentation.image_scores(truth, noise, threshold=0.4, min_distance=5)
    assert segmentation.instance_scores(truth, predicted) == expected


def test_the_bootstrap_interval_covers_the_mean_as_often_as_it_says():
    # 95 % intervals of 20 uniform values, 200 times: the count of covering ones is binomial. BCa is
    # a few per cent short at 20 values, so 0.93 is tested: below 172 happens once in 10,000 runs.
    rng = np.random.default_rng(0)
    values = rng.random((200, 20))
    found = [segmentation.bootstrap_interval(row, seed=i) for i, row in enumerate(values[:60])]
    covering = sum(interval.low <= 0.5 <= interval.high for interval in found)
    # Of 60 at 0.93, fewer than 47 happens with probability 8e-5.
    assert covering >= 47
    assert found[0].mean == pytest.approx(values[0].mean())


def test_an_interval_of_one_image_is_not_known_and_of_equal_ones_is_a_point():
    mean, low, high = segmentation.bootstrap_interval([0.5])
    assert mean == 0.5 and np.isnan([low, high]).all()
    assert segmentation.bootstrap_interval([0.25, 0.25]) == (0.25, 0.25, 0.25)
    table = segmentation.summary([{"iou": 0.1, "pq": 0.5}, {"iou": 0.3, "pq": 0.5}])
    assert table["iou"].mean == pytest.approx(0.2) and table["pq"] == (0.5, 0.5, 0.5)


@pytest.mark.filterwarnings("error")
def test_values_that_differ_by_rounding_have_an_interval():
    assert segmentation.bootstrap_interval([1, 1, 1 - 1e-16, 1]) == (1, 1, 1)
    for num, scale in itertools.product((4, 10, 32, 200, 2000), (1.0, 0.73, 1e-3)):
        for ulps in (0.5, 1, 2, 4, 16, 64):
            values = np.full(num, scale)
            values[: num // 2] -= ulps * np.finfo(np.float64).eps * scale
            mean, low, high = segmentation.bootstrap_interval(values)
            # What resampled means are off by is the rounding of their sums.
            np.testing.assert_allclose([low, high], mean, rtol=1e-12)
            assert low <= high
    apart = segmentation.bootstrap_interval([1, 1, 1 - 1e-12, 1])
    assert 1 - 1e-12 <= apart.low < apart.mean < apart.high <= 1


def test_an_overlay_draws_agreement_misses_and_inventions_in_their_colours():
    image = np.full((20, 30, 3), 10, np.uint8)
    truth, found = np.zeros((2, 20, 30), np.int32)
    truth[2:8, 2:8], found[2:8, 2:8] = 1, 1
    truth[12:18, 2:8], found[2:8, 20:26] = 2, 2
    drawn = segmentation_pictures.overlay(image, found, truth)
    assert tuple(drawn[2, 4]) == segmentation_pictures.BOTH
    assert tuple(drawn[12, 4]) == segmentation_pictures.TRUTH
    assert tuple(drawn[2, 22]) == segmentation_pictures.PREDICTION
    assert tuple(drawn[5, 5]) == tuple(drawn[0, 0]) == (10, 10, 10)  # Insides stay visible.
    assert (segmentation_pictures.mask_picture(found) == 255 * (found > 0)).all()
    assert (image == 10).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: segmentation.pixel_scores(np.ones((2, 2)), np.ones((2, 2), bool)), "boolean"),
        (lambda: segmentation.pixel_scores(np.ones(2, bool), np.ones(3, bool)), "one shape"),
        (lambda: segmentation.aggregated_jaccard(np.ones(2, int), np.ones(3, int)), "one shape"),
        (lambda: segmentation.panoptic_quality(np.ones(2, int), -np.ones(2, int)), "non-negative"),
        (lambda: segmentation.separate(np.ones((4, 4), bool), min_distance=0), ">= 1 pixel"),
        (lambda: segmentation.bootstrap_interval([]), "n >= 1"),
        (lambda: segmentation.summary([]), "at least one image"),
        (
            lambda: segmentation_pictures.overlay(np.ones((4, 4, 3)), np.ones((4, 4), int)),
            "uint8",
        ),
        (
            lambda: segmentation_pictures.overlay(
                np.ones((4, 4, 3), np.uint8), np.ones((4, 5), int)
            ),
            "image's size",
        ),
    ],
)
def test_what_cannot_be_scored_is_one_line(call, message):
    with pytest.raises(ValueError, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)
