# SPDX-License-Identifier: Apache-2.0
"""The policy's law against quadrature, and soft actor-critic against three separate optimisers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from scorejax.models.actor_critic import Actor, PairCritic, TanhGaussian, TwinCritic
from scorejax.objectives import actor_critic as sac
from scorejax.random import row_keys
from scorejax.rl import linear_gaussian as lg
from scorejax.train.state import TrainState
from scorejax.train.step import make_train_step, scan_steps
from scorejax.typing import Aux
from tests.compilation import optimised_jit
from tests.random_variables import random_variables

LOW, HIGH = (-1.0, -3.0), (1.0, 1.0)
OBS, ACTION, ROWS, HIDDEN = 3, 2, 5, (6,)


def law(mean, log_std, low=LOW, high=HIGH):
    return TanhGaussian(*(jnp.asarray(x, float) for x in (mean, log_std, low, high)))


@pytest.mark.parametrize("half_width", [1.0, 2.0])
def test_the_density_integrates_to_one_over_the_box(half_width):
    nodes, weights = np.polynomial.legendre.leggauss(300)
    shape = (len(nodes), 1)
    policy = law(np.full(shape, 0.4), np.full(shape, -0.3), (-half_width,), (half_width,))
    density = np.exp(policy.log_prob(jnp.asarray(half_width * nodes[:, None], float)))
    # Rounding in single precision: log(1 - tanh^2) near the faces, where the density is small.
    np.testing.assert_allclose(np.sum(half_width * weights * density), 1, atol=2e-5)


def test_the_density_is_that_of_a_change_of_variables(x64):
    rng = np.random.default_rng(0)
    mean, log_std = rng.normal(size=(2, 7, 2))
    policy, keys = law(mean, log_std), row_keys(jax.random.key(0), 7)

    @jax.jit
    def draw(policy):
        action, log_prob = policy.sample_and_log_prob(keys)
        return action, log_prob, policy.log_prob(action), policy.mode()

    action, log_prob, again, mode = draw(policy)
    low, high = np.array(LOW), np.array(HIGH)
    unit = (np.asarray(action) - low) / (high - low)  # in [0, 1]
    u = np.log(unit / (1 - unit)) / 2
    slope = 2 * unit * (1 - unit) * (high - low)  # of the action in u
    expected = stats.norm.logpdf(u, mean, np.exp(log_std)) - np.log(slope)
    # Actions within 1e-5 of a face keep ten digits of the distance to it.
    np.testing.assert_allclose(log_prob, expected.sum(axis=1), rtol=1e-9)
    np.testing.assert_allclose(again, log_prob, rtol=1e-9)
    np.testing.assert_allclose(mode, low + (high - low) / (1 + np.exp(-2 * mean)))


def test_a_row_of_actions_is_a_function_of_its_own_key():
    mean = np.random.default_rng(1).normal(size=(4, 2))
    keys = row_keys(jax.random.key(1), 4)
    sample = jax.jit(lambda mean, keys: law(mean, 0 * mean).sample_and_log_prob(keys))
    several, alone = sample(mean, keys), sample(mean[2:3], keys[2:3])
    for rows, row in zip(several, alone, strict=True):
        np.testing.assert_allclose(rows[2], row[0], rtol=1e-6)  # vector and scalar code round apart
    assert sample(mean, keys[0])[0].shape == (4, 2)


@pytest.mark.parametrize("u", [-20.0, 20.0, -80.0])
def test_saturated_actions_have_finite_densities_and_gradients(u):
    def value(mean, log_std):
        action, log_prob = law(mean, log_std).sample_and_log_prob(jax.random.key(0))
        return jnp.sum(log_prob) + jnp.sum(action), log_prob

    mean, log_std = jnp.full((3, 2), u), jnp.full((3, 2), -5.0)
    value_and_grad = jax.jit(jax.value_and_grad(value, (0, 1), has_aux=True))
    (_, log_prob), gradient = value_and_grad(mean, log_std)
    assert log_prob.dtype == jnp.float32
    assert all(jnp.all(jnp.isfinite(leaf)) for leaf in (log_prob, *gradient))
    # The slope of tanh is 4 e^-2|u|: each dimension gains 2 |u| - log 4 and loses log half width.
    noise = jax.random.normal(jax.random.key(0), (3, 2))
    centre = u + np.exp(-5) * np.asarray(noise)
    expected = stats.norm.logpdf(noise) + 5 + 2 * np.abs(centre) - np.log(4)
    np.testing.assert_allclose(log_prob, expected.sum(axis=1) - np.log(2), rtol=1e-5)


def test_atoms_at_the_faces_have_a_finite_likelihood():
    corners = jnp.array([[-1.0, -3.0], [1.0, 1.0], [1.5, 0.0]])
    value = lambda mean: jnp.sum(law(mean, jnp.zeros((3, 2))).log_prob(corners, edge=1e-3))
    likelihood, gradient = jax.jit(jax.value_and_grad(value))(jnp.zeros((3, 2)))
    assert np.isfinite(likelihood)
    # The gradient in the mean is u - mean: towards the face, as far as edge allows.
    furthest = np.arctanh(1 - 1e-3)
    inside = np.arctanh((0 + 1) / 2)
    expected = [[-furthest, -furthest], [furthest, furthest], [furthest, inside]]
    np.testing.assert_allclose(gradient, expected, rtol=1e-4)


def test_a_new_actor_is_nearly_the_same_everywhere():
    actor = Actor(LOW, HIGH, (16, 16))
    obs = 10 * jax.random.normal(jax.random.key(1), (4, OBS))
    policy, variables = jax.jit(actor.init_with_output)(jax.random.key(0), obs)
    assert jnp.max(jnp.abs(policy.mean)) < 0.2 and jnp.max(jnp.abs(policy.log_std)) < 0.2
    np.testing.assert_allclose(policy.mode(), np.tile([[0.0, -1.0]], (4, 1)), atol=0.4)
    loud = jax.tree.map(lambda leaf: 1e3 * leaf, variables)
    log_std = actor.apply(loud, obs).log_std
    assert jnp.min(log_std) == -20 and jnp.max(log_std) == 2


def test_two_critics_share_nothing_and_see_unit_actions():
    critic, wide = TwinCritic(LOW, HIGH, HIDDEN), TwinCritic((-10.0, 5.0), (10.0, 6.0), HIDDEN)
    obs, unit = jax.random.normal(jax.random.key(0), (4, OBS)), jnp.linspace(-1, 1, 8).reshape(4, 2)
    variables = random_variables(critic, obs, unit, seed=0, mean=0.0, std=0.5)
    in_box = lambda half_width, centre: np.asarray(unit) * half_width + np.asarray(centre, "f4")
    values = jax.jit(critic.apply)(variables, obs, in_box(np.float32([1, 2]), [0, -1]))
    same = jax.jit(wide.apply)(variables, obs, in_box(np.float32([10, 0.5]), [0, 5.5]))
    np.testing.assert_allclose(values, same, rtol=1e-5)
    assert values.shape == (4, 2) and not np.allclose(values[:, 0], values[:, 1])
    gradient = jax.jit(jax.grad(lambda v: jnp.sum(critic.apply(v, obs, unit)[:, 0])))
    first = jax.device_get(gradient(variables)["params"])
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(first["critic_0"]))
    assert not any(np.any(leaf != 0) for leaf in jax.tree.leaves(first["critic_1"]))


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        ((0.0,), (1.0, 2.0), "as many low as high; got 1, 2"),
        ((0.0, 2.0), (1.0, 2.0), "finite low < high; got 2.0, 2.0 in 1"),
        ((-np.inf,), (np.inf,), "finite low < high; got -inf, inf in 0"),
    ],
)
def test_a_bad_box_is_named(low, high, message):
    for network in (Actor, TwinCritic):
        with pytest.raises(ValueError, match=message):
            network(low, high)


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="log_std_bounds needs lower < upper"):
        Actor(LOW, HIGH, log_std_bounds=(2.0, -5.0))
    options = {"actor": apply(ACTOR), "critic": apply(CRITIC)}
    call = lambda **rest: sac.sac_loss({}, {}, jax.random.key(0), {}, **options, **rest)
    with pytest.raises(ValueError, match=r"gamma needs to lie in \[0, 1\); got 1"):
        call(gamma=1.0, alpha=0.1)
    for both in ({}, {"alpha": 0.1, "target_entropy": -1.0}):
        with pytest.raises(ValueError, match="either a fixed alpha or a target_entropy"):
            call(gamma=0.9, **both)
    with pytest.raises(ValueError, match="alpha needs to be at least 0; got -1"):
        call(gamma=0.9, alpha=-1.0)


ACTOR, CRITIC = Actor(LOW, HIGH, HIDDEN), TwinCritic(LOW, HIGH, HIDDEN)


def apply(network):
    return lambda params, *inputs: network.apply({"params": params}, *inputs)


def players(dtype=np.float32):
    obs, action = np.zeros((1, OBS)), np.zeros((1, ACTION))
    draw = functools.partial(random_variables, mean=0.0, std=0.5)
    params = {
        "actor": draw(ACTOR, obs, seed=2)["params"],
        "critic": draw(CRITIC, obs, action, seed=3)["params"],
        "log_alpha": np.asarray(-0.7),
    }
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)


def transitions(num_steps, dtype=np.float32):
    rng = np.random.default_rng(4)
    shape = (num_steps, ROWS)
    batch = {
        "obs": rng.normal(size=(*shape, OBS)),
        "next_obs": rng.normal(size=(*shape, OBS)),
        "action": rng.uniform(LOW, HIGH, size=(*shape, ACTION)),
        "reward": rng.normal(size=shape),
    }
    batch = {name: jnp.asarray(value, dtype) for name, value in batch.items()}
    return batch | {"terminated": jnp.asarray(rng.random(shape) < 0.3)}


GAMMA, RATE, TARGET_ENTROPY = 0.9, 0.95, -2.0
LEARNING_RATES = {"actor": 3e-3, "critic": 1e-2, "log_alpha": 2e-3}
OPTIONS = {"actor": apply(ACTOR), "critic": apply(CRITIC), "gamma": GAMMA}


def joint_loss(params, state, rng, batch, **options):
    target = state.ema_params["critic"]
    loss, metrics = sac.sac_loss(params, target, batch["rng"], batch, **OPTIONS, **options)
    return loss, Aux(metrics, state.model_state)


def separate_losses(params, target_critic, keys, batch):
    """The three losses as formulas of one player's parameters each, others as constants."""
    next_keys, keys = (jax.vmap(lambda k, i=i: jax.random.split(k)[i])(keys) for i in range(2))
    critic, actor, alpha = apply(CRITIC), apply(ACTOR), jnp.exp(params["log_alpha"])
    a, log_p = actor(params["actor"], batch["next_obs"]).sample_and_log_prob(next_keys)
    after = critic(target_critic, batch["next_obs"], a).min(axis=1) - alpha * log_p
    y = batch["reward"] + GAMMA * jnp.where(batch["terminated"], 0, after)

    def loss_of_critic(critic_params):
        q = critic(critic_params, batch["obs"], batch["action"])
        return 0.5 * (jnp.mean((q[:, 0] - y) ** 2) + jnp.mean((q[:, 1] - y) ** 2))

    def loss_of_actor(actor_params):
        a, log_p = actor(actor_params, batch["obs"]).sample_and_log_prob(keys)
        return jnp.mean(alpha * log_p - critic(params["critic"], batch["obs"], a).min(axis=1))

    _, log_p = actor(params["actor"], batch["obs"]).sample_and_log_prob(keys)
    loss_of_alpha = lambda log_alpha: -log_alpha * jnp.mean(log_p + TARGET_ENTROPY)
    return {"critic": loss_of_critic, "actor": loss_of_actor, "log_alpha": loss_of_alpha}


@pytest.mark.deep
def test_one_loss_is_three_optimisers_that_read_old_parameters(x64):
    params, batches, key = players(np.float64), transitions(20, np.float64), jax.random.key(5)
    optimisers = {name: optax.adam(rate) for name, rate in LEARNING_RATES.items()}
    tx = optax.multi_transform(optimisers, {name: name for name in params})
    rates = {"actor": 0.0, "critic": RATE, "log_alpha": 0.0}
    loss = functools.partial(joint_loss, target_entropy=TARGET_ENTROPY)
    step = jax.jit(scan_steps(make_train_step(loss, tx, ema_rate=rates)))
    joint, metrics = step(TrainState.create(params, {}, tx), batches, key)

    @jax.jit
    def separate(carry, batch):
        step, params, target, states = carry
        keys = row_keys(jax.random.split(jax.random.fold_in(key, step))[1], ROWS)
        losses = separate_losses(params, target, keys, batch)
        moved, states = dict(params), dict(states)
        for name, loss in losses.items():
            gradient = jax.grad(loss)(params[name])
            updates, states[name] = optimisers[name].update(gradient, states[name])
            moved[name] = optax.apply_updates(params[name], updates)
        target = jax.tree.map(lambda t, q: RATE * t + (1 - RATE) * q, target, moved["critic"])
        return (step + 1, moved, target, states), losses["critic"](params["critic"])

    states = {name: tx.init(params[name]) for name, tx in optimisers.items()}
    carry, critic_losses = jax.lax.scan(separate, (0, params, params["critic"], states), batches)
    # Rounding of sums in another order, through 20 updates of Adam.
    assert_close = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12)
    jax.tree.map(assert_close, joint.params, carry[1])
    jax.tree.map(assert_close, joint.ema_params["critic"], carry[2])
    assert_close(metrics["critic_loss"], critic_losses)
    # Logged a step before the last update.
    assert_close(metrics["alpha"][-1], np.exp(joint.params["log_alpha"]), rtol=2.1e-3)
    total = metrics["critic_loss"] + metrics["actor_loss"] + metrics["temperature_loss"]
    assert_close(metrics["loss"], total)


def test_a_players_update_does_not_move_when_anothers_loss_is_scaled():
    params, batch = players(), jax.tree.map(lambda leaf: leaf[0], transitions(1))
    keys, target = row_keys(jax.random.key(6), ROWS), players()["critic"]

    @jax.jit
    @jax.grad
    def gradient(params, weights):
        options = OPTIONS | {"target_entropy": TARGET_ENTROPY}
        losses = sac.sac_losses(params, target, keys, batch, **options)
        return sum(w * jnp.mean(loss) for w, loss in zip(weights, losses[:3], strict=True))

    plain = jax.device_get(gradient(params, (1.0, 1.0, 1.0)))
    for i, scaled in enumerate(("critic", "actor", "log_alpha")):
        weights = [1.0, 1.0, 1.0]
        weights[i] = 7.0
        other = jax.device_get(gradient(params, tuple(weights)))
        for name in params:
            same = jax.tree.map(np.array_equal, plain[name], other[name])
            assert all(jax.tree.leaves(same)) == (name != scaled), (scaled, name)


def test_a_fixed_temperature_has_no_player_and_the_reward_may_be_a_function():
    params, batch = players(), jax.tree.map(lambda leaf: leaf[0], transitions(1))
    target, keys = players()["critic"], row_keys(jax.random.key(7), ROWS)
    fixed = {name: params[name] for name in ("actor", "critic")}
    renamed = {name: value for name, value in batch.items() if name != "reward"}
    renamed |= {"stored": batch["reward"] / 2}
    options = OPTIONS | {"alpha": float(np.exp(-0.7))}

    @jax.jit
    def losses():
        reward_fn = lambda batch: 2 * batch["stored"]
        return (
            sac.sac_losses(params, target, keys, batch, **OPTIONS, target_entropy=TARGET_ENTROPY),
            sac.sac_losses(fixed, target, keys, batch, **options),
            sac.sac_loss(fixed, target, keys, renamed, **options, reward_fn=reward_fn),
        )

    learned, ours, (total, metrics) = losses()
    for name in ("critic", "actor"):
        np.testing.assert_allclose(getattr(ours, name), getattr(learned, name), rtol=1e-5)
    assert not jnp.any(ours.temperature) and jnp.all(learned.temperature != 0)
    np.testing.assert_allclose(total, jnp.mean(ours.critic + ours.actor), rtol=1e-5)
    np.testing.assert_allclose(metrics["alpha"], np.exp(-0.7), rtol=1e-6)


def test_an_end_is_worth_what_the_target_says():
    reward, next_value = jnp.array([1.0, 1.0]), jnp.array([5.0, 5.0])
    terminated = jnp.array([False, True])
    plain = sac.td_target(reward, terminated, next_value, gamma=0.9)
    np.testing.assert_allclose(plain, [1 + 0.9 * 5, 1], rtol=1e-6)
    # A reward of c for ever is worth c / (1 - gamma) whether or not the episode ends.
    constant = functools.partial(sac.absorbing_target, gamma=0.9, absorbing_reward=-2.0)
    value = jnp.full(2, -2 / (1 - 0.9))
    np.testing.assert_allclose(constant(jnp.full(2, -2.0), terminated, value), value, rtol=1e-5)


def test_the_learned_critic_of_pairs_has_a_ceiling():
    network, x = PairCritic((8,), ceiling=3.0), jax.random.normal(jax.random.key(0), (6, 2))
    variables = random_variables(network, x, x, seed=1, mean=0.0, std=20.0)
    values = network.apply(variables, x, x[::-1])
    assert values.shape == (6,) and jnp.max(values) <= 3 and jnp.ptp(values) > 1


@pytest.mark.slow
def test_networks_find_the_optimum_of_soft_linear_control():
    # The box is wide: within two standard deviations tanh is linear to 4 %.
    system = lg.scalar_system(0.95, 0.5, 0.3)
    cost, gamma, alpha, num = np.array([[1.3, 0.2], [0.2, 0.5]]), 0.95, 0.7, 256
    best = lg.soft_lqr(system, cost, gamma=gamma, alpha=alpha).policy
    actor, critic = Actor((-5.0,), (5.0,), (64, 64)), TwinCritic((-5.0,), (5.0,), (64, 64))
    keys, one = jax.random.split(jax.random.key(0)), jnp.zeros((1, 1))
    params = {
        "actor": actor.init(keys[0], one)["params"],
        "critic": critic.init(keys[1], one, one)["params"],
    }
    tx = optax.multi_transform(
        {name: optax.adam(1e-3) for name in params}, {name: name for name in params}
    )
    options = {"actor": apply(actor), "critic": apply(critic), "gamma": gamma, "alpha": alpha}

    def loss(params, state, rng, batch):
        # Transitions of the system from states and actions of a broad law, as an old policy's are.
        noise = jax.vmap(lambda key: jax.random.normal(key, (3,)))(batch["rng"])
        obs, action = noise[:, :1], jnp.clip(1.5 * noise[:, 1:2], -5, 5)
        x = jnp.concatenate([obs, action], axis=1)
        rows = {
            "obs": obs,
            "action": action,
            "next_obs": 0.95 * obs + 0.5 * action + 0.3 * noise[:, 2:],
            "reward": -jnp.sum(x @ cost.astype(np.float32) * x, axis=1),
            "terminated": jnp.zeros(num, bool),
        }
        keys = jax.vmap(jax.random.fold_in, (0, None))(batch["rng"], 1)
        value, metrics = sac.sac_loss(params, state.ema_params["critic"], keys, rows, **options)
        return value, Aux(metrics, {})

    rates = {"actor": 0.999, "critic": 0.98}
    step = optimised_jit(scan_steps(make_train_step(loss, tx, ema_rate=rates)))
    state = TrainState.create(params, {}, tx)
    for seed in range(4):
        state, _ = step(state, {"x": jnp.zeros((2000, num))}, jax.random.key(seed))
    obs = jnp.linspace(-0.8, 0.8, 21)[:, None]
    policy = actor.apply({"params": state.ema_params["actor"]}, obs)
    slope = np.polyfit(obs[:, 0], policy.mode()[:, 0], 1)[0]
    draws = jax.vmap(lambda key: policy.sample_and_log_prob(key)[0])(
        jax.random.split(jax.random.key(9), 4000)
    )
    std = float(jnp.mean(jnp.std(draws, axis=0)))
    gain, best_std = best.gain[0, 0], np.sqrt(best.noise[0, 0])
    assert abs(-slope / gain - 1) < 0.1
    assert abs(std / best_std - 1) < 0.15
