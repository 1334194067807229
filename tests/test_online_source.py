# SPDX-License-Identifier: Apache-2.0
"""Data that the policy makes: environments and replay memory inside the compiled call."""

import pathlib
import shutil
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import online_toy
import orbax.checkpoint as ocp
import pytest
from test_checkpoint import steps_in
from toy_system import CONFIG as OFFLINE

from scorejax.random import row_keys
from scorejax.train import parallel
from scorejax.train.loop import train
from scorejax.train.state import TrainState
from scorejax.train.step import make_train_step, scan_online_steps
from scorejax.train.updates import RunKeys
from tests.trees import assert_equal

TOY = str(pathlib.Path(online_toy.__file__))
NUM_STEPS = 400
LONG = (f"--num_train_steps={NUM_STEPS}", "--save_every=10", "--eval_every=0", "--log_every=100")


def start(workdir, *arguments) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, TOY, str(workdir), *arguments], stderr=subprocess.PIPE, text=True
    )


def finish(workdir, *arguments) -> tuple[int, str]:
    process = start(workdir, *arguments)
    _, stderr = process.communicate(timeout=120)
    return process.returncode, stderr


def restored(workdir, step=NUM_STEPS) -> dict:
    """The items of a checkpoint as they are on disk."""
    directory = workdir / "checkpoints" / str(step)
    with ocp.StandardCheckpointer() as checkpointer:
        return {
            item: checkpointer.restore(directory / item) for item in ("train", "model", "source")
        }


@pytest.fixture(scope="module")
def unkilled(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("unkilled")
    status, stderr = finish(workdir, *LONG)
    assert status == 0, stderr
    return workdir


@pytest.mark.deep
def test_the_policy_learns_from_the_data_that_it_makes(unkilled):
    # 400 steps of gradient descent on (0.9 + gain)^2 E[x^2], E[x^2] >= 0.01: the noise of a step.
    # The factor 0.95 shrinks by at least 1 - 2 * 0.1 * 0.01 a step, to 0.43; it starts with
    # x ~ N(0, 1), whose memory takes it further down at once.
    gain = float(restored(unkilled)["train"]["params"]["gain"])
    assert abs(0.9 + gain) < 0.43


@pytest.mark.deep
def test_a_run_killed_anywhere_ends_where_one_never_killed_ends(unkilled, tmp_path):
    rng, latest = np.random.default_rng(0), 0
    for _ in range(2):
        process, goal = start(tmp_path, *LONG), latest + 10 * int(rng.integers(2, 10))
        while not (tmp_path / "checkpoints" / str(goal)).exists():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.02))
        process.kill()
        process.communicate()
        latest = max(steps_in(tmp_path))
    assert finish(tmp_path, *LONG)[0] == 0
    assert_equal(restored(tmp_path), restored(unkilled))


def test_each_device_has_its_own_environments(tmp_path):
    train(online_toy.build(online_toy.CONFIG), online_toy.CONFIG, tmp_path)  # on two devices
    carry = restored(tmp_path, 40)["source"]["carry"]
    assert carry["x"].shape == (8,) and len(np.unique(carry["x"])) == 8
    assert carry["position"] == 40
    # The ring holds the last eight moves of its own environment: each begins where one ended.
    order = (40 + np.arange(8)) % 8
    ring = carry["ring"][:, order]
    np.testing.assert_array_equal(ring[:, 1:, 0], ring[:, :-1, 1])
    np.testing.assert_array_equal(ring[:, -1, 1], carry["x"])


@pytest.fixture(scope="module")
def on_two_devices(tmp_path_factory):
    """A run of 20 steps on the two devices of this process."""
    config = online_toy.CONFIG | {"num_train_steps": 20}
    workdir = tmp_path_factory.mktemp("two")
    train(online_toy.build(config), config, workdir)
    return workdir


@pytest.mark.deep
@pytest.mark.parametrize("devices", [1, 4])
def test_another_number_of_devices_goes_on_with_the_same_environments(
    on_two_devices, tmp_path, devices
):
    shutil.copytree(on_two_devices, tmp_path, dirs_exist_ok=True)
    before = restored(tmp_path, 20)["source"]["carry"]
    status, stderr = finish(tmp_path, f"--devices={devices}", "--num_train_steps=24")
    assert status == 0, stderr
    after = restored(tmp_path, 24)["source"]["carry"]
    # Four steps later the four moves before the break are still in each environment's ring.
    np.testing.assert_array_equal(after["ring"][:, 16 % 8 : 20 % 8 or 8], before["ring"][:, 0:4])
    np.testing.assert_array_equal(after["ring"][:, 4, 0], before["x"])


@pytest.mark.deep
def test_environments_that_do_not_divide_are_one_line(tmp_path):
    config = online_toy.CONFIG | {"num_envs": 6}
    train(online_toy.build(config), config, tmp_path)  # on two devices
    status, stderr = finish(tmp_path, "--devices=4", "--num_envs=6", "--num_train_steps=80")
    assert status == 1
    assert (
        stderr.strip()
        .splitlines()[-1]
        .startswith("the source has 6 rows (ring), which do not divide over 4 devices")
    )


def test_a_run_without_memory_cannot_go_on(tmp_path):
    from toy_system import build

    train(build(OFFLINE), OFFLINE, tmp_path)
    online = online_toy.build(online_toy.CONFIG)
    offline = build(OFFLINE)
    mixed = online._replace(init=offline.init, tx=offline.tx)
    with pytest.raises(RuntimeError, match="does not fit the config: it has no source"):
        train(mixed, OFFLINE | {"num_train_steps": 80}, tmp_path)


def numbers(keys):
    """What keys (n,) are made of, as a set."""
    return {row.tobytes() for row in np.asarray(jax.random.key_data(keys))}


def test_the_start_of_the_environments_shares_no_key_with_their_steps():
    # split(key, n)[i] is fold_in(key, i): a start from the key of the steps would draw their noise.
    keys = jax.random.split(jax.random.key(0), len(RunKeys._fields))
    run = RunKeys(*keys)
    starts = numbers(jax.random.split(run.source, 100))
    assert not starts & numbers(row_keys(run.data, 100))
    # A fifth key leaves the first four as former runs have them.
    former = jax.random.key_data(jax.random.split(jax.random.key(0), 4))
    np.testing.assert_array_equal(jax.random.key_data(keys[:4]), former)


def test_a_call_makes_no_transfer_and_compiles_once():
    system = online_toy.build(online_toy.CONFIG)
    state = TrainState.create(*system.init(jax.random.key(0)), system.tx)
    step = make_train_step(system.loss, system.tx, ema_rate=0.9, axis_name=parallel.AXIS)
    traces = []

    def source_step(*arguments):
        traces.append(1)
        return system.source.step(*arguments)

    call = parallel.map_step(scan_online_steps(step, source_step, 10, axis_name=parallel.AXIS))
    carry = parallel.spread(jax.device_get(system.source.init(jax.random.key(1), state)))
    both, rngs = (parallel.replicate(state), carry), (jax.random.key(2), jax.random.key(3))
    text = call.lower(both, (), rngs).as_text()
    # The only ways by which a compiled program reaches the host.
    assert not [way for way in ("callback", "infeed", "outfeed", "send", "recv") if way in text]
    both, _ = call(both, (), rngs)
    for _ in range(3):
        both, metrics = call(both, (), rngs)
    assert int(both[0].step.addressable_data(0)[0]) == 40 and metrics["loss"].shape == (10,)
    assert len(traces) <= 2  # once for the text, once for the calls


def test_a_key_in_the_carry_is_refused():
    with pytest.raises(ValueError, match="rng of the source is a random key; draw from `rng`"):
        parallel.require_spreadable({"rng": jax.random.key(0), "x": jnp.zeros(4)})


def test_spread_and_gather_are_inverse():
    carry = {"x": np.arange(12.0).reshape(4, 3), "count": np.int32(7)}
    assert_equal(parallel.gather(parallel.spread(carry)), carry)
