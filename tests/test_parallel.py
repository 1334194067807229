# SPDX-License-Identifier: Apache-2.0
"""Mapped over devices, a step and a sampler do what they do on one."""

import functools
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy_system import CONFIG, build

from scorejax.train import parallel
from scorejax.train.state import TrainState
from scorejax.train.step import make_train_step, scan_steps
from scorejax.typing import Aux
from tests.commands import free_port

HERE = pathlib.Path(__file__).resolve().parent

# Prints the largest relative difference between three steps mapped over the devices and three on
# one device, on the joined batch; and how often the mapped one was traced.
ON_DEVICES = """
import sys; sys.path.insert(0, {tests!r})
import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", {num_devices})
from test_parallel import largest_difference
print(*largest_difference())
"""


def trained(num_steps=3, *, mapped):
    """The toy state after some steps, and how often the step was traced."""
    system = build(CONFIG)
    state = TrainState.create(*system.init(jax.random.key(0)), system.tx)
    axis_name = parallel.AXIS if mapped else None
    one = make_train_step(system.loss, system.tx, ema_rate=0.9, axis_name=axis_name)
    traces = []

    def step(*arguments):
        traces.append(1)
        return scan_steps(one)(*arguments)

    batches = [system.source.next(n, state, None)[1] for n in range(num_steps)]
    if mapped:
        call, state = parallel.map_step(step), parallel.replicate(state)
        for batch in batches:
            state, metrics = call(state, parallel.shard([batch]), jax.random.key(1))
        return parallel.unreplicate(state), jax.device_get(metrics), len(traces)
    call = jax.jit(step)
    for batch in batches:
        state, metrics = call(state, jax.tree.map(lambda x: x[None], batch), jax.random.key(1))
    return jax.device_get(state), jax.device_get(metrics), len(traces)


def largest_difference():
    """Of any array, relative to its largest entry; and the number of traces."""
    on_devices, metrics, traces = trained(mapped=True)
    on_one, expected, _ = trained(mapped=False)
    pairs = zip(
        jax.tree.leaves((on_devices, metrics)), jax.tree.leaves((on_one, expected)), strict=True
    )
    return max(np.max(np.abs(a - b)) / max(np.max(np.abs(b)), 1e-30) for a, b in pairs), traces


def test_steps_on_two_devices_equal_steps_on_one_and_compile_once():
    difference, traces = largest_difference()
    # Order of float32 sums; Adam divides by its root mean square, which amplifies it tenfold.
    assert difference < 1e-5
    assert traces == 1


@pytest.mark.deep
def test_steps_on_eight_devices_equal_steps_on_one_and_compile_once():
    script = ON_DEVICES.format(tests=str(HERE), num_devices=8)
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True
    )
    difference, traces = result.stdout.split()
    assert float(difference) < 1e-5
    assert int(traces) == 1


def test_a_loss_without_noise_does_not_depend_on_how_the_batch_is_divided():
    def loss(params, state, rng, batch):
        return jnp.mean((params["w"][None] - batch["x"]) ** 2), Aux({}, state.model_state)

    tx = optax.adam(0.1)
    batch = {"x": np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)}
    state = TrainState.create({"w": jnp.ones(3)}, {}, tx)
    mapped = parallel.map_step(
        scan_steps(make_train_step(loss, tx, ema_rate=0.9, axis_name=parallel.AXIS))
    )
    on_devices, _ = mapped(parallel.replicate(state), parallel.shard([batch]), jax.random.key(0))
    on_one, _ = jax.jit(make_train_step(loss, tx, ema_rate=0.9))(state, batch, jax.random.key(0))
    compare = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6)  # order of a float32 sum
    jax.tree.map(compare, parallel.unreplicate(on_devices), on_one)


def test_the_donated_state_is_used_again_and_the_host_copy_is_not_touched():
    width = 64
    config = CONFIG | {"width": width}
    system = build(config)
    tree = TrainState.create(*system.init(jax.random.key(0)), system.tx)
    host = jax.tree.map(np.array, tree)
    before = jax.tree.map(np.copy, host)
    call = parallel.map_step(
        scan_steps(make_train_step(system.loss, system.tx, ema_rate=0.9, axis_name=parallel.AXIS))
    )
    state = parallel.replicate(host)
    batch = parallel.shard([system.source.next(0, None, None)[1]])
    key = jax.random.key(0)
    memory = call.lower(state, batch, key).compile().memory_analysis()
    new, _ = call(state, batch, key)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(host))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    # Per device: all of the state is aliased, so what is allocated anew is not another state.
    assert memory.alias_size_in_bytes >= size
    assert memory.output_size_in_bytes - memory.alias_size_in_bytes < 0.05 * size
    jax.tree.map(np.testing.assert_array_equal, host, before)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(tree), before)
    saved = parallel.unreplicate(new)
    copy = jax.tree.map(np.copy, saved)
    jax.block_until_ready(call(new, batch, key))
    jax.tree.map(np.testing.assert_array_equal, saved, copy)


def test_shards_are_the_batches_in_order():
    batches = [{"x": np.arange(8.0).reshape(4, 2) + 100 * n} for n in range(3)]
    sharded = parallel.shard(batches)["x"]
    assert sharded.shape == (2, 3, 2, 2)
    for n, batch in enumerate(batches):
        np.testing.assert_array_equal(sharded[:, n].reshape(4, 2), batch["x"])


def test_at_most_the_limit_is_in_flight_and_order_is_kept():
    flight = parallel.InFlight(limit=2)
    finished = [flight.push(n, {"loss": jnp.float32(n)}) for n in range(5)]
    assert [[step for step, _ in group] for group in finished] == [[], [], [0], [1], [2]]
    assert [(step, float(m["loss"])) for step, m in flight.drain()] == [(3, 3.0), (4, 4.0)]


@pytest.mark.parametrize(
    ("batch_size", "accumulation", "nearest"), [(7, 1, "6 or 8"), (1, 1, "2"), (10, 2, "8 or 12")]
)
def test_a_batch_that_does_not_divide_is_refused(batch_size, accumulation, nearest):
    with pytest.raises(ValueError, match=rf"batch_size={batch_size} .* nearest .* {nearest}\.$"):
        parallel.require_divisible(batch_size, accumulation=accumulation)
    parallel.require_divisible(12, accumulation=3)


@pytest.mark.deep
@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_any_batch_maps_over_devices_as_it_runs_on_one(size):
    def draw(shared, batch):
        noise = jax.vmap(lambda rng: jax.random.normal(rng, (3,)))(batch["rng"])
        return {"x": batch["x"] * shared + noise, "sum": jnp.sum(batch["x"], axis=1)}

    batch = {
        "x": np.random.default_rng(size).normal(size=(size, 3)).astype(np.float32),
        "rng": jax.random.split(jax.random.key(size), size),
    }
    for function, shared in ((draw, jnp.float32(2.0)), (functools.partial(bare, draw), ({}, {}))):
        results = parallel.map_over_devices(function)(shared, batch)
        expected = jax.jit(function)(shared, batch)
        # Each row by itself: the same operations in the same order, contracted or not.
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), results, expected)


def bare(function, shared, batch):
    """A function whose shared argument has no arrays, as that of an untrained model."""
    return function(2.0, batch)


def test_batches_of_one_share_compile_once():
    traces = []

    def double(shared, batch):
        traces.append(1)
        return 2 * batch

    mapped = parallel.map_over_devices(double)
    for size in (5, 6, 5, 6):  # three examples a device, all four times
        assert mapped({}, np.ones((size, 2))).shape == (size, 2)
    assert len(traces) == 1


def test_an_empty_or_uneven_batch_is_refused():
    mapped = parallel.map_over_devices(lambda shared, batch: batch["x"])
    for sizes in ((0, 0), (2, 3)):
        with pytest.raises(ValueError, match="one number of examples"):
            mapped({}, {"x": np.ones(sizes[0]), "y": np.ones(sizes[1])})


TWO_PROCESSES = """
import signal, sys, time; sys.path.insert(0, {tests!r})
import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 1)
index = int(sys.argv[1])
jax.distributed.initialize("127.0.0.1:{port}", 2, index)
from toy_system import CONFIG, Source, build
from scorejax.train.loop import train

class Share(Source):
    number, at = None, None  # a signal, and the step at which one process gets it

    def next(self, step, state, rng):
        if self.at is not None and step >= self.at:
            time.sleep(0.01)  # JAX looks for signals every second
            if step == self.at and self.number:
                signal.raise_signal(self.number)
        step, batch = super().next(step, state, rng)
        return step, {{"x": batch["x"][index * 8 : (index + 1) * 8]}}

def run(workdir, source=Share(16), **changes):
    return int(train(build(CONFIG)._replace(source=source), CONFIG | changes, workdir).step)

{script}
"""


def in_two_processes(script: str, *arguments: str) -> list[list[str]]:
    """Runs a script that may use `run` and `index` in two processes; the lines each printed."""
    script = TWO_PROCESSES.format(tests=str(HERE), port=free_port(), script=script)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(index), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    return [stdout.splitlines() for stdout, _ in outputs]


@pytest.mark.slow
def test_two_processes_train_as_one_process_with_two_devices(tmp_path):
    from scorejax import runs
    from scorejax.train.loop import train

    in_two_processes("run(sys.argv[2])", str(tmp_path / "two"))
    state = train(build(CONFIG), CONFIG, tmp_path / "one")
    _, (params, _), step = runs.open(tmp_path / "two")
    assert step == 40
    # Collectives of another kind sum in another order; forty steps of Adam amplify that.
    compare = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    jax.tree.map(compare, params, state.ema_params)


@pytest.mark.slow
def test_two_processes_end_at_one_step_when_one_is_told_to_and_go_on_bit_for_bit(
    heeds_interrupts, tmp_path
):
    from test_checkpoint import steps_in
    from test_resume import final_state, metrics_of

    from tests.trees import assert_equal

    config = "num_train_steps=1500, num_steps_per_call=10, save_every=500, eval_every=500"
    interrupted = f"""
assert run(sys.argv[2] + "/whole", {config}) == 1500
Share.at = 200
if index == 1:
    Share.number = signal.SIGTERM
print(run(sys.argv[2] + "/parts", {config}))
"""
    first, second = in_two_processes(interrupted, str(tmp_path))
    step = int(first[-1])
    assert int(second[-1]) == step and 200 < step < 1500 and step % 10 == 0
    assert max(steps_in(tmp_path / "parts")) == step
    # Started again, the first process gets Ctrl-C at once.
    again = f"""
Share.at = {step}
if index == 0:
    Share.number = signal.SIGINT
print(run(sys.argv[2] + "/parts", {config}))
"""
    first, second = in_two_processes(again, str(tmp_path))
    later = int(first[-1])
    assert int(second[-1]) == later and step < later < 1500
    assert max(steps_in(tmp_path / "parts")) == later
    # Then to the end; and processes that see different directories are told so before they train.
    end = f"""
print(run(sys.argv[2] + "/parts", {config}))
try:
    run(sys.argv[2] + ("/parts", "/whole")[index], {config.replace("1500", "1510")})
except RuntimeError as error:
    print(error)
"""
    expected, log = final_state(tmp_path / "whole"), metrics_of(tmp_path / "whole")
    shutil.rmtree(tmp_path / "whole" / "checkpoints" / "1500")
    ends = in_two_processes(end, str(tmp_path))
    for *_, last, line in ends:
        assert last == "1500"
        assert "step 1500 in process 0, step 1000 in process 1" in line
    assert_equal(final_state(tmp_path / "parts"), expected)
    assert metrics_of(tmp_path / "parts") == log
