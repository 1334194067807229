# SPDX-License-Identifier: Apache-2.0
"""Arrays that training reads and does not change, and the variables that a run publishes."""

import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict
from toy_system import CONFIG as TOY

from scorejax import runs
from scorejax.evaluate.progress import make_evaluate
from scorejax.report import Evaluation
from scorejax.train import parallel
from scorejax.train.loop import train
from scorejax.train.preflight import preflight
from scorejax.train.state import TrainState
from scorejax.train.step import make_train_step, scan_steps
from scorejax.train.system import System
from scorejax.typing import Aux, OfflineSource

CONFIG = TOY | {"system": "frozen_toy", "density_workdir": "runs/density", "num_train_steps": 20}
NUM_ROWS = 10_000_000


def rows_of(batch_size):
    """Batches of row numbers."""
    draw = lambda step: np.random.default_rng(step).integers(0, 1000, batch_size)
    return OfflineSource(
        lambda start_step, rng: start_step,
        lambda step, state, rng: (step + 1, {"row": draw(step)}),
    )


def loss(params, state, rng, batch, frozen):
    """Mean of (weight - table[row])^2: the weight becomes the mean of the table."""
    value = jnp.mean((params["weight"] - frozen["table"][batch["row"]]) ** 2)
    return value, Aux({}, state.model_state)


def evaluate(rng, variables, frozen):
    return Evaluation({"error": float(abs(variables[0]["weight"] - frozen["table"].mean()))}, {})


def system(table, **fields):
    return System(
        init=lambda rng: ({"weight": jnp.float32(0), "bias": jnp.float32(1)}, {}),
        loss=loss,
        tx=optax.sgd(0.3),
        source=rows_of(CONFIG["batch_size"]),
        evaluate=evaluate,
        frozen={"table": table},
        paths=("density_workdir",),
        **fields,
    )


def bytes_of(directory):
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def test_a_large_frozen_table_is_an_argument_of_the_program_and_in_no_checkpoint(tmp_path):
    table = np.full(NUM_ROWS, 2.0, np.float32)
    large = system(table)
    state = train(large, CONFIG, tmp_path)
    # Gradient descent on (w - 2)^2 at rate 0.3 keeps 0.4 of the error a step: 0.4^20 = 1e-8.
    np.testing.assert_allclose(state.params["weight"], 2.0, rtol=1e-6)
    assert bytes_of(tmp_path / "checkpoints") < 1_000_000 < table.nbytes

    _, batch = large.source.next(0, None, None)
    arguments = parallel.replicate(state), parallel.shard([batch] * 2), jax.random.key(0)
    frozen = parallel.replicate(large.frozen)
    assert program_length(large.loss, *arguments, frozen) < 1_000_000


def program_length(loss_fn, state, batches, rng, *frozen):
    """Characters of the program of two steps, constants included, before XLA compiles it."""
    step = make_train_step(loss_fn, optax.sgd(0.3), ema_rate=0.9, axis_name=parallel.AXIS)
    call = parallel.map_step(scan_steps(step), num_frozen=len(frozen))
    return len(call.lower(state, batches, rng, *frozen).as_text())


def test_closed_over_arrays_do_show_in_the_text_of_a_program():
    # Or the test above could not fail: eight characters and more for each float.
    table = jnp.arange(100_000, dtype=jnp.float32)
    closed = lambda params, state, rng, batch: loss(params, state, rng, batch, {"table": table})
    small = system(np.asarray(table))
    state = TrainState.create(*small.init(None), small.tx)
    _, batch = small.source.next(0, None, None)
    arguments = parallel.replicate(state), parallel.shard([batch] * 2), jax.random.key(0)
    assert program_length(closed, *arguments) > 800_000
    assert program_length(loss, *arguments, parallel.replicate(small.frozen)) < 100_000


def test_frozen_arrays_that_changed_are_refused_by_name(tmp_path):
    table = np.arange(1000, dtype=np.float32)
    train(system(table), CONFIG, tmp_path)
    digest = json.loads((tmp_path / "config.json").read_text())["frozen"]["table"]
    assert len(digest) == 64
    longer, moved = CONFIG | {"num_train_steps": 24}, {"density_workdir": "elsewhere/density"}
    with pytest.raises(
        ValueError, match=r"the frozen arrays 'table' have changed: .*density_workdir='elsewhere"
    ):
        train(system(table + 1), longer | moved, tmp_path)
    # The same arrays from another place go on, and the checksum stays on record.
    assert train(system(table), longer | moved, tmp_path).step == 24
    assert json.loads((tmp_path / "config.json").read_text())["frozen"]["table"] == digest
    with pytest.raises(ValueError, match="the frozen arrays 'table' have changed"):
        train(system(table)._replace(frozen={}), CONFIG | {"num_train_steps": 28}, tmp_path)


def test_host_arrays_from_init_are_trained(tmp_path):
    weights = np.full((1000, 1000), 3.0, np.float32)
    host = system(np.ones(1000, np.float32))._replace(
        init=lambda rng: ({"weight": np.float32(0), "pretrained": weights}, {})
    )
    state = train(host, CONFIG, tmp_path)
    np.testing.assert_array_equal(state.params["pretrained"], weights)


def test_frozen_arrays_are_compared_as_training_sees_them(tmp_path):
    table = np.arange(1000, dtype=np.float64)
    train(system(table), CONFIG, tmp_path)
    longer = CONFIG | {"num_train_steps": 24}
    assert train(system(jnp.asarray(table)), longer, tmp_path).step == 24
    with pytest.raises(ValueError, match="hold a random key"):
        preflight(system(jax.random.key(0)), longer, tmp_path)


def test_frozen_arrays_that_a_run_did_not_have_are_refused(tmp_path):
    without = system(np.ones(1000, np.float32))
    constant = without._replace(
        frozen=(),
        loss=lambda params, state, rng, batch: loss(
            params, state, rng, batch, {"table": jnp.ones(1000)}
        ),
        evaluate=lambda rng, variables: Evaluation({}, {}),
    )
    train(constant, CONFIG, tmp_path)
    with pytest.raises(ValueError, match=r"the frozen arrays 'table' have changed: .* absent"):
        preflight(without, CONFIG, tmp_path)


def test_a_config_may_not_use_the_key_of_the_checksums(tmp_path):
    with pytest.raises(ValueError, match="the config key 'frozen' is reserved"):
        preflight(system(np.ones(10, np.float32)), CONFIG | {"frozen": True}, tmp_path)


def test_metrics_see_the_published_variables_and_the_frozen_arrays():
    seen = lambda: (
        lambda rng, variables, frozen: Evaluation(
            {"bias": float(variables[0]["bias"]), "mean": float(frozen["table"].mean())}, {}
        )
    )
    evaluate = make_evaluate({"bias": seen}, "bias")
    variables, frozen = ({"bias": np.float32(2)}, {}), {"table": np.full(10, 5.0, np.float32)}
    scalars = evaluate(jax.random.key(0), variables, frozen).scalars
    assert scalars == {"bias": 2.0, "mean": 5.0}


def test_an_evaluation_gets_what_is_published_and_moves_nothing_else(tmp_path):
    heavy, seen = np.ones((509, 1021), np.float32), []

    def evaluate(rng, variables, frozen):
        # The state in training has a leading axis of devices: an array of this shape is a copy.
        copies = [array for array in jax.live_arrays() if array.shape == heavy.shape]
        seen.append((jax.device_get(variables), len(copies)))
        return Evaluation({}, {})

    published = lambda state: ({"bias": state.params["bias"] + 1}, {"updates": state.step})
    run = system(np.ones(1000, np.float32), published=published)._replace(
        init=lambda rng: ({"weight": np.float32(0), "bias": np.float32(1), "heavy": heavy}, {}),
        tx=optax.adam(0.1),
        evaluate=evaluate,
    )
    train(run, CONFIG | {"eval_every": 10, "save_every": 20}, tmp_path)
    assert seen == [(({"bias": 2.0}, {"updates": step}), 0) for step in (10, 20)]


def test_a_system_publishes_the_variables_that_it_says(tmp_path):
    # The bias alone, and not averaged: what a second stage needs of an actor and its critic.
    published = lambda state: ({"bias": state.params["bias"]}, {"updates": state.step})
    table = np.ones(1000, np.float32)
    train(system(table, published=published), CONFIG | {"eval_every": 0}, tmp_path / "first")
    shutil.move(tmp_path / "first", tmp_path / "moved")
    run = runs.open(tmp_path / "moved")
    assert run.step == 20 and run.config.density_workdir == "runs/density"
    assert run.variables == ({"bias": 1.0}, {"updates": 20})


def test_the_averages_are_published_by_default(tmp_path):
    state = train(system(np.ones(1000, np.float32)), CONFIG, tmp_path)
    run = runs.open(tmp_path, step=20)
    assert run.variables == (state.ema_params, {})
    assert run.variables[0]["weight"] != state.params["weight"]
    with pytest.raises(FileNotFoundError, match="no checkpoint of step 3"):
        runs.open(tmp_path, step=3)


def test_averages_may_differ_by_part_of_the_parameters():
    rates = {"actor": 0.0, "critic": {"first": 0.5, "second": lambda count: 0.75 + 0.0 * count}}
    ones = {"actor": 1.0, "critic": {"first": 1.0, "second": (1.0, 1.0)}}
    params = jax.tree.map(jnp.float32, ones)
    value = lambda params: sum(jax.tree.leaves(params))
    tx = optax.sgd(1.0)
    step = make_train_step(
        lambda params, state, rng, batch: (value(params), Aux({}, {})), tx, ema_rate=rates
    )
    state, _ = step(TrainState.create(params, {}, tx), {"x": jnp.zeros(2)}, jax.random.key(0))
    # One step takes every parameter from 1 to 0, and an average to its rate.
    assert state.ema_params == {"actor": 0.0, "critic": {"first": 0.5, "second": (0.75, 0.75)}}


@pytest.mark.parametrize(
    ("rates", "name"),
    [
        ({"actor": 1.0}, "actor"),
        ({"a": {"b": -0.1}}, "a.b"),
        ((0.5, 2.0), "1"),
        ({"actor": "0.9"}, "actor"),
        ({"actor": None}, "actor"),
    ],
)
def test_a_rate_out_of_range_is_named(rates, name):
    message = re.escape(f"ema_rate.{name} needs to lie in [0, 1)")
    with pytest.raises(ValueError, match=message):
        make_train_step(loss, optax.sgd(1.0), ema_rate=rates)


def test_rates_of_parts_that_there_are_not_are_refused_before_training(tmp_path):
    config = CONFIG | {"ema_rate": ConfigDict({"weight": 0.9, "critic": 0.5})}
    message = "ema_rate needs a rate for each part of the parameters, bias, weight; got critic"
    with pytest.raises(ValueError, match=message):
        preflight(system(np.ones(10, np.float32)), config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    config = CONFIG | {"ema_rate": ConfigDict({"weight": 0.9, "bias": 0.5})}
    state = train(system(np.ones(1000, np.float32)), config, tmp_path / "run")
    assert state.ema_params["bias"] == state.params["bias"] == 1.0
    longer = config | {"num_train_steps": 24}  # the rates survive JSON
    assert train(system(np.ones(1000, np.float32)), longer, tmp_path / "run").step == 24


def test_a_run_keeps_arrays_from_its_start_and_names_a_damaged_file(tmp_path):
    keeps = lambda value: system(np.zeros(3), kept=lambda: {"names": np.full(4, value)})
    assert runs.kept(tmp_path) == {}
    for value in (1, 2):  # what is there stays, as when a run resumes
        preflight(keeps(value), CONFIG, tmp_path)
        np.testing.assert_array_equal(runs.kept(tmp_path)["names"], np.ones(4))
    path = tmp_path / "kept.npz"
    content = bytearray(path.read_bytes())
    content[content.index(b"names.npy") + 140] ^= 1  # one bit of the array
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"kept\.npz is damaged \(Bad CRC-32 .*; restore it, or"):
        runs.kept(tmp_path)
