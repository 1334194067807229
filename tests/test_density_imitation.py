# SPDX-License-Identifier: Apache-2.0
"""Rewards, bound and demonstrations of imitation against closed forms."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.spatial.distance import cdist

from scorejax.data.demonstrations import Demonstrations, from_episodes
from scorejax.objectives.actor_critic import td_target
from scorejax.objectives.occupancy_entropy import saelbo_reward
from scorejax.rl.rollout import Episodes
from scorejax.systems.density_imitation import occupancy as occupancies
from scorejax.systems.density_imitation import rewards
from scorejax.systems.density_imitation.bound import drawn_pairs
from scorejax.systems.density_imitation.evaluation import chamfer_distance

FIT = occupancies.FitOptions(noise=0.1, num_epochs=2, batch_size=64)


def drawn(num=400, seed=0) -> Demonstrations:
    """Two episodes of correlated rows: observations (3,), actions (1,), in unlike units."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(num, 4)) @ rng.normal(size=(4, 4)) * [1, 10, 0.1, 2] + [0, 5, 0, 1]
    halves = np.split(rows, 2)
    observations = [np.concatenate([half[:, :3], rng.normal(size=(1, 3))]) for half in halves]
    return from_episodes(observations, [half[:, 3:] for half in halves])


def exact_constants(shown: Demonstrations, kept, held):
    """log q of the held-out rows, by the Gaussian of the moments of those that were kept."""
    pairs = shown.pairs()
    law = stats.multivariate_normal(
        pairs[kept].mean(axis=0), np.cov(pairs[kept], rowvar=False, bias=True)
    )
    return law.logpdf(pairs[held])


def test_the_density_is_in_nats_of_the_environments_units():
    shown = drawn()
    occupancy = occupancies.fit_occupancy("gaussian", shown, FIT, margin=3.0, seed=0)
    found = occupancies.log_occupancy(
        "gaussian", occupancy, jnp.asarray(shown.pairs(), jnp.float32)
    )
    # Of Gaussians, standardised or not, the fit is that of the sample moments. Single precision of
    # squares up to 30.
    everything = np.arange(len(shown))
    np.testing.assert_allclose(found, exact_constants(shown, everything, everything), atol=2e-3)


@pytest.mark.parametrize("num_episodes", [1, 2])
def test_constants_of_the_reward_are_of_rows_that_the_density_has_not_seen(num_episodes):
    shown = drawn().subsample(num_episodes)
    occupancy = occupancies.fit_occupancy("gaussian", shown, FIT, margin=3.0, seed=0)
    if num_episodes == 2:
        kept, held = np.arange(200), np.arange(200, 400)
    else:  # Five parts of 40 rows: 8 in the middle, and 4 on both sides that nobody sees.
        parts = np.arange(200).reshape(5, 40)
        kept, held = np.delete(parts, np.s_[12:28], axis=1).ravel(), parts[:, 16:24].ravel()
    exact = exact_constants(shown, kept, held)
    # As in the test above.
    np.testing.assert_allclose(occupancy.low, np.quantile(exact, 0.01), atol=5e-3)
    np.testing.assert_allclose(occupancy.floor, occupancy.low - 3, rtol=1e-6)
    np.testing.assert_allclose(occupancy.centre, exact.mean(), atol=2e-3)
    assert occupancy.unit == pytest.approx(float(occupancy.centre - occupancy.floor))


def test_fresh_pairs_of_the_expert_are_seldom_below_the_floor_of_kernels():
    # Standard normal pairs of 23 numbers: of the rows themselves the kernels' log q lies some 50
    # nats above that of fresh pairs, and a floor measured there is above nearly all of these.
    rng = np.random.default_rng(0)
    episodes = lambda num: from_episodes(
        rng.normal(size=(num, 41, 17)), rng.normal(size=(num, 40, 6))
    )
    shown, fresh = episodes(10), jnp.asarray(episodes(20).pairs(), jnp.float32)
    occupancy = occupancies.fit_occupancy(
        "kernel_density", shown, FIT._replace(noise=0.5), margin=0.0, seed=0
    )
    log_q = occupancies.log_occupancy("kernel_density", occupancy, fresh)
    own = occupancies.log_occupancy(
        "kernel_density", occupancy, jnp.asarray(shown.pairs(), jnp.float32)
    )
    assert np.mean(log_q < jnp.quantile(own, 0.01)) > 0.98
    # One in a hundred, of 80 rows that set the floor and 800 that are counted: the quantile of 80
    # is about their smallest, below which lies a share with mean 1 / 81; > 0.1 in 2 of 10^4 cases.
    assert np.mean(log_q < occupancy.floor) < 0.1


def test_below_the_floor_the_reward_falls_ever_more_slowly_and_never_ends():
    floor = jnp.float32(-7.0)
    log_q = jnp.array([3.0, -7.0, -11.0, -1e4, -1e8])
    found, slope = jax.vmap(
        jax.value_and_grad(lambda value: occupancies.slowed_below(value[None], floor)[0])
    )(log_q)
    deep = np.sqrt(1 + 2 * (-7 - np.asarray(log_q[3:], float)))
    np.testing.assert_allclose(found, [3, -7, -9, *(-6 - deep)], rtol=1e-6)
    # Also 1 from above the floor: there is no corner in which to stay.
    np.testing.assert_allclose(slope, [1, 1, 1 / 3, *(1 / deep)], rtol=1e-5)


def reward_of(term="log_displacement", terminal="absorbing", weight=0.3, ended=0.25):
    shown = drawn()
    occupancy = occupancies.fit_occupancy("gaussian", shown, FIT, margin=3.0, seed=0)
    built = rewards.TERMS[term](gamma=0.9, centre=False, scale=1.0)
    options = {"weight": weight, "terminal": terminal, "ended": ended}
    reward = rewards.density_reward(
        "gaussian", occupancy, built, recent=10, observation_dim=3, **options
    )
    return reward, occupancy, shown


def batch_of(shown):
    table = {name: jnp.asarray(rows) for name, rows in shown.transitions().items()}
    return {name: rows[:50] for name, rows in table.items()} | {
        "negatives_obs": table["obs"][100:150],
        "negatives_next_obs": table["next_obs"][100:150],
    }


@pytest.mark.deep
@pytest.mark.parametrize("terminal", rewards.TERMINALS)
def test_the_reward_is_log_q_plus_lambda_f_times_the_bounds_reward(terminal):
    reward, occupancy, shown = reward_of(terminal=terminal)
    batch = batch_of(shown)
    batch["action"] = batch["action"].at[::2].multiply(10)  # Nobody demonstrates these.
    mean, std = shown.moments()
    white = {k: (np.asarray(batch[k]) - mean[:3]) / std[:3] for k in batch if k.endswith("obs")}
    f = lambda after, state: 1 + jnp.log(jnp.maximum(jnp.sum((after - state) ** 2, axis=1), 1e-6))
    names = ("obs", "next_obs", "negatives_next_obs", "negatives_obs")
    entropy = saelbo_reward(f, *(jnp.asarray(white[n], jnp.float32) for n in names), gamma=0.9)
    pairs = jnp.concatenate([batch["obs"], batch["action"]], axis=1)
    origin = occupancy.centre if terminal == "absorbing" else occupancy.low
    log_q = occupancies.log_occupancy("gaussian", occupancy, pairs)
    assert jnp.min(log_q) < occupancy.floor < jnp.max(log_q), "both branches"
    log_q = occupancies.slowed_below(log_q, occupancy.floor)
    expected = log_q - origin + 0.3 * entropy
    found = reward.unit * reward.of({}, reward.frozen, batch)
    # Sums of squares of single precision.
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


def test_an_end_is_worth_staying_for_ever_where_the_demonstrations_ended():
    reward, occupancy, _ = reward_of(ended=0.25)
    one, none = jnp.ones(1), jnp.zeros(1)
    found = float(reward.target(none, one, 7 * one, gamma=0.9)[0])
    # A quarter ended: three quarters of the way from the mean to the floor, in every later step.
    stays = 0.75 * float(occupancy.floor - occupancy.centre) / reward.unit
    assert found == pytest.approx(0.9 * stays / (1 - 0.9), rel=1e-6)
    assert float(reward.target(one, none, 7 * one, gamma=0.9)[0]) == pytest.approx(1 + 0.9 * 7)
    assert reward_of(terminal="shifted")[0].target is td_target


def test_thinning_leaves_how_episodes_ended_and_what_they_returned():
    shown = from_episodes(
        [np.random.default_rng(i).normal(size=(8, 2)) for i in range(4)],
        [np.zeros((7, 1))] * 4, rewards=[np.ones(7)] * 4, terminated=[True, False, True, True],
    )  # fmt: skip
    for every in (1, 2, 5, 10):
        thin = shown.subsample(every=every)
        assert thin.share_ended == 0.75 and (thin.returns() == 7).all()
        assert thin.subsample(2).share_ended == 0.5


def test_a_constant_column_is_refused_by_name():
    shown = from_episodes([np.arange(62.0).reshape(31, 2) * [1, 0]], [np.ones((30, 1))])
    with pytest.raises(ValueError, match="column 1 of observations is 0 in all 20 pairs"):
        occupancies.fit_occupancy("gaussian", shown, FIT, margin=3.0, seed=0)


def test_units_do_not_matter_to_a_discriminators_penalty():
    shown = drawn()
    rescaled = dataclasses.replace(
        shown,
        observations=shown.observations * [1e-3, 1, 1],
        next_observations=shown.next_observations * [1e-3, 1, 1],
    )
    losses = []
    for one in (shown, rescaled):
        reward = rewards.adversarial(one, hidden=(8,), penalty=10.0, kind="softplus")
        batch = {k: jnp.asarray(v[:20]) for k, v in one.transitions().items()}
        batch |= {f"expert_{k}": jnp.asarray(v[50:70]) for k, v in one.transitions().items()}
        params = reward.init(jax.random.key(0))
        losses.append(float(reward.loss(params, (), jax.random.key(1), batch)[0]))
    # Single precision of columns that are shifted by many deviations.
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_pairs_are_drawn_by_their_weight_in_the_occupancy():
    # Two episodes, of 3 and 1 steps: weights 1, g, g^2 and 1, with the step as the observation.
    steps = jnp.tile(jnp.arange(4.0)[None, :, None], (2, 1, 1))
    episode = jnp.array([0.0, 10.0])[:, None, None]
    played = Episodes(
        steps + episode, jnp.zeros((2, 3, 1)), jnp.zeros((2, 3)), jnp.zeros((2, 3), bool),
        jnp.array([3, 1]),
    )  # fmt: skip
    obs, _, after, which = drawn_pairs(jax.random.key(0), played, 0.5)
    np.testing.assert_array_equal(after, obs + 1)
    np.testing.assert_array_equal(obs[:, 0], which - which // 3 * 3 + 10 * (which // 3))
    counts = [int((obs == value).sum()) for value in (0, 1, 2, 10)]
    assert sum(counts) == len(obs)
    weights = np.array([1, 0.5, 0.25, 1])
    # False alarms: one in ten thousand.
    assert stats.chisquare(counts, len(obs) * weights / weights.sum()).pvalue > 1e-4


def test_chamfer_distance_is_that_of_all_pairs():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(20, 3)), rng.normal(size=(30, 3))
    distances = cdist(a, b)
    brute = distances.min(axis=1).mean() + distances.min(axis=0).mean()
    assert chamfer_distance(a, b) == pytest.approx(brute, rel=1e-12)
