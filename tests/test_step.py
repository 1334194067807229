# SPDX-License-Identifier: Apache-2.0
"""The update step against the official numbers, hand computation and other ways to do the same."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy_system import CONFIG, build

from scorejax.numerics import expand
from scorejax.random import draw_rows
from scorejax.sdes import VPSDE
from scorejax.train.optimizer import adam
from scorejax.train.state import TrainState
from scorejax.train.step import make_train_step, scan_steps
from scorejax.typing import Aux


def quadratic_loss(params, state, rng, batch):
    """Half the mean square distance of the parameter from the data: no noise, gradient w - mean."""
    error = params["w"][None] - batch["x"]
    return 0.5 * jnp.mean(jnp.sum(error**2, axis=1)), Aux({}, state.model_state)


def noisy_loss(params, state, rng, batch):
    """A loss whose gradient is a draw of noise, so that the update shows which noise was drawn."""
    noise = jax.random.normal(rng, params["w"].shape)
    return jnp.sum(params["w"] * noise) + 0 * jnp.sum(batch["x"]), Aux({}, state.model_state)


def analytic_vp_loss(params, state, rng, batch):
    """The unweighted VP loss of the goldens' four-coefficient network; draws are in the batch."""
    sde, c = VPSDE(), params["c"]
    t = batch["u"] * (1 - 1e-5) + 1e-5
    scale, std = sde.marginal(t)
    x = expand(scale, batch["x"]) * batch["x"] + expand(std, batch["x"]) * batch["z"]
    network = c[0] * x + c[1] * jnp.sin(0.05 * expand(999 * t, x))
    network += c[2] * jnp.sin(3 * x) + c[3] * jnp.roll(x, 1, axis=-2)
    return jnp.mean((batch["z"] - network) ** 2), Aux({}, state.model_state)


def official_steps(golden, dtype):
    """Loss, coefficients and average after each of six updates, as the golden file has them."""
    numbers = golden("c_train_steps")
    tx = adam(0.01, warmup=3, clip_norm=0.05)
    params = {"c": jnp.array([0.9, 0.5, -0.4, 0.2], dtype)}
    state = TrainState.create(params, {}, tx)
    # The official PyTorch code has a short memory at first.
    ramp = lambda count: jnp.minimum(0.9, (1.0 + count) / (10.0 + count))
    step = jax.jit(make_train_step(analytic_vp_loss, tx, ema_rate=ramp))
    rows = []
    for x, u, z in zip(numbers["in/x"], numbers["in/u"], numbers["in/z"], strict=True):
        images = {name: v.transpose(0, 2, 3, 1).astype(dtype) for name, v in (("x", x), ("z", z))}
        state, metrics = step(state, images | {"u": u.astype(dtype)}, jax.random.key(0))
        rows.append((metrics["loss"], state.params["c"], state.ema_params["c"]))
    losses, coefficients, averages = map(np.array, zip(*rows, strict=True))
    return numbers, {"loss": losses, "coeffs": coefficients, "ema": averages}


def test_six_steps_are_the_official_ones(golden):
    numbers, ours = official_steps(golden, np.float32)
    for name, value in ours.items():
        assert np.all(np.abs(value - numbers[f"out64/{name}"]) <= numbers[f"tol/{name}"]), name


def test_six_steps_are_the_official_ones_in_double_precision(golden, x64):
    numbers, ours = official_steps(golden, np.float64)
    for name, value in ours.items():
        expected = numbers[f"out64/{name}"]
        assert value.dtype == np.float64
        # 1e-8 of the row's largest entry; the official clipping divides by norm + 1e-6, ours by
        # the norm, which Adam forgets but for 2e-9.
        largest = np.abs(expected).max(axis=-1, keepdims=True) if expected.ndim > 1 else expected
        assert np.all(np.abs(value - expected) <= 1e-8 * largest), name


def test_adam_warm_up_clipping_and_average_follow_their_formulas(x64):
    data = np.random.default_rng(0).normal(size=(6, 4, 3)) * 3
    lr, warmup, clip, rate, b1, b2, eps = 0.1, 3, 0.5, 0.8, 0.9, 0.999, 1e-8
    tx = adam(lr, b1=b1, b2=b2, eps=eps, warmup=warmup, clip_norm=clip)
    state = TrainState.create({"w": jnp.ones(3)}, {}, tx)
    step = jax.jit(make_train_step(quadratic_loss, tx, ema_rate=rate))
    w, average, mean, square = np.ones(3), np.ones(3), np.zeros(3), np.zeros(3)
    for k, x in enumerate(data):
        gradient = w - x.mean(axis=0)
        norm = np.linalg.norm(gradient)
        gradient = gradient * min(1, clip / norm)
        mean = b1 * mean + (1 - b1) * gradient
        square = b2 * square + (1 - b2) * gradient**2
        direction = (mean / (1 - b1 ** (k + 1))) / (np.sqrt(square / (1 - b2 ** (k + 1))) + eps)
        w = w - lr * min(k / warmup, 1) * direction
        average = rate * average + (1 - rate) * w
        state, metrics = step(state, {"x": x}, jax.random.key(0))
        # Rounding of a dozen operations in double precision.
        np.testing.assert_allclose(state.params["w"], w, rtol=1e-13)
        np.testing.assert_allclose(state.ema_params["w"], average, rtol=1e-13)
        np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-13)
        assert int(state.step) == k + 1
        if k == 0:
            np.testing.assert_array_equal(state.params["w"], 1.0)


def test_the_average_of_a_constant_is_that_constant():
    # With weights that do not add up to one in float32 it would drift by up to 1.6e-4 of its value.
    value = np.random.default_rng(0).normal(size=50).astype(np.float32)
    tx = optax.sgd(0.0)
    state = TrainState.create({"w": jnp.asarray(value)}, {}, tx)
    steps = jax.jit(scan_steps(make_train_step(quadratic_loss, tx, ema_rate=0.9999)))
    state, _ = steps(state, {"x": jnp.zeros((2000, 1, 50))}, jax.random.key(0))
    np.testing.assert_array_equal(state.ema_params["w"], value)


@pytest.mark.parametrize("accumulation", [2, 3, 6])
def test_accumulation_equals_the_undivided_batch(accumulation, x64):
    batch = {"x": np.random.default_rng(1).normal(size=(12, 3))}
    tx = adam(0.1, clip_norm=1.0)
    state = TrainState.create({"w": jnp.ones(3)}, {"seen": jnp.int32(7), "mean": 2.0}, tx)
    ways = [
        jax.jit(make_train_step(quadratic_loss, tx, ema_rate=0.9, accumulation=parts))
        for parts in (1, accumulation)
    ]
    (whole, whole_metrics), (parts, metrics) = (
        way(state, batch, jax.random.key(0)) for way in ways
    )
    # The order of a sum of 12 terms in double precision; Adam's first step is the sign's.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-13), whole, parts)
    np.testing.assert_allclose(whole_metrics["loss"], metrics["loss"], rtol=1e-14)
    assert [leaf.dtype for leaf in jax.tree.leaves(parts)] == [
        leaf.dtype for leaf in jax.tree.leaves(whole)
    ]


def test_every_shard_and_every_step_has_its_own_noise_and_repeats_it():
    tx = optax.sgd(1.0)
    state = TrainState.create({"w": jnp.zeros(4)}, {}, tx)
    batch, key = {"x": jnp.zeros((4, 1))}, jax.random.key(3)

    def update(state, accumulation):
        step = make_train_step(noisy_loss, tx, ema_rate=0.0, accumulation=accumulation)
        return -jax.jit(step)(state, batch, key)[0].params["w"]

    def noise(step, shard):
        shard_rng, _ = jax.random.split(jax.random.fold_in(key, step))
        return jax.random.normal(jax.random.fold_in(shard_rng, shard), (4,))

    later = state.replace(step=jnp.int32(5))
    # Two programs round the normal law's quantile in two ways, by a unit in the last place.
    np.testing.assert_allclose(update(state, 1), noise(0, 0), rtol=1e-6)
    np.testing.assert_allclose(update(later, 1), noise(5, 0), rtol=1e-6)
    # One sum and one division in float32.
    expected = (noise(5, 0) + noise(5, 1)) / 2
    np.testing.assert_allclose(update(later, 2), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("accumulation", [1, 2, 3, 6])
def test_an_example_draws_the_same_however_the_batch_is_divided(accumulation):
    def loss(params, state, rng, batch):
        noise = draw_rows(jax.random.normal, batch["rng"], batch["x"].shape)
        return jnp.mean(noise * params["w"][batch["x"]]), Aux({}, state.model_state)

    tx, key = optax.sgd(1.0), jax.random.key(3)
    state = TrainState.create({"w": jnp.zeros(6)}, {}, tx).replace(step=jnp.int32(5))
    step = make_train_step(loss, tx, ema_rate=0.0, accumulation=accumulation)
    noise = -6 * jax.jit(step)(state, {"x": jnp.arange(6)}, key)[0].params["w"]
    _, example_rng = jax.random.split(jax.random.fold_in(key, 5))
    # Multiplications and divisions by 6 in float32.
    expected = [jax.random.normal(jax.random.fold_in(example_rng, row)) for row in range(6)]
    np.testing.assert_allclose(noise, expected, rtol=1e-6)


@pytest.mark.parametrize("num_steps", [1, 5])
def test_scanned_steps_equal_single_steps_bit_for_bit(num_steps):
    system = build(CONFIG)
    step = make_train_step(system.loss, system.tx, ema_rate=0.9)
    state = TrainState.create(*system.init(jax.random.key(0)), system.tx)
    batches = [system.source.next(n, state, None)[1] for n in range(num_steps)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *batches)
    scanned, metrics = jax.jit(scan_steps(step))(state, stacked, jax.random.key(1))
    single, losses = jax.jit(step), []
    for batch in batches:
        state, one = single(state, batch, jax.random.key(1))
        losses.append(one["loss"])
    jax.tree.map(np.testing.assert_array_equal, scanned, state)
    np.testing.assert_array_equal(metrics["loss"], losses)


def test_players_of_one_loss_move_as_with_optimisers_of_their_own():
    def joint_loss(params, state, rng, batch):
        a, b = params["a"], params["b"]
        first = jnp.mean((a - batch["x"]) ** 2 * jax.lax.stop_gradient(jnp.cos(b)))
        second = jnp.mean((b + jax.lax.stop_gradient(a)) ** 4)
        return first + 100 * second, Aux({}, state.model_state)

    players = {"a": adam(0.1, clip_norm=0.5), "b": adam(0.01, warmup=2)}
    tx = optax.multi_transform(players, {"a": "a", "b": "b"})
    params = {"a": jnp.float32(1.0), "b": jnp.float32(-2.0)}
    state = TrainState.create(dict(params), {}, tx)
    step = jax.jit(make_train_step(joint_loss, tx, ema_rate=0.9))
    own = {name: player.init(params[name]) for name, player in players.items()}
    for x in np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32):
        grads = jax.grad(lambda p: joint_loss(p, state, None, {"x": x})[0])(params)  # noqa: B023
        for name, player in players.items():
            updates, own[name] = player.update(grads[name], own[name], params[name])
            params[name] = params[name] + updates
        state, _ = step(state, {"x": x}, jax.random.key(0))
    # Eager against compiled arithmetic in float32 over five steps of size 0.1.
    for name in params:
        np.testing.assert_allclose(state.params[name], params[name], rtol=2e-6)


@pytest.mark.parametrize("poison", ["loss", "gradient", "update"])
def test_what_is_not_finite_is_reported(poison):
    def loss(params, state, rng, batch):
        # The square root of zero is finite and its derivative is not.
        value = jnp.sum(params["w"]) + (jnp.nan if poison == "loss" else 0.0)
        value += jnp.sum(jnp.sqrt(0 * params["w"])) if poison == "gradient" else 0.0
        return value, Aux({}, state.model_state)

    tx = optax.sgd(jnp.nan if poison == "update" else 0.1)
    state = TrainState.create({"w": jnp.ones(2)}, {}, tx)
    batch = {"x": jnp.zeros((1, 2))}
    _, metrics = make_train_step(loss, tx, ema_rate=0.9)(state, batch, jax.random.key(0))
    assert metrics["finite"] == 0
    _, metrics = make_train_step(quadratic_loss, optax.sgd(0.1), ema_rate=0.9)(
        state, batch, jax.random.key(0)
    )
    assert metrics["finite"] == 1


def test_updates_that_are_not_finite_are_skipped_and_the_others_are_as_without_them():
    poisoned, num_steps = (2, 5, 6), 9
    system = build(CONFIG | {"poison_step": poisoned})
    step = jax.jit(make_train_step(system.loss, system.tx, ema_rate=0.9))
    init = system.init(jax.random.key(0))
    batches = [system.source.next(n, None, None)[1] for n in range(num_steps)]
    state = TrainState.create(*init, system.tx)
    for n, batch in enumerate(batches):
        if n not in poisoned:
            state, _ = step(state.replace(step=jnp.int32(n)), batch, jax.random.key(1))
    skipping = TrainState.create(*init, system.tx, skips=True)
    steps = jax.jit(scan_steps(make_train_step(system.loss, system.tx, ema_rate=0.9)))
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *batches)
    skipping, metrics = steps(skipping, stacked, jax.random.key(1))
    # Two compiled programs of the same arithmetic; a loop may round otherwise than single steps.
    compare = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    jax.tree.map(compare, skipping.replace(skipped=None), state)
    np.testing.assert_array_equal(metrics["skipped"], [0, 0, 1, 0, 0, 1, 2, 0, 0])
    np.testing.assert_array_equal(metrics["finite"], [1, 1, 0, 1, 1, 0, 0, 1, 1])


def test_a_skipped_update_keeps_every_array_bit_for_bit():
    system = build(CONFIG | {"poison_step": 3})
    state = TrainState.create(*system.init(jax.random.key(0)), system.tx, skips=True)
    step = jax.jit(make_train_step(system.loss, system.tx, ema_rate=0.9))
    for n in range(3):
        state, _ = step(state, system.source.next(n, None, None)[1], jax.random.key(1))
    after, _ = step(state, system.source.next(3, None, None)[1], jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, after.replace(step=3, skipped=0), state)
    assert (int(after.step), int(after.skipped)) == (4, 1)


@pytest.mark.slow
def test_a_moving_average_is_as_near_to_the_exact_one_as_its_comment_says():
    rate, num_steps, half = 0.9999, 50_000, 300
    mean = jnp.asarray(np.random.default_rng(0).normal(size=2 * half), jnp.float32)
    # The first half varies by 1% about its mean, the second comes from 1% above and stands still.
    size = jnp.where(jnp.arange(2 * half) < half, 0.01, 0.0)
    start = jnp.where(jnp.arange(2 * half) < half, mean, 1.01 * mean)
    step = make_train_step(track, optax.sgd(1.0), ema_rate=rate)

    def one(carry, key):
        state, noise, high, low = carry
        # Noise with a memory of 100 steps; then the exact average, in two float32 numbers.
        noise = 0.99 * noise + 0.141 * jax.random.normal(key, mean.shape)
        state, _ = step(state, {"x": (mean * (1 + size * noise))[None]}, key)
        increment = (1 - rate) * (state.params["w"] - high) + low
        total = high + increment
        return (state, noise, total, increment - (total - high)), None

    @jax.jit
    def averages():
        state = TrainState.create({"w": start}, {}, optax.sgd(1.0))
        keys = jax.random.split(jax.random.key(0), num_steps)
        carry = (state, jnp.zeros_like(mean), start, jnp.zeros_like(mean))
        (state, _, exact, _), _ = jax.lax.scan(one, carry, keys)
        return state.ema_params["w"], exact

    average, exact = map(np.array, averages())
    error = np.abs(average - exact)[:half] / np.abs(mean[:half])
    short = np.abs(average - mean)[half:] / np.abs(mean[half:])
    # 1.8e-6 for the first and 4.3e-4, at most 6.0e-4, for the second in NumPy against float64.
    # These are means over 300 parameters, whose scatter is below a tenth of them.
    assert 1e-6 < np.sqrt(np.mean(error**2)) < 2.5e-6
    assert 3.7e-4 < np.mean(short) < 4.9e-4
    assert np.max(short) < 6.1e-4


def track(params, state, rng, batch):
    """A loss that one step of gradient descent at rate 1 minimises: w becomes the mean of x."""
    loss = 0.5 * jnp.sum((params["w"] - jnp.mean(batch["x"], axis=0)) ** 2)
    return loss, Aux({}, state.model_state)


def test_impossible_values_are_refused():
    tx = optax.sgd(0.1)
    with pytest.raises(ValueError, match=r"ema_rate .* got 1\.5"):
        make_train_step(quadratic_loss, tx, ema_rate=1.5)
    with pytest.raises(ValueError, match=r"accumulation .* got 0"):
        make_train_step(quadratic_loss, tx, ema_rate=0.9, accumulation=0)
    for rate in (float("nan"), 0.0, -1.0, float("inf")):
        with pytest.raises(ValueError, match="learning_rate"):
            adam(rate)
    with pytest.raises(ValueError, match="clip_norm"):
        adam(0.1, clip_norm=0.0)
    with pytest.raises(ValueError, match="warmup"):
        adam(0.1, warmup=-1)
