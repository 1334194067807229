# SPDX-License-Identifier: Apache-2.0
"""BiO-Net as a system: its configs, its training, masks of images of any size, its commands."""

import dataclasses
import importlib
import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs.bionet import family
from scorejax import systems
from scorejax.data.nuclei import nuclei
from scorejax.evaluate import segmentation, segmented_folder
from scorejax.systems import bionet
from scorejax.train.settings import Settings
from tests.random_variables import random_variables

ROOT = pathlib.Path(__file__).resolve().parent.parent
EXPERIMENTS = [f"configs.bionet.{name}" for name in ("monuseg", "tnbc", "nuclei")]
VARIANTS = ["", "debug", "t1", "t2", "t3,int", "x0.25,t1", "x0.75", "w0,t2", "w3", "keras", "x0.5"]


def get_config(experiment, variant):
    return importlib.import_module(experiment).get_config(variant)


@pytest.fixture
def config():
    return get_config("configs.bionet.nuclei", "t1,debug")


def test_no_config_is_forgotten_here():
    files = {path.stem for path in (ROOT / "configs" / "bionet").glob("*.py")}
    assert files - {"family"} == {name.split(".")[-1] for name in EXPERIMENTS}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_variant_is_possible_and_no_key_is_idle(experiment):
    read = {"system", *bionet.KEYS, *(field.name for field in dataclasses.fields(Settings))}
    for variant in VARIANTS:
        config = get_config(experiment, variant)
        assert set(config) == read
        Settings.from_config(config)
        bionet.make_optimizer(config)
        bionet.segmenter(config)
        net = bionet.make_network(config)
        assert (net.num_passes, net.integrate) == (config.num_passes, config.integrate)
        again = json.loads(json.dumps(config.to_dict()))
        assert again == config.to_dict()
    header = importlib.import_module(experiment).__doc__
    for entry in ("Paper", "Command", "Expected", "Hardware"):
        assert re.search(rf"^{entry} ", header, re.MULTILINE)


def test_variants_say_what_they_say():
    config = get_config(EXPERIMENTS[0], "t2,x0.5,w1,keras")
    net = bionet.make_network(config)
    assert net.widths == (16, 32, 64, 128, 256) and net.num_passes == 2 and not net.integrate
    assert net.backward_levels == (3,) and net.dialect.private_middle
    assert bionet.make_network(get_config(EXPERIMENTS[0], "")).integrate
    assert get_config(EXPERIMENTS[1], "").test_layout == "tnbc"
    with pytest.raises(ValueError, match="unknown variant 't9'"):
        family.with_variant(family.default(), "t9")


def test_the_learning_rate_falls_as_the_script_has_it(config):
    config.learning_rate, config.learning_rate_decay = 0.01, 0.1
    tx = bionet.make_optimizer(config)
    step = jax.jit(tx.update)
    state, gradient = tx.init(jnp.ones(())), jnp.ones(())
    for count in range(3):
        update, state = step(gradient, state)
        # Adam's update of a constant gradient is its sign, up to rounding of 1 - 0.999.
        np.testing.assert_allclose(-update, 0.01 / (1 + 0.1 * count), rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"side": 33}, "num_levels=2 needs side to be a multiple of 8; got 33"),
        ({"num_backward_skips": 3}, r"num_backward_skips needs to lie in \[0, 2\]; got 3"),
        ({"objective": "mse"}, "unknown objective 'mse'"),
        ({"objective": "ce"}, "unknown objective 'ce'"),
        ({"layout": "folder"}, "unknown layout 'folder': did you mean 'folders'"),
        ({"test_layout": "tnbc"}, "test_layout 'tnbc' needs test_data_dir, a folder"),
        ({"overlap": 8}, "2 margin < overlap <= tile - 8; got margin=4, overlap=8"),
        ({"threshold": 1.0}, r"threshold needs to lie in \(0, 1\); got 1.0"),
        ({"norm_momentum": 0.0}, r"norm_momentum needs to lie in \(0, 1\]; got 0.0"),
        ({"best_metric": "loss"}, "unknown best_metric 'loss'"),
        ({"test_num_images": 0}, "test_num_images needs to be at least 1; got 0"),
    ],
)
def test_impossible_values_are_named_in_one_line(config, change, message):
    config.update(change)
    with pytest.raises(ValueError, match=message):
        systems.load(config)


def test_training_and_test_images_are_others(config):
    config.test_num_images = config.num_images
    train, test = (bionet.annotated_images(config, split) for split in ("train", "test"))
    for first in train:
        assert not any(np.array_equal(first.image, other.image) for other in test)


@pytest.fixture(scope="module")
def trained():
    """A network of random weights, large enough that it says something."""
    config = get_config("configs.bionet.nuclei", "t1,debug")
    model = bionet.make_network(config)
    variables = random_variables(model, jnp.zeros((1, 32, 32, 3)), seed=0, mean=0.05, std=0.3)
    stats = jax.tree.map(np.abs, variables.pop("batch_stats"))
    return config, model, (variables["params"], {"batch_stats": stats})


def test_an_image_of_one_tile_is_segmented_as_the_network_sees_it_and_others_in_tiles(trained):
    config, model, (params, state) = trained
    segment = bionet.segmenter(config)
    image = nuclei(1, 40, seed=3).images[0]
    whole = segment((params, state), image[:32, :32])
    logits = model.apply({"params": params, **state}, image[None, :32, :32] / np.float32(255))
    expected = np.asarray(jax.nn.sigmoid(logits))[0, ..., 0]
    # Ten roundings of the largest logit, and a sigmoid is at most a quarter as steep as its logit.
    np.testing.assert_allclose(
        whole.probability, expected, rtol=1e-4, atol=1e-6 * np.abs(logits).max() / 4
    )
    assert np.array_equal(whole.instances > 0, whole.probability > config.threshold)
    tiled = segment((params, state), image[:40, :33])
    assert tiled.probability.shape == tiled.instances.shape == (40, 33)


def test_scores_are_those_of_one_segmentation(trained):
    config, _, variables = trained
    found = bionet.metrics(config)
    assert {"iou", "dice", "aji", "pq", "published", "overlays"} <= found.keys()
    segment, images = bionet.segmenter(config), bionet.annotated_images(config, "test")
    segmented = [segment(variables, image.image) for image in images]
    scores = [
        segmentation.image_scores(image.instances, one.probability)
        for image, one in zip(images, segmented, strict=True)
    ]
    rng = jax.random.key(0)
    for name in ("iou", "pq"):
        scalars = found[name](rng, variables).scalars
        np.testing.assert_allclose(scalars[name], np.mean([s[name] for s in scores]), rtol=1e-12)
        assert scalars[f"{name}_low"] <= scalars[name] <= scalars[f"{name}_high"]
    published = found["published"](rng, variables).scalars
    truth = np.stack([image.mask for image in images])
    mask = np.stack([one.probability > config.threshold for one in segmented])
    together = (truth & mask).sum() / (truth | mask).sum()
    np.testing.assert_allclose(published["published_iou"], together, rtol=1e-12)
    pictures = found["overlays"](rng, variables).pictures
    assert [p.shape for p in pictures.values()] == [image.image.shape for image in images]


def test_pictures_that_cannot_be_read_are_named_or_left_out(tmp_path):
    with pytest.raises(ValueError, match="needs at least one picture"):
        segmented_folder.readable(tmp_path)
    Image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(ValueError, match=r"bad\.png is no picture"):
        segmented_folder.readable(tmp_path)
    found = segmented_folder.readable(tmp_path, damaged="skip")
    assert found.paths == (tmp_path / "good.png",) and "bad.png" in found.skipped[0]
    Image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(tmp_path / "good.jpg")
    with pytest.raises(ValueError, match="different names; got 2 of 'good'"):
        segmented_folder.readable(tmp_path)


def test_what_is_written_numbers_the_instances(tmp_path):
    image, instances = (part[0] for part in nuclei(1, 32, seed=0))
    segmented_folder.save(tmp_path / "x", image, instances)
    stored = np.asarray(Image.open(tmp_path / "x_instances.png"))
    assert stored.dtype == np.uint16 and np.array_equal(stored, instances)
    mask = np.asarray(Image.open(tmp_path / "x_mask.png"))
    assert np.array_equal(mask[..., 0] == 255, instances > 0)
    assert np.asarray(Image.open(tmp_path / "x_overlay.png")).shape == image.shape


def run(command, *argv):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"}
    environment["JAX_COMPILATION_CACHE_DIR"] = str(ROOT / ".jax_cache")
    result = subprocess.run(
        [sys.executable, "-m", f"launch.{command}", *argv],
        capture_output=True, text=True, cwd=ROOT, env=environment, check=False, timeout=600,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result


@pytest.mark.slow
def test_the_commands_train_evaluate_and_segment_a_folder(tmp_path):
    workdir, folder = tmp_path / "run", tmp_path / "pictures"
    run("train", "--config=configs/bionet/nuclei.py:debug", f"--workdir={workdir}")
    run("evaluate", f"--workdir={workdir}", "--metrics=iou,dice,aji,pq")
    report = json.loads((workdir / "evaluation.json").read_text())
    assert {"iou", "dice_low", "aji_high", "pq"} <= report.keys()
    folder.mkdir()
    Image.fromarray(nuclei(1, 45, seed=9).images[0]).save(folder / "mine.png")
    (folder / "broken.png").write_bytes(b"nothing")
    done = run("sample", f"--workdir={workdir}", f"--images={folder}", "--damaged=skip")
    assert "broken.png" in done.stdout
    written = {path.name for path in (workdir / "segmented").iterdir()}
    assert written == {f"mine_{kind}.png" for kind in ("mask", "instances", "overlay")}
