# SPDX-License-Identifier: Apache-2.0
"""Keras' Adam and Adamax, rates and clipping against the official numbers and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from scorejax.train.optimizer import (
    adam_from_config,
    cosine_decay,
    keras_adam,
    keras_adamax,
    warmup_schedule,
)
from scorejax.train.state import TrainState
from scorejax.train.step import make_train_step
from scorejax.typing import Aux
from tests.slow import SINGLE_AND_DOUBLE


@pytest.fixture(params=SINGLE_AND_DOUBLE)
def official(request, golden):
    """The golden file, and whether a value is an array of it to the tolerance of its precision."""
    file = golden("j_optim")

    def agrees(value, name):
        expected = file[f"out64/{name}"]
        largest = np.abs(expected).max(axis=-1, keepdims=True) if expected.ndim else expected
        # The notes of the file ask for 1e-8 of the largest entry of each row.
        double = request.param == "float64"
        return np.all(
            np.abs(value - expected) <= (1e-8 * largest if double else file[f"tol/{name}"])
        )

    with jax.enable_x64(request.param == "float64"):
        yield file, agrees


def linear_loss(params, state, rng, batch):
    """A loss whose gradient is the batch."""
    return jnp.sum(params["w"] * batch["g"][0]), Aux({}, state.model_state)


@pytest.mark.parametrize("b1", [0.9, 0.5])
@pytest.mark.parametrize("name, optimizer", [("adam", keras_adam), ("adamax", keras_adamax)])
def test_updates_and_their_average_are_the_official_ones(official, name, optimizer, b1):
    file, agrees = official
    tx = optimizer(float(file["cfg/lr"]), b1=b1, warmup=int(file["cfg/warmup"]))
    state = TrainState.create({"w": jnp.asarray(file["in/start"], float)}, {}, tx)
    step = jax.jit(make_train_step(linear_loss, tx, ema_rate=float(file["cfg/ema_decay"])))
    params, averages = [], []
    for gradient in jnp.asarray(file["in/grads"], float):
        state, metrics = step(state, {"g": gradient[None]}, jax.random.key(0))
        params.append(state.params["w"])
        averages.append(state.ema_params["w"])
    assert agrees(np.array(params), f"{name}_beta{b1}")
    assert agrees(np.array(averages), f"{name}_beta{b1}_ema")
    assert agrees(metrics["grad_norm"], "global_norm")


def test_rates_are_the_official_ones(official):
    file, agrees = official
    steps, warmup = jnp.asarray(file["in/lr_steps"]), int(file["cfg/warmup"])
    rates = jax.vmap(warmup_schedule(float(file["cfg/lr"]), warmup))(steps)
    assert agrees(rates, "lr")
    fall = jax.vmap(cosine_decay(int(file["cfg/total"]), warmup=warmup))(steps)
    assert agrees(rates * fall, "lr_cosine")


def test_clipping_is_the_official_one(official):
    file, agrees = official
    tx, gradient = keras_adam(0.1, b1=0.9, clip_norm=1.0), jnp.asarray(file["in/grads"][-1], float)
    _, (_, state, _) = tx.update(gradient, tx.init(gradient))
    # The first moment after one update is (1 - b1) times what Adam was given.
    assert agrees(state.mu / 0.1, "clipped")


@pytest.mark.parametrize("b2", [0.999, 0.0])
def test_eps_is_added_before_the_correction(b2, x64):
    # The first update of Adam with eps / sqrt(1 - b2), which optax has; eps dominates 1e-9.
    gradient, eps = jnp.array([3.0, -1e-4, 1e-9, 0.0]), 1e-7
    tx, corrected = (
        keras_adam(0.1, b2=b2, eps=eps),
        optax.adam(0.1, b2=b2, eps=eps / (1 - b2) ** 0.5),
    )
    ours, _ = tx.update(gradient, tx.init(gradient))
    expected, _ = corrected.update(gradient, corrected.init(gradient))
    np.testing.assert_allclose(ours, expected, rtol=1e-13)
    plain, _ = optax.adam(0.1, b2=b2, eps=eps).update(gradient, corrected.init(gradient))
    assert abs(plain[2] / ours[2] - (1 - b2) ** -0.5) < 0.5 or not b2


def test_single_precision_corrects_the_second_moment_to_rounding():
    # A constant gradient g has m = (1 - b1^n) g and v = (1 - b2^n) g^2, so that every update is the
    # sign of g. 1 - 0.999^n is off by 5e-5 at n = 1 if it is computed as it stands.
    gradient = jnp.array([2.0, -0.3])
    tx = keras_adam(1.0, eps=1e-12)
    state = tx.init(gradient)
    for _ in range(4):
        update, state = tx.update(gradient, state)
        # A dozen roundings of 6e-8; m and v are themselves rounded products of 1 - b.
        np.testing.assert_allclose(update, [-1, 1], rtol=1e-6)


def test_the_cosine_starts_after_the_warm_up_and_ends_at_zero():
    fall = cosine_decay(100, warmup=20)
    np.testing.assert_array_equal([fall(k) for k in (0, 19, 20)], 1.0)
    np.testing.assert_allclose([fall(k) for k in (60, 100, 250)], [0.5, 0.0, 0.0], atol=1e-7)
    for warmup in (-1, 100):
        with pytest.raises(ValueError, match="0 <= warmup < num_steps = 100"):
            cosine_decay(100, warmup=warmup)


def test_configs_name_the_optimiser():
    config = {"learning_rate": 0.1, "beta1": 0.5, "adam_eps": 1e-3, "warmup": 0, "grad_clip": 1.0}
    gradient = jnp.array([0.3, -4e-3])
    updates = {}
    for name in (None, "adam", "keras_adam", "keras_adamax"):
        tx = adam_from_config(config | ({"optimizer": name} if name else {}))
        updates[name], _ = tx.update(gradient, tx.init(gradient))
    np.testing.assert_array_equal(updates[None], updates["adam"])
    # By hand, at n = 1: g / (|g| + eps), g / (|g| + eps / sqrt(1 - b2)), and g / (|g| + eps).
    for name, eps in (("adam", 1e-3), ("keras_adam", 1e-3 / 1e-3**0.5), ("keras_adamax", 1e-3)):
        expected = -0.1 * gradient / (jnp.abs(gradient) + eps)
        np.testing.assert_allclose(updates[name], expected, rtol=1e-4)
    with pytest.raises(ValueError, match="unknown optimizer 'keras': did you mean 'keras_adam'"):
        adam_from_config(config | {"optimizer": "keras"})
