# SPDX-License-Identifier: Apache-2.0
"""A run of the release before sources and published variables resumes, samples and is evaluated.

records/run_before_sources.tar.gz holds the workdir of that release's command

    python -m launch.train --config=configs/score_sde/digits.py:vp,debug --config.nf=4 \
        --config.attn_resolutions='()' --config.eval_bits_examples=0 --config.eval_samples=0 \
        --config.best_metric= --config.keep_latest=1 --config.num_train_steps=20

without its pictures, and the averaged parameters of the same run at step 40, as it ended there.
"""

import json
import pathlib
import tarfile

import jax
import numpy as np
import pytest

from scorejax import runs, systems
from scorejax.capabilities import DrawsSamples, MeasuresDensity
from scorejax.random import row_keys
from scorejax.score_model import bind
from scorejax.train.loop import train

RECORD = pathlib.Path(__file__).parent / "records" / "run_before_sources.tar.gz"
LOSS_AT_40 = 0.6567298024892807
"""The evaluation that the release wrote to metrics.jsonl."""


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """The run, gone on to step 40; and the averages there by the release before."""
    path = tmp_path_factory.mktemp("former")
    with tarfile.open(RECORD) as archive:
        archive.extractall(path, filter="data")
    config = runs.read_config(path / "run")
    config.num_train_steps = 40
    train(systems.load(config), config, path / "run")
    with np.load(path / "averages_at_40.npz") as file:
        return runs.open(path / "run"), dict(file), path / "run"


@pytest.mark.slow  # by default it draws, which reads the same checkpoint
def test_it_ends_where_it_would_have_ended(resumed):
    run, expected, workdir = resumed
    assert run.step == 40
    leaves, _ = jax.tree_util.tree_flatten_with_path(run.variables[0])
    averages = {"/".join(key.key for key in path): leaf for path, leaf in leaves}
    assert averages.keys() == expected.keys()
    for name, average in averages.items():
        # Two devices, or another machine, add in another order. Adam divides by the root of the
        # mean square, which makes an update of 2e-3 from the rounding of a gradient that is zero;
        # a wrong batch or key moves parameters by 1e-2 in these twenty steps.
        np.testing.assert_allclose(average, expected[name], atol=5e-4)
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "train/loss" in row] == [10, 20, 30, 40]
    # The same images and weights, and the noise of the release: one key for each batch of 16.
    model, (first, second) = systems.load_model(run.config), held_out_batches(run.config)
    losses = jax.jit(
        lambda rng, x: model.example_loss(bind(model.network, run.variables), rng, x).mean()
    )
    former = (losses(jax.random.key(0), first) + losses(jax.random.key(1), second)) / 2
    assert former == pytest.approx(LOSS_AT_40, rel=1e-3)
    # Now the noise is the row's own, whatever the batches.
    now = losses(row_keys(jax.random.key(0), 32), np.concatenate([first, second]))
    assert rows[-1]["eval/loss"] == pytest.approx(float(now), rel=1e-5)


def held_out_batches(config):
    data = systems.load_model(config).data
    batches = data.held_out_batches(np.random.default_rng(0), config.eval_examples, 16)
    return [batch["image"] for batch in batches]


@pytest.mark.deep
def test_it_draws(resumed):
    run, _, _ = resumed
    rngs = jax.random.split(jax.random.key(0), 4)
    draw = systems.require(run.config, DrawsSamples).sampler("heun", nfe=11)
    drawn = jax.jit(draw)(run.variables, rngs)
    assert drawn["image"].shape == (4, 8, 8, 1) and np.isfinite(drawn["image"]).all()


@pytest.mark.slow
def test_it_measures(resumed):
    run, _, _ = resumed
    rngs = jax.random.split(jax.random.key(0), 4)
    model = systems.require(run.config, MeasuresDensity)
    x = model.data.density_examples(np.random.default_rng(0), 4)
    measured = jax.jit(model.likelihood())(run.variables, {"image": x, "rng": rngs})
    # Uniform grey levels have log2(17) = 4.1 bits/dim; forty steps learn little, and no nonsense.
    assert measured["success"].all() and (measured["bits_per_dim"] < 12).all()
