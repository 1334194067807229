# SPDX-License-Identifier: Apache-2.0
"""Losses of segmentation against scikit-learn, pixel by pixel sums, and their own limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import f1_score, log_loss

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
