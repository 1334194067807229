# SPDX-License-Identifier: Apache-2.0
"""Baselines of imitation at optima that are known: ratios of densities, and a KL of occupancies."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorejax.density import random_distillation
from scorejax.density.fitting import Training
from scorejax.objectives import imitation
from scorejax.random import row_keys

RNG = jax.random.key(0)


class Fixed(NamedTuple):
    """A policy with one action for each row, and log-density -|action|^2 cut at the edge."""

    action: jax.Array

    def sample_and_log_prob(self, rng):
        return self.action, jnp.zeros(len(self.action))

    def log_prob(self, action, *, edge):
        return -jnp.sum(jnp.clip(action, -1 + edge, 1 - edge) ** 2, axis=1)


def paired(num=6, seed=0):
    """Transitions (num, ...) beside demonstrations, of observations (2,) and actions (1,)."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape))
    both = {}
    for prefix in ("", "expert_"):
        fields = {"obs": draw(num, 2), "action": draw(num, 1), "next_obs": draw(num, 2)}
        fields["terminated"] = jnp.asarray(rng.integers(0, 2, num).astype(bool))
        both |= {prefix + name: values for name, values in fields.items()}
    return both


def test_rows_are_paired_with_whole_demonstrations_by_their_own_keys():
    table = {name: jnp.arange(5.0)[:, None] for name in ("obs", "action", "next_obs")}
    table["terminated"] = jnp.arange(5.0)
    num = 4000
    batch = {"obs": jnp.zeros((num, 1))}
    pair = jax.jit(lambda rngs: imitation.with_demonstrations(rngs, batch, table))
    drawn = pair(row_keys(RNG, num))
    for name in ("action", "next_obs"):
        np.testing.assert_array_equal(drawn[f"expert_{name}"], drawn["expert_obs"])
    np.testing.assert_array_equal(drawn["expert_terminated"], drawn["expert_obs"][:, 0])
    # Chi-square of 4 degrees of freedom: above 26 once in 30 000.
    counts = np.bincount(np.asarray(drawn["expert_terminated"]).astype(int), minlength=5)
    assert np.sum((counts - num / 5) ** 2) / (num / 5) < 26
    turned = pair(row_keys(RNG, num)[::-1])["expert_obs"]
    np.testing.assert_array_equal(turned[::-1], drawn["expert_obs"])


def test_cloning_is_the_likelihood_of_actions_inside_the_box():
    policy = Fixed(jnp.zeros((3, 1)))
    action = jnp.asarray([[0.5], [1.0], [-1.2]])
    found = imitation.behavioural_cloning(policy, action, edge=0.1)
    np.testing.assert_allclose(found, [0.25, 0.81, 0.81], rtol=1e-6)


def test_sqil_alternates_demonstrations_of_reward_one_and_others_of_reward_zero():
    batch = paired()
    mixed = imitation.sqil_batch(batch)
    np.testing.assert_array_equal(mixed["reward"], [1, 0, 1, 0, 1, 0])
    for name in imitation.FIELDS:
        np.testing.assert_array_equal(mixed[name][::2], batch[f"expert_{name}"][::2])
        np.testing.assert_array_equal(mixed[name][1::2], batch[name][1::2])
        assert mixed[name].dtype == batch[name].dtype


def test_the_best_discriminator_is_the_ratio_of_densities(x64):
    # Three points, which the expert and the imitator visit in these counts of 20.
    expert, own = np.array([10, 6, 4]), np.array([2, 8, 10])
    points = lambda counts: jnp.asarray(np.repeat(np.arange(3), counts)[:, None], float)
    zeros = jnp.zeros((20, 1))
    batch = {"obs": points(own), "expert_obs": points(expert)}
    batch |= {"action": zeros, "expert_action": zeros}
    table = lambda logits: lambda obs, action: logits[obs[:, 0].astype(int)]

    @jax.jit
    def value_and_grad(logits):
        loss = lambda v: imitation.discriminator_loss(table(v), RNG, batch, penalty=0.0).mean()
        return jax.value_and_grad(loss)(logits)

    p, q = expert / 20, own / 20
    value, gradient = value_and_grad(jnp.log(p / q))
    middle = (p + q) / 2
    jensen_shannon = (np.sum(p * np.log(p / middle)) + np.sum(q * np.log(q / middle))) / 2
    np.testing.assert_allclose(value, 2 * np.log(2) - 2 * jensen_shannon, rtol=1e-12)
    np.testing.assert_allclose(gradient, 0, atol=1e-12)
    # The mean reward by logits is then -KL of the imitator to the expert.
    reward = lambda kind: imitation.adversarial_reward(table(jnp.log(p / q)), batch, kind=kind)
    np.testing.assert_allclose(reward("logits").mean(), -np.sum(q * np.log(q / p)), rtol=1e-12)
    d = np.repeat(p / (p + q), own)
    np.testing.assert_allclose(reward("softplus"), -np.log(1 - d), rtol=1e-12)
    np.testing.assert_allclose(reward("log_sigmoid"), np.log(d), rtol=1e-12)
    with pytest.raises(ValueError, match="did you mean 'logits'"):
        reward("logit")


def test_the_gradient_penalty_of_a_linear_function_is_that_of_its_slope():
    batch = paired()
    linear = lambda obs, action: obs @ jnp.asarray([3.0, 0.0]) + 4 * action[:, 0]
    pairs = (batch["obs"], batch["action"]), (batch["expert_obs"], batch["expert_action"])

    @jax.jit
    def penalties(rngs, a):
        constant = lambda obs, action: a * obs[:, 0]
        return (
            imitation.gradient_penalty(linear, rngs, *pairs),
            jnp.sum(imitation.gradient_penalty(constant, rngs, *pairs)),
        )

    found = penalties(row_keys(RNG, 6), 0.0)[0]
    np.testing.assert_allclose(found, 16.0, rtol=1e-5)
    # A constant has no direction of steepest ascent, and a finite gradient all the same.
    assert np.isfinite(jax.jit(jax.grad(lambda a: penalties(row_keys(RNG, 6), a)[1]))(0.0))


RING = np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0]], float)
"""A policy's transitions between three states, 0 -> 1 -> 2 -> 0; there is one action."""
GAMMA = 0.8


def occupancy(counts):
    first = counts / counts.sum()
    return (1 - GAMMA) * np.linalg.solve((np.eye(3) - GAMMA * RING).T, first)


def states(counts):
    return jnp.asarray(np.repeat(np.arange(3), counts)[:, None], float)


def ring_batch(expert, own):
    """Demonstrations and replay in these counts of states; rows that follow them on the ring."""
    batch = {}
    for prefix, counts in (("", own), ("expert_", expert)):
        obs = states(counts)
        batch |= {f"{prefix}obs": obs, f"{prefix}next_obs": (obs + 1) % 3}
        batch |= {f"{prefix}action": jnp.zeros_like(obs)}
        batch |= {f"{prefix}terminated": jnp.zeros(len(obs), bool)}
    return batch


@pytest.mark.parametrize("weight", [0.0, 0.25])
def test_the_least_dice_objective_is_minus_the_kl_of_occupancies(x64, weight):
    # Demonstrated states count as first ones, and the replay has 20 rows as well.
    expert, own = np.array([10, 6, 4]), np.array([2, 8, 10])
    batch, pi = ring_batch(expert, own), occupancy(expert)
    mixture = lambda p: (1 - weight) * p + weight * own / 20
    first, second = mixture(pi), mixture(expert / 20)
    best = np.linalg.solve(np.eye(3) - GAMMA * RING, np.log(first / second))
    options = {
        "actor": lambda params, obs: Fixed(jnp.zeros_like(obs)),
        "nu": lambda nu, obs, action: nu[obs[:, 0].astype(int)],
        "gamma": GAMMA,
        "replay_weight": weight,
        "penalty": 0.0,
    }

    @jax.jit
    def losses(nu):
        loss = lambda nu: imitation.dice_losses({"nu": nu, "actor": ()}, RNG, batch, **options)
        return loss(nu), jax.grad(lambda nu: loss(nu).nu)(nu)

    found, gradient = losses(best)
    np.testing.assert_allclose(found.nu, -np.sum(first * np.log(first / second)), rtol=1e-10)
    np.testing.assert_allclose(gradient, 0, atol=1e-12)
    assert losses(best + np.array([0.1, 0, 0]))[0].nu > found.nu
    np.testing.assert_allclose([found.actor, found.objective], [-found.nu, found.nu], rtol=1e-12)


def test_each_player_of_dice_has_the_gradient_of_its_own_loss_alone(x64):
    batch = paired()
    options = {
        "actor": lambda w, obs: Fixed(obs[:, :1] * w),
        "nu": lambda v, obs, action: jnp.tanh(obs @ v[:2] + v[2] * action[:, 0]),
        "gamma": GAMMA,
    }
    params = {"nu": jnp.asarray([0.3, -0.2, 0.5]), "actor": jnp.asarray(0.7)}

    @jax.jit
    def gradients(params):
        losses = lambda params: imitation.dice_losses(params, RNG, batch, **options)
        both = lambda params: losses(params).nu + losses(params).actor
        of = lambda loss: jax.grad(loss)(params)
        objective = lambda w: losses(params | {"actor": w}).objective
        slope = (objective(params["actor"] + 1e-6) - objective(params["actor"] - 1e-6)) / 2e-6
        return of(both), of(lambda p: losses(p).nu), slope

    joint, of_nu, slope = gradients(params)
    np.testing.assert_allclose(joint["nu"], of_nu["nu"], rtol=1e-12)
    assert of_nu["actor"] == 0
    # Central differences with steps of 1e-6 in double precision.
    np.testing.assert_allclose(joint["actor"], -slope, rtol=1e-6)


@pytest.mark.deep
def test_random_distillation_knows_the_rows_it_was_fitted_to():
    rng = np.random.default_rng(0)
    angle = 2 * np.pi * rng.random(400)
    ring = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    training = Training(
        num_epochs=40, batch_size=100, learning_rate=1e-2, patience=40, weight_decay=0.0
    )
    params = random_distillation.fit(
        RNG, ring, features=8, hidden=16, num_hidden=1, training=training
    )
    reward = jax.jit(lambda x: random_distillation.reward(params, x))
    on, off = reward(jnp.asarray(ring, jnp.float32)), reward(3 * jnp.asarray(ring, jnp.float32))
    np.testing.assert_allclose(np.median(on), 0.9, rtol=1e-4)
    assert np.mean(on > 0.5) > 0.95 and np.mean(off < 0.1) > 0.9
    before = random_distillation.Distillation(8, 16, 1)
    init_rng = jax.random.split(RNG)[0]
    target = jax.jit(before.init)(init_rng, ring[:1].astype(np.float32))["params"]["target"]
    jax.tree.map(np.testing.assert_array_equal, params.variables["params"]["target"], target)


def test_options_of_random_distillation_that_cannot_be_are_refused():
    x = np.random.default_rng(0).normal(size=(9, 2))
    with pytest.raises(ValueError, match="weight_decay needs to be 0; got 1e-06"):
        random_distillation.fit(RNG, x, training=Training())
    with pytest.raises(ValueError, match="median_reward needs to lie in"):
        random_distillation.fit(RNG, x, median_reward=1.0)


def test_the_best_clone_has_the_moments_of_the_actions_before_the_tanh(x64):
    actor_critic = pytest.importorskip("scorejax.models.actor_critic")
    u = np.random.default_rng(0).normal(0.3, 0.5, (50, 2))
    low, high = jnp.asarray([-2.0, 0.0]), jnp.asarray([2.0, 1.0])
    action = (high + low)[None] / 2 + (high - low)[None] / 2 * jnp.tanh(u)

    @jax.jit
    def gradient(mean, log_std):
        spread = lambda row: jnp.broadcast_to(row[None], action.shape)
        policy = lambda p: actor_critic.TanhGaussian(spread(p[0]), spread(p[1]), low, high)
        loss = lambda p: imitation.behavioural_cloning(policy(p), action, edge=1e-6).mean()
        return jax.grad(loss)((mean, log_std))

    # Of maximum likelihood, in double precision; tanh and its inverse lose a few digits.
    for slope in gradient(u.mean(axis=0), np.log(u.std(axis=0))):
        np.testing.assert_allclose(slope, 0, atol=1e-9)
