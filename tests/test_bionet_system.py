# SPDX-License-Identifier: Apache-2.0
"""BiO-Net as a system: its configs, its training, masks of images of any size, its commands."""

import functools
import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from scorejax import interop, runs, systems
from scorejax.data.nuclei import nuclei
from scorejax.evaluate import segmentation
from scorejax.systems import bionet
from tests import commands
from tests.bionet_state import BIONET, hyper, random_state
from tests.published_files import Stored, torch_zip
from tests.random_variables import random_variables

EXPERIMENTS = [f"configs.bionet.{name}" for name in ("monuseg", "tnbc", "nuclei")]
VARIANTS = ["", "debug", "t1", "t2", "t3,int", "x0.25,t1", "x0.75", "w0,t2", "w3", "keras", "x0.5"]


def get_config(experiment, variant):
    return importlib.import_module(experiment).get_config(variant)


@pytest.fixture
def config():
    return get_config("configs.bionet.nuclei", "t1,debug")


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_variant_is_a_network_that_segments(experiment):
    for variant in VARIANTS:
        config = get_config(experiment, variant)
        model = bionet.make_model(config)
        model.segmenter()
        net = model.network
        assert (net.num_passes, net.integrate) == (config.num_passes, config.integrate)


def test_variants_say_what_they_say():
    config = get_config(EXPERIMENTS[0], "t2,x0.5,w1,keras")
    net = bionet.make_model(config).network
    assert net.widths == (16, 32, 64, 128, 256) and net.num_passes == 2 and not net.integrate
    assert net.backward_levels == (3,) and net.dialect.private_middle
    assert bionet.make_model(get_config(EXPERIMENTS[0], "")).network.integrate
    assert get_config(EXPERIMENTS[1], "").test_layout == "tnbc"
    with pytest.raises(ValueError, match="unknown variant 't9'"):
        get_config(EXPERIMENTS[0], "t9")


def test_the_learning_rate_falls_as_the_script_has_it(config):
    config.learning_rate, config.learning_rate_decay = 0.01, 0.1
    tx = bionet.make_model(config).tx
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
        ({"masks": "instance"}, "unknown masks 'instance': did you mean 'instances'"),
        ({"test_layout": "tnbc"}, "test_layout 'tnbc' needs test_data_dir, a folder"),
        ({"overlap": 8}, "2 margin < overlap <= tile - 8; got margin=4, overlap=8"),
        ({"threshold": 1.0}, r"threshold needs to lie in \(0, 1\); got 1.0"),
        ({"norm_momentum": 0.0}, r"norm_momentum needs to lie in \(0, 1\]; got 0.0"),
        ({"best_metric": "loss"}, "unknown best_metric 'loss'"),
        ({"best_metric": "overlays"}, "unknown best_metric 'overlays': known: aji, dice"),
        ({"test_num_images": 0}, "test_num_images needs to be at least 1; got 0"),
        ({"layout": "coins", "num_images": -1}, "num_images needs to be at least 0, .*; got -1"),
        (
            {"test_layout": "coins", "test_num_images": -1},
            "test_num_images needs to be at least 0, which is all; got -1",
        ),
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
    model = bionet.make_model(config)
    variables = random_variables(
        model.network, jnp.zeros((1, 32, 32, 3)), seed=0, mean=0.05, std=0.3
    )
    stats = jax.tree.map(np.abs, variables.pop("batch_stats"))
    return config, model, (variables["params"], {"batch_stats": stats})


@pytest.mark.deep
def test_an_image_of_one_tile_is_segmented_as_the_network_sees_it_and_others_in_tiles(trained):
    config, model, (params, state) = trained
    segment = model.segmenter()
    image = nuclei(1, 40, seed=3).images[0]
    whole = segment((params, state), image[:32, :32])
    logits = model.network.apply(
        {"params": params, **state}, image[None, :32, :32] / np.float32(255)
    )
    expected = np.asarray(jax.nn.sigmoid(logits))[0, ..., 0]
    # Ten roundings of the largest logit, and a sigmoid is at most a quarter as steep as its logit.
    np.testing.assert_allclose(
        whole.probability, expected, rtol=1e-4, atol=1e-6 * np.abs(logits).max() / 4
    )
    assert np.array_equal(whole.instances > 0, whole.probability > config.threshold)
    tiled = segment((params, state), image[:40, :33])
    assert tiled.probability.shape == tiled.instances.shape == (40, 33)


def test_instances_are_separated_once_for_all_scores(trained, monkeypatch):
    config, model, variables = trained
    calls, separate = [], segmentation.separate
    monkeypatch.setattr(
        segmentation, "separate", lambda mask, **more: calls.append(1) or separate(mask, **more)
    )
    metrics = model.metrics()
    for name in ("iou", "aji", "pq", "overlays"):
        metrics[name]()(jax.random.key(0), variables)
    assert len(calls) == config.test_num_images


def test_scores_are_those_of_one_segmentation(trained):
    config, model, variables = trained
    metrics = model.metrics()
    assert {"iou", "dice", "aji", "pq", "published", "overlays"} <= metrics.keys()
    segment, images = model.segmenter(), bionet.annotated_images(config, "test")
    segmented = [segment(variables, image.image) for image in images]
    scores = [
        segmentation.image_scores(image.instances, one.probability)
        for image, one in zip(images, segmented, strict=True)
    ]
    rng = jax.random.key(0)
    for name in ("iou", "pq"):
        scalars = metrics[name]()(rng, variables).scalars
        np.testing.assert_allclose(scalars[name], np.mean([s[name] for s in scores]), rtol=1e-12)
        assert scalars[f"{name}_low"] <= scalars[name] <= scalars[f"{name}_high"]
    published = metrics["published"]()(rng, variables).scalars
    truth = np.stack([image.mask for image in images])
    mask = np.stack([one.probability > config.threshold for one in segmented])
    together = (truth & mask).sum() / (truth | mask).sum()
    np.testing.assert_allclose(published["published_iou"], together, rtol=1e-12)
    pictures = metrics["overlays"]()(rng, variables).pictures
    drawn = [
        picture[: len(image.image)]
        for picture, image in zip(pictures.values(), images, strict=True)
    ]
    assert [p.shape for p in drawn] == [image.image.shape for image in images]  # above a legend


run = functools.partial(commands.run, **commands.TWO_DEVICES)


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
    done = run("segment", f"--workdir={workdir}", f"--images={folder}", "--damaged=skip")
    assert "broken.png" in done
    written = {path.name for path in (workdir / "segmented").iterdir()}
    assert written == {f"mine_{kind}.png" for kind in ("mask", "instances", "overlay")}


def write_pairs(folder, num=2, *, image=None, mask=None):
    """Images and masks in the layout "folders", the last pair with another image or mask."""
    rng, inside = np.random.default_rng(0), np.zeros((40, 40), np.uint8)
    inside[8:20, 8:20] = 255
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for index in range(num):
        last = index == num - 1
        pixels = rng.integers(0, 256, (40, 40, 3)).astype(np.uint8)
        picture = Image.fromarray(pixels) if image is None or not last else image
        picture.save(folder / "images" / f"{index}.png")
        masked = inside if mask is None or not last else mask
        Image.fromarray(masked).save(folder / "masks" / f"{index}.png")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Folders with one thing wrong each, and published weights of one and of two passes."""
    path, rng = tmp_path_factory.mktemp("files"), np.random.default_rng(0)
    see_through = Image.new("RGBA", (40, 40), (10, 20, 30, 40))
    deep = Image.fromarray(rng.integers(0, 60_000, (40, 40)).astype(np.uint16))
    greys = np.tile(np.arange(40, dtype=np.uint8), (40, 1))
    write_pairs(path / "sound")
    write_pairs(path / "sizes", mask=np.zeros((40, 39), np.uint8))
    write_pairs(path / "greys", mask=greys)
    write_pairs(path / "deep", image=deep)
    write_pairs(path / "see_through", image=see_through)
    write_pairs(path / "corrupt", 5)
    damaged = path / "corrupt" / "images" / "4.png"
    damaged.write_bytes(damaged.read_bytes()[:200])
    (path / "empty").mkdir()
    (path / "half_empty" / "images").mkdir(parents=True)
    (path / "half_empty" / "masks").mkdir()
    (path / "mine").mkdir()
    Image.fromarray(nuclei(1, 45, seed=9).images[0][:, :37]).convert("P").save(
        path / "mine" / "palette.png"
    )
    (path / "mine" / "broken.png").write_bytes(b"\x89PNG\r\n")
    states = {"one": random_state(1), "two": random_state(2), "apart": dict(random_state(2))}
    name = "iteration1_layer0_decoder_up.0.weight"
    states["apart"][name] = states["apart"][name] + 1e-3
    for kind, state in states.items():
        stored = {name: Stored(tensor.astype("f4")) for name, tensor in state.items()}
        (path / f"{kind}.pt").write_bytes(torch_zip({"state_dict": stored}))
    (path / "run").mkdir()
    saved = get_config("configs.bionet.nuclei", "t2,debug").to_dict()
    (path / "run" / "config.json").write_text(json.dumps(saved))
    return path


DEBUG = "--config=configs/bionet/nuclei.py:t1,debug"
IMPORT = ["--architecture=bionet/bionet", "--workdir={tmp}/new"]


def training(folder, *more):
    where = ["--config.layout=folders", f"--config.data_dir={{tmp}}/{folder}"]
    return "train", [DEBUG, "--workdir={tmp}/new", *where, *more]


def segmenting(folder, *more):
    return "segment", ["--workdir={tmp}/run", f"--images={{tmp}}/{folder}", *more]


def importing(weights, variant, *more):
    config = f"--config=configs/bionet/nuclei.py:{variant},debug"
    return "import_weights", [*IMPORT, f"--weights={{tmp}}/{weights}.pt", config, *more]


MISTAKES = {
    "mask of another size": (
        training("sizes"), "masks/1.png needs the size of its image, 40 x 40; got 40 x 39",
    ),
    "mask of many levels": (training("greys"), "needs two levels, 0 and one other"),
    "16 bits": (training("deep"), "needs 8-bit grey or RGB pixels; got mode I;16"),
    "alpha": (training("see_through"), "needs opaque pixels; got transparent ones"),
    "one corrupt file": (training("corrupt"), "images/4.png is not a readable picture"),
    "no such layout": (training("empty"), "needs folders images/ and masks/"),
    "empty folder": (training("half_empty"), "images has no pictures (.png"),
    "side": (training("sound", "--config.side=33"), "side to be a multiple of 8; got 33"),
    "pieces": (training("sound", "--config.side=48"), "40"),
    "run of another t": (
        ("train", [DEBUG, "--workdir={tmp}/run"]), "num_passes",
    ),
    "16 bits to segment": (segmenting("deep/images"), "1.png needs 8-bit grey or RGB pixels"),
    "alpha to segment": (segmenting("see_through/images"), "1.png needs opaque pixels"),
    "corrupt to segment": (segmenting("corrupt/images"), "4.png is not a readable picture"),
    "nothing to segment": (segmenting("empty"), "empty has no pictures (.png"),
    "masks among the pictures": (
        segmenting("mine", "--damaged=skip", "--out={tmp}/run/../mine"),
        "out needs to be outside of images",
    ),
    "weights of another t": (
        importing("two", "t1"), "the file's tensors have num_passes=2; the config has 1",
    ),
    "weights of another depth": (
        importing("one", "t1", "--config.num_levels=3", "--config.num_backward_skips=3"),
        "have num_levels=2; the config has 3",
    ),
    "weights of passes trained apart": (
        importing("apart", "t2"), "iteration1_layer0_decoder_up.0.weight and iteration0_layer0_"
        "decoder_up.0.weight are one convolution and need equal tensors",
    ),
    "weights without INT": (importing("two", "t2,int"), "first post_transform_conv_block.0.weight"),
    "weights of another width": (
        importing("one", "t1", "--config.multiplier=0.25"), "have widths=(4, 8, 16); the "
        "config's network (8, 16, 32)",
    ),
    "weights for Keras": (importing("one", "t1,keras"), "is the PyTorch version"),
    "weights without skips": (importing("two", "t2,w1"), "backward skips to levels [0, 1]"),
    "weights for a score network": (
        ("import_weights", [*IMPORT, "--weights={tmp}/one.pt",
                            "--config=configs/score_sde/digits.py:debug"]),
        "bionet/bionet is of class BiONet; the config's is NCSNpp",
    ),
}  # fmt: skip
GOOD = {
    "import": importing("one", "t1"),
    "segment": ("segment", ["--workdir={tmp}/new", "--images={tmp}/mine", "--damaged=skip"]),
    "evaluate": ("evaluate", ["--workdir={tmp}/new", "--metrics=iou,pq"]),
}


@pytest.fixture(scope="module")
def outcomes(files):
    """Of the mistakes, and then of what is right, in one process after the other."""
    cases = {name: case for name, (case, _) in MISTAKES.items()} | GOOD
    filled = {
        name: (command, [word.replace("{tmp}", str(files)) for word in argv])
        for name, (command, argv) in cases.items()
    }
    return commands.outcomes_of(filled, **commands.TWO_DEVICES)


@pytest.mark.deep
@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_a_command_is_one_line_before_anything_is_compiled(name, outcomes):
    outcome, words = outcomes[name], MISTAKES[name][1]
    lines = outcome["stderr"].strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), outcome["stderr"]
    assert words in lines[0]
    assert outcome["status"] == 2 and outcome["compilations"] == 0


def test_published_weights_become_a_run_that_segments_a_folder_and_is_scored(outcomes, files):
    for name in GOOD:
        assert outcomes[name]["status"] == 0, outcomes[name]["stderr"]
    restored = runs.open(files / "new")
    expected = interop.load_torch(BIONET, random_state(1), **hyper(1))[1]
    assert restored.step == 0
    jax.tree.map(np.testing.assert_array_equal, restored.variables[0], expected["params"])
    statistics = {"batch_stats": expected["batch_stats"]}
    jax.tree.map(np.testing.assert_array_equal, restored.variables[1], statistics)
    written = {path.name for path in (files / "new" / "segmented").iterdir()}
    assert written == {f"palette_{kind}.png" for kind in ("mask", "instances", "overlay")}
    assert Image.open(files / "new" / "segmented" / "palette_mask.png").size == (37, 45)
    report = json.loads((files / "new" / "evaluation.json").read_text())
    assert 0 <= report["iou_low"] <= report["iou"] <= report["iou_high"] <= 1


def test_masks_whose_levels_number_the_instances_are_read_if_asked(config, files):
    for prefix in ("", "test_"):
        config[f"{prefix}layout"], config[f"{prefix}data_dir"] = "folders", str(files / "greys")
    with pytest.raises(ValueError, match=r'Read numbered instances with masks="instances"'):
        bionet.annotated_images(config, "test")
    config.masks = "instances"
    for split in ("train", "test"):
        assert bionet.annotated_images(config, split)[1].instances.max() == 39


def test_pairs_that_are_left_out_are_named(config, files, capsys):
    config.layout, config.data_dir, config.damaged = "folders", str(files / "corrupt"), "skip"
    config.validation_fraction = 0.0
    assert len(bionet.annotated_images(config, "train")) == 4
    said = capsys.readouterr().err
    assert said.startswith("left out: ") and "images/4.png" in said and said.count("\n") == 1
