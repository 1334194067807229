# SPDX-License-Identifier: Apache-2.0
"""The commands, end to end at debug size, against what the library's functions give by hand."""

import functools
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from launch.command import output
from scorejax import runs, systems
from scorejax.data.images import load
from scorejax.evaluate import frechet
from scorejax.evaluate.inception_score import inception_score
from scorejax.guidance import class_guided
from scorejax.interop.networks import inception
from scorejax.likelihood import bits_per_dim, log_prob
from scorejax.parameterize import noise_prediction
from scorejax.random import row_keys
from scorejax.samplers.few_step import heun
from scorejax.samplers.predictor_corrector import predictor_corrector
from scorejax.samplers.predictors import euler_maruyama
from scorejax.sdes import VPSDE
from tests import commands
from tests.commands import ROOT
from tests.published_files import safetensors
from tests.test_inception import official_shapes, random_state

pytestmark = pytest.mark.deep  # Two trainings in a process of their own.
run = functools.partial(commands.run, **commands.TWO_DEVICES, **commands.SAME_FLAGS)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A debug run of 20 steps, resumed to 40."""
    path = tmp_path_factory.mktemp("run")
    train = ("--config=configs/score_sde/digits.py:debug", f"--workdir={path}")
    # Few pictures, no likelihoods in between; and a solver whose answers can be compared: at the
    # tolerance of debug size, 1e-2, rounding alone can make it take another step.
    small = ("--config.eval_samples=2", "--config.eval_bits_examples=0", "--config.eval_every=40")
    small += ("--config.rtol=1e-4", "--config.atol=1e-4")
    # A network of one resolution compiles in half of the time.
    small += ("--config.ch_mult=(1,)", "--config.attn_resolutions=(8,)")
    run("train", *train, *small, "--config.num_train_steps=20")
    assert runs.open(path).step == 20
    run("train", *train, *small)
    return path


@pytest.fixture(scope="module")
def trained(workdir):
    """The score of the restored model, put together by hand, and the images of the config."""
    config, (params, _), _ = runs.open(workdir)
    model = systems.load_model(config)
    network = lambda x, label: model.network.apply({"params": params}, x, label)
    return noise_prediction(VPSDE(0.1, 20.0), network), model.data, config


def test_a_finished_run_started_again_says_so_and_what_to_type_next(workdir):
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file()}
    config = json.loads((workdir / "config.json").read_text())
    changed = ("eval_samples", "eval_bits_examples", "eval_every", "rtol", "atol")
    argv = [f"--config.{name}={config[name]}" for name in changed]
    argv += ["--config.ch_mult=(1,)", "--config.attn_resolutions=(8,)"]
    said = run("train", "--config=configs/score_sde/digits.py:debug", f"--workdir={workdir}", *argv)
    assert said.startswith("already at step 40 of 40: raise num_train_steps to go on\n")
    assert f"  python -m launch.sample --workdir={workdir} --num=64\n" in said
    assert before == {path: path.stat().st_mtime_ns for path in before}


@pytest.mark.slow  # test_resume.py shows the same without a start of the command for each part
def test_train_goes_on_where_it_stopped(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "train/loss" in row] == [10, 20, 30, 40]
    assert runs.open(workdir).step == 40
    assert (workdir / "pictures" / "samples_00000040.png").exists()


def test_sample_writes_what_the_sampler_draws(workdir, trained, tmp_path):
    run("sample", f"--workdir={workdir}", "--num=3", "--seed=5", f"--out={tmp_path}/pc")
    score_fn, view, config = trained
    saved = np.load(tmp_path / "pc.npz")
    # Each sample has a key of its own, whichever device draws it.
    draw = jax.jit(
        lambda keys: predictor_corrector(
            keys, score_fn, (3, 8, 8, 1), sde=VPSDE(0.1, 20.0), predictor=euler_maruyama,
            num_steps=config.num_sampling_steps,
        ).x
    )  # fmt: skip
    expected = draw(row_keys(jax.random.key(5), 3))
    # Rounding of another program, grown through 25 steps.
    np.testing.assert_allclose(saved["images"], view.to_unit(expected), atol=1e-3)
    assert (saved["nfe"] == config.num_sampling_steps).all() and saved["step"] == 40
    assert PIL.Image.open(tmp_path / "pc.png").size[0] > 8


@pytest.mark.slow
def test_sample_by_the_ode_in_chunks(workdir, tmp_path):
    argv = ("--sampler=ode", "--num=5", "--batch_size=2", f"--out={tmp_path}/deep/ode")
    run("sample", f"--workdir={workdir}", *argv)
    saved = np.load(tmp_path / "deep" / "ode.npz")
    assert saved["images"].shape == (5, 8, 8, 1) and np.isfinite(saved["images"]).all()
    assert (saved["nfe"] >= 9).all() and len(np.unique(saved["images"], axis=0)) == 5


@pytest.mark.slow  # test_sample_writes_what_the_sampler_draws runs the command by default
def test_sample_by_heun_spends_the_evaluations_that_it_is_given(workdir, trained, tmp_path):
    argv = ("--sampler=heun", "--nfe=10", "--num=2", "--seed=5", f"--out={tmp_path}/heun")
    run("sample", f"--workdir={workdir}", *argv)
    score_fn, view, _ = trained
    keys = row_keys(jax.random.key(5), 2)
    draw = jax.jit(lambda: heun(keys, score_fn, (2, 8, 8, 1), sde=VPSDE(0.1, 20.0), num_steps=5).x)
    saved = np.load(tmp_path / "heun.npz")
    assert (saved["nfe"] == 9).all()
    # Rounding of another program, grown through five steps.
    np.testing.assert_allclose(saved["images"], view.to_unit(draw()), atol=1e-3)


@pytest.mark.slow
def test_likelihood_reports_what_log_prob_gives(workdir, trained, tmp_path):
    argv = ("--num=3", "--repeats=2", "--batch_size=4", "--seed=1", f"--out={tmp_path}/bits")
    run("likelihood", f"--workdir={workdir}", *argv)
    report = json.loads((tmp_path / "bits.json").read_text())
    score_fn, view, config = trained
    stored = np.tile(view.stored("test", 3).image, (2, 1, 1, 1))
    u = np.random.default_rng(1).random(stored.shape, dtype=np.float32)
    x = jnp.asarray(2 * ((stored + u) / 17) - 1)
    keys = row_keys(jax.random.key(1), 6)
    solve = functools.partial(log_prob, rtol=config.rtol, atol=config.atol)
    one = lambda key, x: solve(key, VPSDE(0.1, 20.0), score_fn, x[None])
    solved = jax.jit(jax.vmap(one))(keys, x)
    bits = bits_per_dim(solved.log_prob[:, 0], 64, levels=17, data_range=(-1.0, 1.0)).reshape(2, 3)
    # Measured: images moved by one rounding, 1e-7, take other steps and differ by 0.005; images
    # measured with other keys by 0.1 to 0.7.
    np.testing.assert_allclose(np.load(tmp_path / "bits.npz")["bits_per_dim"], bits, atol=0.02)
    assert report["bits_per_dim"] == pytest.approx(float(bits.mean()), abs=0.01)
    error = bits.mean(axis=0).std(ddof=1) / np.sqrt(3)
    assert report["bits_per_dim_standard_error"] == pytest.approx(float(error), abs=0.01)
    assert report["nfe"] == pytest.approx(float(solved.nfe.mean()), rel=0.1)
    assert report["bits_per_dim_failures"] == 0 and report["num_images"] == 3


def test_evaluate_repeats_the_evaluation_of_the_last_step(workdir, tmp_path):
    run("evaluate", f"--workdir={workdir}", "--metrics=loss,samples", f"--out={tmp_path}/e")
    report = json.loads((tmp_path / "e.json").read_text())
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    logged = [row["eval/loss"] for row in rows if "eval/loss" in row][-1]
    assert report == {"step": 40, "loss": pytest.approx(logged, rel=1e-5)}
    assert (tmp_path / "e_samples.png").exists() and (tmp_path / "e_denoising.png").exists()


@pytest.mark.slow
def test_sample_of_a_class_is_guided_by_the_classifier(workdir, trained, tmp_path):
    guide = tmp_path / "guide"
    run("train", "--config=configs/noisy_classifier/digits.py:debug", f"--workdir={guide}")
    argv = (
        "--sampler=heun",
        "--nfe=5",
        "--num=2",
        "--seed=5",
        f"--classifier={guide}",
        "--label=3",
    )
    run("sample", f"--workdir={workdir}", *argv, "--guidance=2.5", f"--out={tmp_path}/threes")
    score_fn, view, _ = trained
    classifier = runs.open(guide)
    logits = functools.partial(
        systems.load_model(classifier.config).classifier(), classifier.variables, VPSDE(0.1, 20.0)
    )
    keys, shape = row_keys(jax.random.key(5), 2), (2, 8, 8, 1)
    drawn = lambda score_fn: view.to_unit(
        jax.jit(lambda: heun(keys, score_fn, shape, sde=VPSDE(0.1, 20.0), num_steps=3).x)()
    )
    guided = drawn(class_guided(score_fn, logits, jnp.full(2, 3), guidance=2.5))
    images = np.load(tmp_path / "threes.npz")["images"]
    # Rounding of another program, grown through three steps.
    np.testing.assert_allclose(images, guided, atol=3e-3)
    assert np.abs(images - drawn(score_fn)).max() > 3e-2


@pytest.mark.slow
def test_what_is_seen_of_images_is_kept_and_the_rest_is_made(workdir, tmp_path):
    argv = ("--task=super_resolution", "--num=3", "--num_steps=30", "--seed=2")
    run("complete", f"--workdir={workdir}", *argv, f"--out={tmp_path}/four")
    found = np.load(tmp_path / "four.npz")
    expected = load("digits", "test", limit=3).image
    # Dequantised in one of the 17 levels.
    assert np.abs(found["original"] - (expected + 0.5) / 17).max() < 0.5 / 17 + 1e-6
    means = lambda x: x.reshape(3, 4, 2, 4, 2).mean(axis=(2, 4))
    np.testing.assert_allclose(means(found["image"]), means(found["original"]), atol=1e-5)
    assert (tmp_path / "four.png").exists()
    run("interpolate", f"--workdir={workdir}", "--num=2", "--num_frames=3", f"--out={tmp_path}/way")
    frames = np.load(tmp_path / "way.npz")["images"]
    # Pairs and ends are where they should be: each end is nearest to its own image. How near it
    # comes is tested without commands; the flow of 40 steps of training magnifies every error.
    ends = frames[:, [0, 2]].reshape(4, 1, 64)
    images = (load("digits", "test", limit=4).image.reshape(1, 4, 64) + 0.5) / 17
    distance = np.linalg.norm(ends - images, axis=2)
    np.testing.assert_array_equal(distance.argmin(axis=1), np.arange(4))
    assert np.diag(distance).max() < distance[~np.eye(4, dtype=bool)].min() / 2


@pytest.mark.slow
def test_likelihood_reports_the_importance_weighted_bound(workdir, tmp_path):
    argv = ("--num=2", "--repeats=3", "--batch_size=4", "--importance_weighted")
    run("likelihood", f"--workdir={workdir}", *argv, f"--out={tmp_path}/bits")
    report = json.loads((tmp_path / "bits.json").read_text())
    bits = np.load(tmp_path / "bits.npz")["bits_per_dim"]
    expected = -np.log2(np.mean(2.0 ** (-64 * bits.astype(float)), axis=0)) / 64
    weighted = report["bits_per_dim_importance_weighted"]
    assert weighted == pytest.approx(expected.mean(), rel=1e-5)  # single precision
    assert report["divergence"] == "exact" and weighted < report["bits_per_dim"]
    assert not list(tmp_path.glob("*.parts-*"))


@pytest.mark.slow
def test_evaluate_looks_at_samples_with_inception(workdir, tmp_path):
    weights, state = tmp_path / "weights.safetensors", random_state(official_shapes())
    weights.write_bytes(safetensors(state))
    rng = np.random.default_rng(0)
    reference = frechet.moments(rng.normal(size=(2100, 2048)))
    frechet.save_statistics(tmp_path / "reference.npz", reference)
    metrics = ("--metrics=fid,is", f"--inception={weights}", "--num_samples=12", "--batch_size=8")
    more = (f"--reference={tmp_path}/reference.npz", "--sampler=heun", "--nfe=5", "--seed=3")
    run("evaluate", f"--workdir={workdir}", *metrics, *more, f"--out={tmp_path}/fid")
    report = json.loads((tmp_path / "fid.json").read_text())
    assert report["step"] == 40 and report["num_samples"] == 12
    # The same images by launch.sample, looked at by hand.
    argv = ("--sampler=heun", "--nfe=5", "--seed=3", "--num=12", "--batch_size=8")
    run("sample", f"--workdir={workdir}", *argv, f"--out={tmp_path}/images")
    images = np.load(tmp_path / "images.npz")["images"]
    network, variables = inception.load_inception(weights)
    stored = np.repeat(np.floor(255 * np.clip(images, 0, 1)) / 255, 3, axis=-1)
    found = jax.jit(network.apply)(variables, stored)
    expected = frechet.gaussian_frechet_distance(reference, frechet.moments(found.pool))
    # A rounding may move a pixel by one level of 255.
    assert report["fid"] == pytest.approx(expected, rel=1e-3)
    score = inception_score(found.logits).mean
    assert report["inception_score"] == pytest.approx(score, rel=1e-2)
    assert report["num_not_finite"] == 0
    assert not list(tmp_path.glob("*.parts-*"))


@pytest.mark.slow
def test_evaluate_takes_the_training_images_for_reference(workdir, tmp_path):
    weights, state = tmp_path / "weights.safetensors", random_state(official_shapes())
    weights.write_bytes(safetensors(state))
    argv = (f"--inception={weights}", "--num_samples=10", "--batch_size=50")
    argv += ("--sampler=heun", "--nfe=3")
    run(
        "evaluate", f"--workdir={workdir}", "--metrics=fid,kid,precision_recall", *argv,
        f"--out={tmp_path}/fid", timeout=1200,
    )  # fmt: skip
    report = json.loads((tmp_path / "fid.json").read_text())
    assert {"fid", "kid", "precision", "recall"} <= report.keys()
    # The statistics that it leaves are of all digits, and another call takes them for the same.
    statistics = frechet.load_statistics(tmp_path / "fid_reference.npz")
    network, variables = inception.load_inception(weights)
    chosen = np.random.default_rng(0).choice(899, 20, replace=False)
    images = load("digits", "train").image[chosen].astype(float)
    images = np.floor(255 * images / 16) / 255
    pool = jax.jit(network.apply)(variables, np.repeat(images, 3, axis=-1)).pool
    # Twenty of 899 images: within five standard errors of their mean, for nearly every feature.
    error = np.sqrt(np.diag(statistics.covariance) / 20)
    assert (np.abs(pool.mean(axis=0) - statistics.mean) < 5 * error + 1e-6).mean() > 0.99
    run(
        "evaluate", f"--workdir={workdir}", "--metrics=fid", *argv, f"--out={tmp_path}/again",
        f"--reference={tmp_path}/fid_reference.npz",
    )  # fmt: skip
    again = json.loads((tmp_path / "again.json").read_text())
    # Features are in single precision, and threads sum them in no fixed order: 5e-6 was seen.
    assert again["fid"] == pytest.approx(report["fid"], rel=1e-4)


@pytest.mark.slow
def test_commands_in_two_processes_write_what_they_write_in_one(workdir, tmp_path):
    cases = {
        "sample": ("--num=5", "--batch_size=4", "--sampler=heun", "--nfe=9"),
        "likelihood": ("--num=3", "--batch_size=2", "--seed=1"),
        "evaluate": ("--metrics=loss,samples",),
    }
    one, two = tmp_path / "one", tmp_path / "two"
    for command, argv in cases.items():
        argv = (f"--workdir={workdir}", *argv)
        run(command, *argv, f"--out={one / command}")
        out = f"--out={two / command}"
        printed = commands.run_on_two(command, *argv, out, **commands.SAME_FLAGS)
        assert printed[0] and not printed[1]  # The second process is silent.
    assert {path.name for path in one.iterdir()} == {path.name for path in two.iterdir()}
    # The programs are the same; on CPUs their threads sum in another order. Samples move by 2e-6
    # of their size, the loss by 1e-8; a likelihood can take other steps, see above.
    for command, name, tolerance in (
        ("sample", "images", {"rtol": 0, "atol": 2e-3}),  # Forty steps leave images of size 100.
        ("likelihood", "bits_per_dim", {"atol": 0.02}),
    ):
        ours, theirs = (np.load(out / f"{command}.npz")[name] for out in (one, two))
        np.testing.assert_allclose(theirs, ours, **tolerance)
    ours, theirs = (json.loads((out / "evaluate.json").read_text()) for out in (one, two))
    assert theirs == pytest.approx(ours, rel=1e-6)
    for path in one.glob("*.png"):
        ours, theirs = (np.int16(PIL.Image.open(out / path.name)) for out in (one, two))
        assert np.abs(ours - theirs).max() <= 1


@pytest.mark.parametrize("out", ["folder", "folder/", "new/", "new/deep/", ".", "./"])
def test_results_lie_in_a_folder_that_out_names(out, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    found = pathlib.Path(output(out, "runs/x", "samples"))
    assert found == pathlib.Path(out) / "samples"
    assert output("folder/a", "runs/x", "samples") == "folder/a"
    assert output("new", "runs/x", "samples") == "new"
    as_folder = output(out, "runs/x", "segmented", folder=True)
    assert pathlib.Path(as_folder) == pathlib.Path(out)


def environment_after_launch(tmp_path, **variables):
    names = ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")
    base = {key: value for key, value in os.environ.items() if key not in (*names, "JAX_PLATFORMS")}
    code = f"import json, os, launch; print(json.dumps([os.environ.get(n) for n in {names}]))"
    result = subprocess.run(
        [sys.executable, "-c", code], env={**base, "HOME": str(tmp_path), **variables},
        capture_output=True, text=True, cwd=ROOT, check=True,
    )  # fmt: skip
    return json.loads(result.stdout)


def test_launch_sets_flags_only_where_they_help_and_nobody_else_did(tmp_path):
    flags, cache = environment_after_launch(tmp_path, JAX_PLATFORMS="cpu")
    has_accelerator = any(pathlib.Path("/dev").glob("nvidia*"))
    assert (flags is None) == has_accelerator
    assert cache == str(tmp_path / ".cache" / "scorejax" / "jax")
    own = {"XLA_FLAGS": "--xla_cpu_enable_fast_math=false", "JAX_COMPILATION_CACHE_DIR": "/tmp/c"}
    assert environment_after_launch(tmp_path, **own) == list(own.values())
    assert environment_after_launch(tmp_path, JAX_PLATFORMS="tpu")[0] is None
