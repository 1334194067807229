# SPDX-License-Identifier: Apache-2.0
"""Losses of segmentation against scikit-learn, pixel by pixel sums, and their own limits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.metrics import confusion_matrix, f1_score, log_loss

from scorejax.objectives import segmentation
from scorejax.objectives.segmentation import EXCLUSIVE, LOSSES

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 2, (3, 6, 5, 2))
OVERLAPPING = (RNG.random((3, 6, 5, 2)) < 0.4).astype(float)
ONE_OF_TWO = np.eye(2)[RNG.integers(2, size=(3, 6, 5))]


def mask_of(name):
    return ONE_OF_TWO if name in EXCLUSIVE else OVERLAPPING


def test_cross_entropies_are_those_of_scikit_learn(x64):
    probability = 1 / (1 + np.exp(-LOGITS))
    found = segmentation.binary_cross_entropy(jnp.asarray(LOGITS), jnp.asarray(OVERLAPPING))
    expected = [
        log_loss(m.ravel(), p.ravel()) for m, p in zip(OVERLAPPING, probability, strict=True)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    softmax = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
    found = segmentation.cross_entropy(jnp.asarray(LOGITS), jnp.asarray(ONE_OF_TWO))
    expected = [
        log_loss(m.argmax(-1).ravel(), p.reshape(-1, 2))
        for m, p in zip(ONE_OF_TWO, softmax, strict=True)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_soft_dice_of_masks_is_one_minus_the_f1_score(x64):
    guess = (RNG.random(OVERLAPPING.shape) < 0.5).astype(float)
    found = segmentation.soft_dice(jnp.asarray(guess), jnp.asarray(OVERLAPPING), smooth=0.0)
    expected = [
        1 - np.mean([f1_score(m[..., k].ravel(), g[..., k].ravel()) for k in range(2)])
        for m, g in zip(OVERLAPPING, guess, strict=True)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_an_empty_class_that_is_not_found_costs_nothing():
    empty = jnp.zeros((1, 4, 4, 1))
    assert segmentation.soft_dice(empty, empty)[0] == 0
    gradient = jax.grad(lambda p: segmentation.soft_dice(p, empty)[0])(jnp.full_like(empty, 0.1))
    assert np.all(gradient > 0)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_of_an_example_is_its_own(name):
    logits, mask = jnp.asarray(LOGITS, jnp.float32), jnp.asarray(mask_of(name), jnp.float32)
    found = LOSSES[name](logits, mask)
    alone = [LOSSES[name](logits[i : i + 1], mask[i : i + 1])[0] for i in range(3)]
    assert found.shape == (3,)
    np.testing.assert_allclose(found, np.stack(alone), rtol=1e-6)  # single precision


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_of_certainty_is_finite_and_falls_to_zero_where_it_is_right(name):
    mask = jnp.asarray(mask_of(name), jnp.float32)
    right = 200 * (2 * mask - 1)
    value = jax.value_and_grad(lambda logits: jnp.sum(LOSSES[name](logits, mask)))
    loss, gradient = value(right)
    assert 0 <= loss < 1e-6 and np.isfinite(gradient).all()
    loss, gradient = value(-right)
    assert np.isfinite(loss) and loss > 1 and np.isfinite(gradient).all()


def test_sums_are_sums():
    logits, mask = jnp.asarray(LOGITS, jnp.float32), jnp.asarray(ONE_OF_TWO, jnp.float32)
    for both, parts in {"bce_dice": ("bce", "dice"), "ce_dice": ("ce", "softmax_dice")}.items():
        expected = sum(LOSSES[part](logits, mask) for part in parts)
        np.testing.assert_allclose(LOSSES[both](logits, mask), expected, rtol=1e-6)


WEIGHTS = {False: (0.5, 2.0, 3.0), True: (0.5, 2.0)}
"""Of the background and two classes that may overlap; of two that exclude each other."""
KNOWN = (RNG.random((3, 6, 5)) < 0.7).astype(float)


def of_x64(loss, mask, **options):
    given = {key: jnp.asarray(value) for key, value in options.items()}
    return jax.jit(lambda *arrays: loss(*arrays, **given))(jnp.asarray(LOGITS), jnp.asarray(mask))


def test_weighted_cross_entropies_over_known_pixels_are_those_of_scikit_learn(x64):
    background, *foreground = WEIGHTS[False]
    probability = 1 / (1 + np.exp(-LOGITS))
    options = {"known": KNOWN, "class_weights": np.array(WEIGHTS[False])}
    found = of_x64(segmentation.binary_cross_entropy, OVERLAPPING, **options)
    weight = np.where(OVERLAPPING > 0, foreground, background) * KNOWN[..., None]
    expected = [
        log_loss(m.ravel(), p.ravel(), sample_weight=w.ravel())
        for m, p, w in zip(OVERLAPPING, probability, weight, strict=True)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    options["class_weights"] = np.array(WEIGHTS[True])
    found = of_x64(segmentation.cross_entropy, ONE_OF_TWO, **options)
    softmax = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
    truth = ONE_OF_TWO.argmax(-1)
    weight = np.array(WEIGHTS[True])[truth] * KNOWN
    expected = [
        log_loss(t.ravel(), p.reshape(-1, 2), sample_weight=w.ravel())
        for t, p, w in zip(truth, softmax, weight, strict=True)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_focal_losses_are_those_of_optax(x64):
    found = of_x64(segmentation.sigmoid_focal, OVERLAPPING)
    expected = optax.losses.sigmoid_focal_loss(jnp.asarray(LOGITS), jnp.asarray(OVERLAPPING))
    np.testing.assert_allclose(found, expected.mean((1, 2, 3)), rtol=1e-12)
    # Of two classes the softmax is the sigmoid of the difference of their logits.
    found = of_x64(segmentation.softmax_focal, ONE_OF_TWO)
    margin = jnp.asarray(LOGITS[..., 1] - LOGITS[..., 0])
    expected = optax.losses.sigmoid_focal_loss(margin, jnp.asarray(ONE_OF_TWO[..., 1]))
    np.testing.assert_allclose(found, expected.mean((1, 2)), rtol=1e-12)
    unfocused = functools.partial(segmentation.softmax_focal, gamma=0.0)
    np.testing.assert_allclose(
        of_x64(unfocused, ONE_OF_TWO), of_x64(segmentation.cross_entropy, ONE_OF_TWO), rtol=1e-12
    )


def test_tversky_counts_surplus_and_missed_pixels(x64):
    guess = (RNG.random(OVERLAPPING.shape) < 0.5).astype(float)
    found = segmentation.soft_tversky(
        jnp.asarray(guess), jnp.asarray(OVERLAPPING), alpha=0.2, beta=0.9, smooth=0.0
    )
    expected = []
    for m, g in zip(OVERLAPPING, guess, strict=True):
        tables = [confusion_matrix(m[..., k].ravel(), g[..., k].ravel()) for k in range(2)]
        index = [tp / (tp + 0.2 * fp + 0.9 * fn) for (_, fp), (fn, tp) in tables]
        expected.append(1 - np.mean(index))
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    halves = functools.partial(segmentation.sigmoid_tversky, alpha=0.5, beta=0.5)
    np.testing.assert_allclose(
        of_x64(halves, OVERLAPPING), of_x64(segmentation.sigmoid_dice, OVERLAPPING), rtol=1e-12
    )


def test_dice_is_a_mean_over_classes_by_their_weights(x64):
    logits, mask = LOGITS[:1], ONE_OF_TWO[:1]
    softmax = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    alone = [
        segmentation.soft_dice(*(jnp.asarray(a[..., k : k + 1]) for a in (softmax, mask)))[0]
        for k in range(2)
    ]
    options = {"class_weights": jnp.asarray(WEIGHTS[True])}
    found = segmentation.softmax_dice(jnp.asarray(logits), jnp.asarray(mask), **options)
    np.testing.assert_allclose(found, [np.average(alone, weights=WEIGHTS[True])], rtol=1e-12)


BY_DEFAULT = ("bce", "softmax_dice", "softmax_focal")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in BY_DEFAULT else pytest.mark.deep) for name in LOSSES],
)
def test_a_pixel_that_is_not_known_counts_as_if_it_were_cut_off(name):
    # The last two columns are not known: the rest is a picture of its own.
    logits, mask = jnp.asarray(LOGITS, jnp.float32), jnp.asarray(mask_of(name), jnp.float32)
    known = jnp.ones(mask.shape[:3]).at[:, :, 3:].set(0)
    weights = jnp.asarray(WEIGHTS[name in EXCLUSIVE])
    loss = lambda *arrays, **more: LOSSES[name](*arrays, class_weights=weights, **more)
    value = jax.value_and_grad(lambda logits: loss(logits, mask, known=known).sum())
    found, gradient = jax.jit(value)(logits)
    expected = loss(logits[:, :, :3], mask[:, :, :3]).sum()
    np.testing.assert_allclose(found, expected, rtol=1e-6)  # single precision
    assert np.all(gradient[:, :, 3:] == 0) and np.any(gradient[:, :, :3] != 0)
    nothing = jax.jit(lambda: loss(logits, mask, known=0 * known))()
    assert np.isfinite(nothing).all()
