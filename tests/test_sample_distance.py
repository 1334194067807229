# SPDX-License-Identifier: Apache-2.0
"""Fréchet distances of a few samples, by which checkpoints are chosen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorejax.data.view import ImageView
from scorejax.evaluate import frechet
from scorejax.evaluate.digits_features import digits_features
from scorejax.evaluate.sample_distance import image_features, sample_distance

DIGITS = ImageView("digits", 8)
NUM, BATCH = 90, 40


def drawn(variables, keys):
    """Test images that the keys choose, some of them not finite if `variables` says so."""
    index = jax.vmap(lambda key: jax.random.randint(key, (), 0, len(variables["image"])))(keys)
    return {"image": variables["image"][index]}


@pytest.mark.parametrize("spoil", [False, True])
def test_distance_is_that_of_all_samples_to_all_training_images_and_spoilt_ones_are_black(spoil):
    test = DIGITS.stored("test").image / np.float32(16)
    black = np.where(np.arange(len(test))[:, None, None, None] % 7, test, 0)
    spoilt = np.where(np.arange(len(test))[:, None, None, None] % 7, test, np.nan)
    metric = sample_distance(drawn, image_features("digits"), DIGITS, NUM, BATCH)
    given = {"image": jnp.asarray(spoilt if spoil else test, jnp.float32)}
    found = metric(jax.random.key(5), given).scalars["frechet"]

    keys = jax.random.split(jax.random.key(0), 3 * BATCH)[:NUM]
    seen = drawn({"image": jnp.asarray(black if spoil else test)}, keys)["image"]
    train = digits_features(DIGITS.stored("train").image / 16).features
    expected = frechet.frechet_distance(train, digits_features(seen).features)
    # The same levels go through the same layers in double precision.
    assert found == pytest.approx(expected, rel=1e-9)


def test_a_worse_model_is_farther_away():
    test = jnp.asarray(DIGITS.stored("test").image / 16, jnp.float32)
    metric = sample_distance(drawn, image_features("digits"), DIGITS, 300, 100)
    distance = lambda x: metric(jax.random.key(0), {"image": x}).scalars["frechet"]
    noisy = [jnp.clip(test + std * jax.random.normal(jax.random.key(1), test.shape), 0, 1)
             for std in (0.0, 0.2, 0.5)]  # fmt: skip
    distances = [distance(x) for x in noisy]
    assert distances == sorted(distances)
    # Of 300 images; the benchmark's 450 real ones have 0.55 +- 0.2 (docs/results.md).
    assert distances[0] < 1.5 < distances[1]
