# SPDX-License-Identifier: Apache-2.0
"""What every system inherits: one table, each property for each system in it.

A new system adds a row. The properties of its paper are tested in a file of its own.
"""

import dataclasses
import functools
import importlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from scorejax import systems
from scorejax.capabilities import DrawsSamples, Segments
from scorejax.objectives import denoising
from scorejax.score_model import bind
from scorejax.train import parallel
from scorejax.train.checkpoint import Checkpoints
from scorejax.train.state import TrainState
from scorejax.train.step import make_train_step, scan_steps
from scorejax.train.system import frozen_arguments
from tests.trees import assert_close, assert_equal

# Name -> module of the config and variant.
TABLE = {
    "score_sde-vp": ("configs.score_sde.digits", "vp,debug"),
    "score_sde-subvp": ("configs.score_sde.digits", "subvp,debug"),
    "score_sde-ve": ("configs.score_sde.digits", "ve,debug"),
    "ncsnv2": ("configs.ncsnv2.digits", "debug"),
    "edm": ("configs.edm.digits", "debug"),
    "noisy_classifier": ("configs.noisy_classifier.digits", "vp,debug"),
    "fd_score_matching-flow": ("configs.fd_score_matching.nice_digits", "debug"),
    "fd_score_matching-energy": ("configs.fd_score_matching.energy_digits", "debug"),
    "fd_score_matching-vae": ("configs.fd_score_matching.vae_digits", "debug"),
    "fd_score_matching-kernel": ("configs.fd_score_matching.kernel_wine", "debug"),
    "ar_csm-vae": ("configs.ar_csm.vae_digits", "debug"),
    "bionet": ("configs.bionet.nuclei", "t2,debug"),
    "recovery_ebm-images": ("configs.recovery_ebm.digits", "debug"),
    "recovery_ebm-plane": ("configs.recovery_ebm.rings", "debug"),
    "ar_csm-images": ("configs.ar_csm.digits", "debug"),
    "ar_csm-table": ("configs.ar_csm.wine", "debug"),
    "classifier_mistakes": ("configs.classifier_mistakes.digits", "mean_teacher,debug"),
    "mv_con": ("configs.mv_con.generated", "debug"),
}
# Of the joined batch two devices compute something else where batches are normalised, weights
# solved for, or halves exchanged between learners, on each device's own examples. Flows' and
# energies' differences lose more digits to rounding than are compared; test_fd_score_matching.py
# has their losses by rows, exactly.
NOT_DIVIDED = (
    "bionet", "fd_score_matching-kernel", "fd_score_matching-flow", "fd_score_matching-energy",
    "mv_con",
)  # fmt: skip
SCORE_SDES = [name for name in TABLE if name.startswith("score_sde")]


def rows(in_full, names=tuple(TABLE)):
    """The table as parameters; rows that are not tested in full are left to the slow suite."""
    marks = lambda name: [] if name in in_full else [pytest.mark.slow]
    return [pytest.param(name, marks=marks(name)) for name in names]


IN_FULL = ["score_sde-vp", "recovery_ebm-plane"]
score_sdes = pytest.mark.parametrize("case", rows(IN_FULL, SCORE_SDES), indirect=True)


class Case:
    """A system at debug size, the state it starts from, and its first batches."""

    def __init__(self, name):
        module, variant = TABLE[name]
        self.config = importlib.import_module(module).get_config(variant)
        self.system = systems.load(self.config)
        self.frozen = frozen_arguments(self.system)
        self.state = self.create(jax.random.key(0))
        carry = self.system.source.init(0, jax.random.key(1))
        self.batches = []
        for _ in range(4):
            carry, batch = self.system.source.next(carry, self.state, jax.random.key(2))
            self.batches.append(batch)
        self.traces = 0
        self._compiled_step = jax.jit(self._counted_step)

    def step(self, state, batch, rng):
        return self._compiled_step(state, batch, rng, *self.frozen)

    @functools.cached_property
    def _plain_step(self):
        return make_train_step(self.system.loss, self.system.tx, ema_rate=self.config.ema_rate)

    def _counted_step(self, *arguments):
        self.traces += 1
        return self._plain_step(*arguments)

    @functools.cached_property
    def create(self):
        return jax.jit(lambda rng: TrainState.create(*self.system.init(rng), self.system.tx))

    def run(self, state, batches):
        metrics = None
        for batch in batches:
            state, metrics = self.step(state, batch, jax.random.key(3))
        return state, metrics


# The SDEs, their losses and their networks have tests of their own.
@pytest.fixture(scope="module", params=rows(IN_FULL))
def case(request):
    return Case(request.param)


def test_init_is_a_function_of_the_key(case):
    assert_equal(case.create(jax.random.key(0)), case.state)
    other = case.create(jax.random.key(1))
    assert any(
        (a != b).any() for a, b in zip(*map(jax.tree.leaves, (other, case.state)), strict=True)
    )


def test_metrics_are_scalars_with_stable_names(case):
    _, first = case.run(case.state, case.batches[:1])
    _, later = case.run(case.state, case.batches[:3])
    assert first.keys() == later.keys() >= {"loss", "grad_norm", "finite"}
    assert all(np.shape(value) == () for value in later.values())


@score_sdes
def test_the_loss_is_finite_and_falls(case):
    # Forty steps over the same few batches. An untrained network has the loss of the noise itself;
    # the slowest, VE, comes to two thirds of that, the mean of eight losses having an error of 3 %.
    state, first = case.run(case.state, case.batches[:1])
    losses = []
    for _ in range(10):
        for batch in case.batches:
            state, metrics = case.step(state, batch, jax.random.key(3))
            losses.append(float(metrics["loss"]))
    assert np.isfinite(losses).all()
    assert np.mean(losses[-8:]) < 0.8 * float(first["loss"])


def test_the_step_traces_once(case):
    case.run(case.state, case.batches)
    assert case.traces == 1


def test_saved_and_restored_a_run_goes_on_bit_for_bit(case, tmp_path):
    whole, _ = case.run(case.state, case.batches)
    half, _ = case.run(case.state, case.batches[:2])
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(jax.device_get(half))
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore_latest(jax.eval_shape(lambda: case.state))
    resumed, _ = case.run(jax.device_put(restored), case.batches[2:])
    assert_equal(resumed, whole)


# The loop's own test, with the smallest system, is in test_parallel.py.
@pytest.mark.parametrize(
    "case",
    rows(in_full=[], names=[name for name in TABLE if name not in NOT_DIVIDED]),
    indirect=True,
)
def test_two_devices_do_what_one_does_with_the_joined_batch(case):
    # With plain gradient descent the change of a parameter is its gradient, and is compared as
    # such. Adam divides gradients by their own size, those that are nothing but rounding too.
    tx = optax.sgd(1.0)
    make = functools.partial(make_train_step, case.system.loss, tx, ema_rate=0.9)
    single = jax.jit(scan_steps(make()))
    mapped = parallel.map_step(scan_steps(make(axis_name=parallel.AXIS)))
    start, rng = TrainState.create(case.state.params, case.state.model_state, tx), jax.random.key(3)
    batches = case.batches[:1]
    expected, _ = single(start, jax.tree.map(lambda leaf: leaf[None], batches[0]), rng)
    state, _ = mapped(parallel.replicate(start), parallel.shard(batches), rng)
    got = parallel.unreplicate(state)
    change = jax.tree.map(lambda new, old: np.abs(new - old).max(), expected.params, start.params)
    # Sums in another order, in single precision: 1e-5 of the largest gradient.
    atol = 1e-5 * max(jax.tree.leaves(change))
    assert_close(got.params, jax.device_get(expected.params), rtol=1e-6, atol=atol)


@score_sdes
def test_gradients_are_finite_at_both_ends_of_time(case):
    model = systems.load_model(case.config)
    sde, x = model.sde, jnp.asarray(case.batches[0]["image"])
    noise = jax.random.normal(jax.random.key(5), x.shape)

    def loss(params, t):
        score_fn = model.to_score(bind(model.network, (params, case.state.model_state)))
        return jnp.mean(denoising.denoising_error(score_fn, sde, t, noise, x))

    gradient_at = jax.jit(jax.grad(loss))
    for t in (sde.t_min, sde.t_max):
        gradient = gradient_at(case.state.params, jnp.full(len(x), t))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient)), t


# By default what it does is seen in test_launch.py and in the notebook.
@pytest.mark.parametrize("case", rows(in_full=[]), indirect=True)
def test_evaluation_gives_numbers_and_pictures_and_repeats_itself(case):
    variables = case.system.published(case.state)
    first, again = (
        case.system.evaluate(jax.random.key(4), variables, *case.frozen) for _ in range(2)
    )
    assert first.scalars == again.scalars and all(np.isfinite(list(first.scalars.values())))
    for name, picture in first.pictures.items():
        assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[-1] == 3
        np.testing.assert_array_equal(picture, again.pictures[name])


@pytest.mark.parametrize(
    "sde, name, asked, nfe",
    [
        ("vp", "pc", {"nfe": 11}, 11),
        ("ve", "pc", {"nfe": 11}, 10),  # A corrector doubles the cost of a step.
        pytest.param("ve", "pc", {"num_steps": 7}, 14, marks=pytest.mark.slow),
        ("vp", "heun", {}, 35),
        pytest.param("subvp", "heun", {"nfe": 12}, 11, marks=pytest.mark.slow),
        ("ve", "dpm++", {"nfe": 12}, 12),
        ("vp", "sde-dpm++", {"num_steps": 9}, 10),
    ],
)
def test_a_sampler_makes_the_calls_that_it_reports_and_no_more_than_asked(sde, name, asked, nfe):
    config = importlib.import_module("configs.score_sde.digits").get_config(f"{sde},debug")
    calls = []

    class Counting(nn.Module):
        @nn.compact
        def __call__(self, x, label):
            jax.debug.callback(lambda _: calls.append(1), x.sum())
            return jnp.zeros_like(x)

    model = dataclasses.replace(systems.load_model(config), network=Counting())
    draw = model.sampler(name, **asked)
    drawn = jax.block_until_ready(jax.jit(draw)(({}, {}), jax.random.split(jax.random.key(0), 2)))
    jax.effects_barrier()
    assert len(calls) == nfe and (drawn["nfe"] == nfe).all()
    assert drawn["image"].shape == (2, 8, 8, 1)


def test_an_unknown_system_names_the_nearest():
    config = importlib.import_module("configs.score_sde.digits").get_config("debug")
    config.system = "scoresde"
    with pytest.raises(ValueError, match="unknown system 'scoresde': did you mean 'score_sde'"):
        systems.load(config)


def test_a_system_without_a_capability_names_those_that_have_it():
    config = importlib.import_module("configs.score_sde.digits").get_config("debug")
    assert isinstance(systems.require(config, DrawsSamples), DrawsSamples)
    with pytest.raises(
        ValueError, match=r"'score_sde', model 'ncsnpp', cannot segment pictures; bionet can"
    ):
        systems.require(config, Segments)
    able = systems.able(DrawsSamples)
    assert {"score_sde", "ncsnv2", "edm"} <= set(able) and "bionet" not in able
