# SPDX-License-Identifier: Apache-2.0
"""The seed decides what is drawn: neither the size of a batch nor the number of devices does.

The samplers themselves are in test_sampler_keys.py, in double precision. Here are networks of the
systems, in the chunks of the commands, and the commands.
"""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorejax import systems
from scorejax.evaluate import chunks
from scorejax.random import row_keys
from scorejax.score_model import control
from scorejax.train.state import TrainState
from tests import commands

NUM = 5
SIZES = (8, 3, 1)
"""Shares of the two devices: three rows each, two and two (one of which is a copy), one and one."""
IMAGES = {"ch_mult": (1,), "attn_resolutions": (8,), "rtol": 1e-4, "atol": 1e-4}
# Rounding differs between programs for different numbers of rows, by 1e-7 of the largest number in
# each operation, and grows through tens of steps; untrained networks leave samples of up to 300
# times the range of the data. Other noise would change a row by about its size.
ROUNDING = 1e-4
# Roundings can also make an adaptive solver accept a step that it else rejects. The answers then
# differ by its error, here 2e-4 of the largest number at rtol=atol=1e-4.
OF_SOLVER = 1e-2

# Name -> module of the config, variant, what is changed in it.
MODELS = {
    "score_sde": ("configs.score_sde.digits", "vp,debug", IMAGES),
    "ncsnv2": ("configs.ncsnv2.digits", "debug", {"rtol": 1e-4, "atol": 1e-4}),
    "edm": ("configs.edm.digits", "debug", {"rtol": 1e-4, "atol": 1e-4}),
    "recovery_ebm": ("configs.recovery_ebm.digits", "debug", {}),
    "ar_csm": ("configs.ar_csm.digits", "debug", {}),
    "ar_csm-table": ("configs.ar_csm.wine", "denoising,debug", {}),
}
WAYS = [
    *[("score_sde", f"sample {name}") for name in ("pc", "ode", "heun", "dpm++", "sde-dpm++")],
    # Their interpolation, by the ODE, draws nothing.
    *[("ncsnv2", way) for way in ("sample", "complete")],
    *[("edm", way) for way in ("sample", "complete")],
    *[("recovery_ebm", way) for way in ("sample", "complete", "interpolate")],
    *[("ar_csm", f"sample {name}") for name in ("inverse_cdf", "jacobi")],
    *[("ar_csm-table", f"sample {name}") for name in ("inverse_cdf", "langevin", "jacobi")],
]
DEEP = [("score_sde", "sample pc"), ("recovery_ebm", "complete"), ("ar_csm-table", "sample jacobi")]


@functools.cache
def model_and_variables(name):
    """A model, and weights of which none is zero, as those of last layers are at the start."""
    module, variant, changes = MODELS[name]
    config = importlib.import_module(module).get_config(variant)
    config.update(changes)
    system, model = systems.load(config), systems.load_model(config)
    make = jax.jit(lambda rng: TrainState.create(*system.init(rng), system.tx))
    rng = np.random.default_rng(0)

    def moved(leaf):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return leaf + 0.05 * rng.standard_normal(leaf.shape).astype(leaf.dtype)

    return model, jax.tree.map(moved, system.published(make(jax.random.key(0))))


def computation(name, way):
    """The rows of a command, as a function of its --batch_size."""
    model, variables = model_and_variables(name)
    (way, *options), rng = way.split(), jax.random.key(3)
    if way == "sample":
        draw = model.sampler(*options)
        return lambda size: chunks.draw_in_chunks(rng, draw, variables, NUM, batch_size=size)
    if way == "complete":
        complete = model.completion(control.measurement("inpaint", model.data.shape))
        x = model.data.as_trained(np.random.default_rng(0), model.data.stored("test", NUM).image)
        return lambda size: chunks.measure_in_chunks(rng, complete, variables, x, batch_size=size)
    path, rows = model.noise_interpolation(3), {"rng": row_keys(rng, NUM)}
    return lambda size: chunks.in_chunks(path, variables, rows, size)


def assert_same_rows(found, expected, tolerance):
    for key in {"image", "x", "measured"} & expected.keys():
        size = np.abs(expected[key]).max()
        np.testing.assert_allclose(found[key], expected[key], atol=tolerance * size, err_msg=key)
    drawn = expected.get("image", expected.get("x"))
    assert np.abs(drawn[0] - drawn[1]).max() > 10 * tolerance * np.abs(drawn).max()


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=pytest.mark.deep if c in DEEP else pytest.mark.slow) for c in WAYS],
    ids=" ".join,
)
def test_a_row_does_not_depend_on_the_size_of_the_batch(case):
    compute = computation(*case)
    expected, *others = [compute(size) for size in SIZES]
    for found in others:
        assert_same_rows(found, expected, OF_SOLVER if case[1] == "sample ode" else ROUNDING)


@pytest.mark.slow
def test_commands_draw_the_same_with_any_batch_size_and_number_of_devices(tmp_path):
    work = f"--workdir={tmp_path}/run"
    commands.run(
        "train", "--config=configs/score_sde/digits.py:debug", work, "--config.eval_samples=2",
        "--config.eval_bits_examples=0", *[f"--config.{k}={v}" for k, v in IMAGES.items()],
    )  # fmt: skip
    cases = {name: ("sample", f"--sampler={name}") for name in ("pc", "heun", "sde-dpm++")}
    cases["complete"] = ("complete",)
    for name, (command, *options) in cases.items():
        results = []
        for size, devices in ((8, 1), (8, 2), (3, 1)):
            out = f"{tmp_path}/{name}_{size}_{devices}"
            argv = (work, *options, f"--num={NUM}", f"--batch_size={size}", f"--out={out}")
            commands.run(command, *argv, JAX_NUM_CPU_DEVICES=str(devices))
            results.append(dict(np.load(f"{out}.npz")))
        expected, *others = results
        for found in others:
            for key, value in expected.items():
                np.testing.assert_allclose(found[key], value, atol=1e-3, err_msg=f"{name} {key}")
