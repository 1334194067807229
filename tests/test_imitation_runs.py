# SPDX-License-Identifier: Apache-2.0
"""Runs of imitation: an expert's episodes, every method in one loop, stops and evaluations."""

import dataclasses
import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats
from scipy.spatial.distance import cdist

from configs.density_imitation import family, pendulum
from scorejax import runs, systems
from scorejax.data import trajectories
from scorejax.evaluate.reports import save_samples
from scorejax.models.actor_critic import PairCritic
from scorejax.objectives.occupancy_entropy import nwj_bound
from scorejax.rl.rollout import Episodes
from scorejax.systems.density_imitation import rewards
from scorejax.train.loop import train
from scorejax.train.preflight import preflight
from scorejax.train.state import TrainState
from scorejax.train.step import make_train_step
from tests.slow import slow_where
from tests.test_density_imitation import drawn
from tests.trees import assert_equal


@pytest.fixture(scope="module")
def expert(tmp_path_factory):
    """A run of an expert, and three of its episodes as demonstrations."""
    workdir = tmp_path_factory.mktemp("expert")
    config = pendulum.get_config("expert,debug")
    train(systems.load(config), config, workdir)
    model, run = systems.load_model(config), runs.open(workdir)
    draw = jax.jit(model.sampler("stochastic"))
    samples = jax.device_get(draw(run.variables, jax.random.split(jax.random.key(0), 3)))
    save_samples(str(workdir / "episodes"), samples, step=run.step)
    return workdir, samples


@pytest.mark.deep
def test_drawn_episodes_are_demonstrations(expert):
    workdir, samples = expert
    shown = trajectories.load(f"{workdir}/episodes.npz")
    assert shown.num_episodes == 3 and len(shown) == 3 * 20
    np.testing.assert_array_equal(shown.observations[:20], samples["observations"][0, :20])
    np.testing.assert_array_equal(shown.next_observations[20:40], samples["observations"][1, 1:])
    np.testing.assert_array_equal(shown.actions[40:], samples["actions"][2])
    np.testing.assert_allclose(shown.returns(), samples["rewards"].sum(axis=1), rtol=1e-6)


def imitation_config(expert, variant="debug", **changes):
    config = pendulum.get_config(variant)
    config.update({"demonstrations": f"{expert[0]}/episodes.npz", "num_demonstrations": 3})
    config.update(changes)
    return config


@pytest.mark.deep
@pytest.mark.parametrize(
    "method", slow_where(lambda method: method not in ("ndi", "bc"), family.METHODS)
)
def test_every_method_moves_all_of_its_players(expert, method):
    system = systems.load(imitation_config(expert, f"{method},debug"))
    params, model_state = system.init(jax.random.key(0))
    state = TrainState.create(params, model_state, system.tx)
    step = make_train_step(system.loss, system.tx, ema_rate=0.9)
    if method == "bc":
        _, batch = system.source.next(system.source.init(0, jax.random.key(1)), state, None)
    else:
        make = jax.jit(lambda rng: system.source.step(system.source.init(rng, state), state, rng))
        _, batch = make(jax.random.key(1))
    frozen = (system.frozen,) if jax.tree.leaves(system.frozen) else ()
    after, metrics = jax.jit(step)(state, batch, jax.random.key(2), *frozen)
    assert metrics["finite"] == 1
    for player, before in params.items():
        moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), after.params[player], before)
        assert max(jax.tree.leaves(moved)) > 0, player
    players = {"bc": {"actor"}, "value_dice": {"actor", "nu"}}.get(method, {"actor", "critic"})
    assert params.keys() == players | ({"discriminator"} if method == "gail" else set())
    if method == "ndi":
        model = systems.load_model(imitation_config(expert))
        assert float(metrics["alpha"]) == pytest.approx(model.lambda_pi / model.occupancy.unit)


def states_reward(name, batch, model, params):
    """lambda_f times the reward for the states' entropy, by its formula."""
    mean, std = (values[:3] for values in model.demonstrations.moments())
    fields = ("next_obs", "obs", "negatives_next_obs", "negatives_obs")
    after, state, nexts, others = ((np.asarray(batch[k]) - mean) / std for k in fields)
    if name == "nearest_neighbours":
        nearest = np.sort(cdist(state, others), axis=1)[:, 4]
        # The volume of a ball in three dimensions, and the mass of one that holds 5 of n.
        log_mass = special.digamma(5) - special.digamma(len(others) + 1)
        return model.lambda_f * (3 * np.log(nearest) + np.log(4 / 3 * np.pi) - log_mass)
    if name == "learned":
        critic = functools.partial(PairCritic().apply, {"params": params["pair_critic"]})
        f = lambda a, b: np.asarray(critic(jnp.float32(a), jnp.float32(b)))
    else:
        f = lambda a, b: 1 - ((a - b) ** 2).sum(axis=1) / (2 * model.similarity_scale**2)
    # Each row with all negatives, one row after the other.
    num, repeated = len(state), lambda x: np.repeat(x, len(nexts), axis=0)
    by_next = f(np.tile(nexts, (num, 1)), repeated(state)).reshape(num, -1)
    by_state = f(repeated(after), np.tile(others, (num, 1))).reshape(num, -1)
    margins = np.exp(by_next - 1).mean(axis=1) + np.exp(by_state - 1).mean(axis=1)
    return model.lambda_f * model.gamma * (f(after, state) - margins)


@pytest.mark.deep
@pytest.mark.parametrize(
    "changes",
    [
        {"entropy_term": "learned"},
        {"entropy_term": "similarity", "similarity_scale": 0.7},
        {"entropy_term": "nearest_neighbours"},
        {"entropy_term": "nearest_neighbours", "terminal": "shifted"},
    ],
    ids=lambda changes: "+".join(str(value) for value in changes.values()),
)
def test_a_systems_reward_is_that_of_its_term_and_its_origin(expert, changes):
    config = imitation_config(expert, lambda_f=0.5, **changes)
    system, model = systems.load(config), systems.load_model(config)
    params, model_state = system.init(jax.random.key(0))
    state = TrainState.create(params, model_state, system.tx)
    make = jax.jit(lambda rng: system.source.step(system.source.init(rng, state), state, rng)[1])
    batch = make(jax.random.key(1))
    _, aux = jax.jit(system.loss)(params, state, jax.random.key(2), batch, system.frozen)
    pairs = np.concatenate([batch["obs"], batch["action"]], axis=1)
    own = model.demonstrations.pairs()
    law = stats.multivariate_normal(own.mean(axis=0), np.cov(own, rowvar=False, bias=True))
    floor, low, centre = map(
        float, (getattr(model.occupancy, k) for k in ("floor", "low", "centre"))
    )
    log_q = law.logpdf(pairs)
    slowed = np.maximum(log_q, floor) + 1 - np.sqrt(1 + 2 * np.maximum(floor - log_q, 0))
    origin = low if changes.get("terminal") == "shifted" else centre
    extra = states_reward(changes["entropy_term"], batch, model, params)
    expected = np.mean(slowed - origin + extra) / (centre - floor)
    # Single precision of log-densities far from the demonstrations.
    assert float(aux.metrics["reward"]) == pytest.approx(expected, rel=1e-3)


def test_a_learned_critic_climbs_the_bound_of_recent_transitions():
    term = rewards.TERMS["learned"](gamma=0.9, centre=False, scale=1.0)
    rng = np.random.default_rng(0)
    state = rng.normal(size=(256, 2)).astype(np.float32)
    after = (0.9 * state + 0.3 * rng.normal(size=state.shape)).astype(np.float32)
    batch = {"negatives_obs": jnp.asarray(state), "negatives_next_obs": jnp.asarray(after)}
    params = jax.jit(lambda rng: term.init(rng, 2))(jax.random.key(0))

    @jax.jit
    def both():
        nexts, others = batch["negatives_next_obs"], batch["negatives_obs"]
        few = nexts[:32], others[:32]
        bound = nwj_bound(term.critic(params), nexts, others, *few)
        return term.loss(params, batch), -bound

    np.testing.assert_allclose(*both(), rtol=1e-5)


def test_evaluation_refuses_other_demonstrations_than_those_of_the_run(expert, tmp_path):
    config = imitation_config(expert, "bc,debug")
    preflight(systems.load(config), config, tmp_path / "run")
    model = systems.load_model(config)
    runs.require_same_inputs(tmp_path / "run", model.inputs(), model.origins())
    other = imitation_config(expert, "bc,debug", num_demonstrations=2)
    model = systems.load_model(other)
    with pytest.raises(
        ValueError, match=r"the frozen arrays 'demonstrations' have changed: .*\.npz"
    ):
        runs.require_same_inputs(tmp_path / "run", model.inputs(), model.origins())


@pytest.mark.slow  # test_online_source.py shows the same with a toy
def test_a_run_that_is_stopped_goes_on_bit_for_bit_with_memory_and_environments(expert, tmp_path):
    config = imitation_config(expert)
    whole = train(systems.load(config), config, tmp_path / "whole")
    for steps in (20, 40):
        config.num_train_steps = steps
        parts = train(systems.load(config), config, tmp_path / "parts")
    assert_equal(parts.params, whole.params)
    assert_equal(parts.opt_state, whole.opt_state)
    report = systems.load_model(config).metrics()
    assert report.keys() == {"return", "chamfer", "motion", "bound", "density"}


@pytest.mark.deep
def test_normalised_returns_are_one_for_the_demonstrations_and_zero_for_uniform_actions(expert):
    from scorejax.systems.density_imitation import evaluation

    agent = systems.load_model(imitation_config(expert)).agent
    uniform = evaluation.random_returns(agent, evaluation.NUM_RANDOM).mean()
    good = dataclasses.replace(drawn(), rewards=np.full(400, (uniform + 50) / 200))
    shown = float(good.returns().mean())
    played = lambda total: Episodes(
        np.zeros((2, 2, 3)), np.zeros((2, 1, 1)), np.full((2, 1), total), None, np.ones(2, int)
    )
    scalars = lambda total, demonstrations: (
        (
            evaluation.returns_metric(agent, lambda variables: played(total), demonstrations)(
                None, None
            )
        ).scalars
    )
    for total, expected in ((shown, 1.0), (uniform, 0.0), ((shown + uniform) / 2, 0.5)):
        assert scalars(total, good)["normalised_return"] == pytest.approx(expected, abs=1e-4)
    bad = dataclasses.replace(good, rewards=good.rewards - 1)
    assert "normalised_return" not in scalars(shown, bad), "uniform actions are better"


@pytest.mark.parametrize("name", ["pendulum", "mountain_car", "linear_gaussian"])
def test_agents_in_full_size_have_the_shapes_of_their_tasks(name):
    config = importlib.import_module(f"configs.density_imitation.{name}").get_config("expert")
    model = systems.load_model(config)
    variables = jax.eval_shape(lambda rng: (model.learner().init(rng), {}), jax.random.key(0))
    play = functools.partial(model.agent.play, deterministic=True)
    episodes = jax.eval_shape(play, variables, jax.random.split(jax.random.key(0), 2))
    one = model.agent.example
    assert episodes.observations.shape == (2, one.horizon + 1, one.observation_dim)
    assert episodes.actions.shape == (2, one.horizon, one.action_dim)
