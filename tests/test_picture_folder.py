# SPDX-License-Identifier: Apache-2.0
"""A folder of pictures is a data set: each once an epoch, fitted as Pillow does it, or one line."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from configs.score_sde import digits
from scorejax import systems
from scorejax.data import folder_contents, images, segmentation_folders
from scorejax.data.view import ImageView
from scorejax.evaluate import segmented_folder
from scorejax.train import checkpoint, workdir
from scorejax.train.state import TrainState
from tests import commands

KEY = jax.random.key(3)


def save(path, shape, seed, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*shape, 3)).astype(np.uint8)
    picture = Image.fromarray(pixels).convert(mode)
    picture.save(path)
    return picture.convert("RGB")


@pytest.fixture
def folder(tmp_path):
    """Two classes of training pictures, of three sizes and kinds, and a test picture."""
    pictures = {
        "cat/a.png": save(tmp_path / "train/cat/a.png", (30, 20), 0),
        "cat/b.JPG": save(tmp_path / "train/cat/deeper/b.JPG", (16, 40), 1),
        "dog/c.tif": save(tmp_path / "train/dog/c.tif", (16, 16), 2, "L"),
    }
    reread = Image.open(tmp_path / "train/cat/deeper/b.JPG").convert("RGB")
    pictures["cat/b.JPG"] = reread  # a JPEG is not what was saved
    save(tmp_path / "test/dog/d.png", (16, 16), 3)
    return tmp_path, pictures


def fitted(picture, size):
    """By Pillow alone: the central square, then bicubic."""
    side, (width, height) = min(picture.size), picture.size
    left, top = (width - side) // 2, (height - side) // 2
    square = picture.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((size, size), Image.BICUBIC) if side != size else square)


def test_pictures_are_fitted_as_pillow_does_it_and_labels_number_the_folders(folder):
    root, pictures = folder
    found = images.load("folder", "train", image_size=16, data_dir=str(root))
    expected = [fitted(picture, 16) for picture in pictures.values()]
    np.testing.assert_array_equal(found.image, expected)
    np.testing.assert_array_equal(found.label, [0, 0, 1])
    test = images.load("folder", "test", image_size=16, data_dir=str(root))
    np.testing.assert_array_equal(test.label, [1])  # the number that training gave to "dog"


def test_pictures_without_folders_have_label_zero(tmp_path):
    save(tmp_path / "train/a.png", (8, 8), 0)
    found = images.load("folder", "train", image_size=8, data_dir=str(tmp_path))
    assert found.image.shape == (1, 8, 8, 3) and found.label.tolist() == [0]


@pytest.fixture
def littered(tmp_path):
    """Two class folders and a linked one, of a picture each, among what programs leave behind."""
    root = tmp_path / "root"
    for name in ("train/a/1.png", "train/b/1.png", "elsewhere/1.png"):
        save(root / name, (8, 8), 0)
    (root / "train/c").symlink_to(root / "elsewhere")
    (root / "train/b/above").symlink_to(root / "train")  # a loop
    for name in (".ipynb_checkpoints/a-checkpoint", "__MACOSX/a/._1", "a/@eaDir/1", "a/._1"):
        save(root / f"train/{name}.png", (8, 8), 1)
    (root / "train/a/folder.png").mkdir()
    save(root / "test/c/2.png", (8, 8), 2)
    return root


def test_hidden_folders_are_no_classes_and_linked_ones_are(littered):
    found = images.load("folder", "train", image_size=8, data_dir=str(littered))
    assert found.label.tolist() == [0, 1, 2]
    test = images.load("folder", "test", image_size=8, data_dir=str(littered))
    assert test.label.tolist() == [2]


def test_every_reader_of_a_folder_takes_the_same_pictures(littered, tmp_path):
    train = littered / "train"
    expected = [train / name / "1.png" for name in "abc"]
    assert folder_contents.picture_paths(train) == expected
    assert ImageView("cifar10", 8).pictures(train).shape == (3, 8, 8, 3)
    assert segmented_folder.readable(train).paths == tuple(expected)
    assert segmented_folder.readable(train).names == ("a/1", "b/1", "c/1")
    for name in ("a", "b", "c"):
        Image.new("L", (8, 8)).save(train / name / "1.png")
    (tmp_path / "pairs").mkdir()
    for name in ("images", "masks"):
        (tmp_path / "pairs" / name).symlink_to(train)
    read = segmentation_folders.read(tmp_path / "pairs").annotated
    inside = tmp_path / "pairs" / "images"
    assert [one.name for one in read] == [str(inside / name / "1.png") for name in "abc"]


def test_one_picture_stands_for_a_folder_of_it(littered):
    path = littered / "train/a/1.png"
    assert ImageView("cifar10", 8).pictures(path).shape == (1, 8, 8, 3)
    assert segmented_folder.readable(path).names == ("1",)
    (littered / "notes.txt").write_text("none")
    with pytest.raises(FileNotFoundError, match=r"notes\.txt is no picture \(\.png"):
        segmented_folder.readable(littered / "notes.txt")
    with pytest.raises(FileNotFoundError, match=r"1\.png/train has no pictures .*it is a file"):
        images.load("folder", "train", data_dir=str(path))


def test_a_folder_whose_parts_are_missing_or_mixed_says_what_it_has(littered):
    view = lambda root: ImageView("folder", 8, data_dir=str(root))
    with pytest.raises(FileNotFoundError, match=r"has no pictures .*: it has a, b, c$"):
        view(littered / "train").training_source(1)
    save(littered / "train/loose.png", (8, 8), 3)
    with pytest.raises(ValueError, match=r"loose\.png lies in no class folder, beside .*: a and"):
        view(littered).training_source(1)
    (littered / "train/loose.png").unlink()
    (littered / "train/d").symlink_to(littered / "gone")
    with pytest.raises(ValueError, match=r"train/d is a link to .*gone, not there"):
        view(littered).training_source(1)
    (littered / "train/d").unlink()
    (littered / "test").rename(littered / "val")
    with pytest.raises(FileNotFoundError, match=r"test has no pictures .*: it has .*, val$"):
        view(littered).training_source(1)  # at once, not at the first evaluation


def test_an_epoch_holds_each_picture_once(folder):
    root, _ = folder
    view = ImageView("folder", 16, data_dir=str(root), centered=False)
    source = view.training_source(3)
    carry, seen = source.init(0, KEY), []
    for _ in range(2):
        carry, batch = source.next(carry, None, KEY)
        seen.append(np.asarray(batch["image"]) * 255)
    stored = images.load("folder", "train", image_size=16, data_dir=str(root)).image
    in_order = lambda x: np.sort(x.reshape(3, -1).sum(axis=1))
    for epoch in seen:
        np.testing.assert_allclose(in_order(epoch), in_order(stored.astype(np.float64)), rtol=1e-5)


@pytest.mark.deep
def test_a_config_trains_on_a_folder(folder):
    root, _ = folder
    config = digits.get_config("vp,debug")
    config.dataset, config.data_dir, config.image_size = "folder", str(root), 16
    config.attn_resolutions, config.batch_size = (8,), 2
    system = systems.load(config)
    params, model_state = system.init(KEY)
    state = TrainState.create(params, model_state, system.tx)
    _, batch = system.source.next(system.source.init(0, KEY), None, KEY)
    loss, _ = jax.eval_shape(system.loss, params, state, KEY, batch)
    assert batch["image"].shape == (2, 16, 16, 3) and loss.shape == ()


def test_a_folder_without_pictures_is_named(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(FileNotFoundError, match=r"train has no pictures \(\.png, .*put yours"):
        images.load("folder", "train", data_dir=str(tmp_path))


def test_a_class_that_training_has_not_is_named(folder):
    root, _ = folder
    save(root / "test/dgo/e.png", (8, 8), 4)
    with pytest.raises(ValueError, match=r"unknown class in .*test 'dgo': did you mean 'dog'"):
        images.load("folder", "test", data_dir=str(root))


def test_pictures_take_the_form_of_a_data_set_that_is_not_there(tmp_path):
    large = save(tmp_path / "b/large.png", (30, 20), 0)
    exact = save(tmp_path / "c.png", (16, 16), 1)
    view = ImageView("cifar10", 16, data_dir=str(tmp_path / "nowhere"))
    expected = [fitted(large, 16), np.asarray(exact)]
    np.testing.assert_array_equal(view.pictures(tmp_path), expected)
    np.testing.assert_array_equal(view.pictures(tmp_path, 1), expected[:1])
    grey = ImageView("fashion_mnist", 16, data_dir=str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"large\.png is in colour; the model's images are grey"):
        grey.pictures(tmp_path)
    save(tmp_path / "grey/d.png", (16, 16), 2, "L")
    assert grey.pictures(tmp_path / "grey").shape == (1, 16, 16, 1)
    with pytest.raises(FileNotFoundError, match="none has no pictures"):
        view.pictures(tmp_path / "none")
    with pytest.raises(ValueError, match="digits has 17 grey levels"):
        ImageView("digits", 8).pictures(tmp_path)


@pytest.mark.slow
def test_likelihoods_of_pictures_are_those_of_the_data_set_that_holds_them(folder):
    root, _ = folder
    config = digits.get_config("vp,debug")
    config.image_size, config.attn_resolutions, config.rtol, config.atol = 16, (), 1e-3, 1e-3
    system_config = {"folder": str(root), "cifar10": str(root / "nowhere")}
    reports = {}
    for name, data_dir in system_config.items():
        config.dataset, config.data_dir = name, data_dir
        if name == "folder":  # A system reads its data; the same state serves both runs.
            system = systems.load(config)
            state = jax.device_get(TrainState.create(*system.init(KEY), system.tx))
        with (
            workdir.new_workdir(root / "runs" / name, config) as building,
            checkpoint.Checkpoints(building) as checkpoints,
        ):
            checkpoints.save(state)
        source = "--split=test" if name == "folder" else f"--images={root}/test"
        commands.run("likelihood", f"--workdir={root}/runs/{name}", source, f"--out={root}/{name}")
        reports[name] = json.loads((root / f"{name}.json").read_text())
    assert reports["folder"].pop("split") == "test"
    assert reports["cifar10"].pop("images") == f"{root}/test"
    assert reports["cifar10"] == reports["folder"]


def test_a_damaged_picture_is_named_when_it_is_read(folder):
    root, _ = folder
    (root / "train/cat/a.png").write_bytes(b"no picture")
    rows = images.records("folder", "train", image_size=16, data_dir=str(root))
    assert rows[2]["label"] == 1
    with pytest.raises(ValueError, match=r"a\.png is not a readable picture"):
        rows[0]
