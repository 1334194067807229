# SPDX-License-Identifier: Apache-2.0
"""A folder of pictures is a data set: each once an epoch, fitted as Pillow does it, or one line."""

import jax
import numpy as np
import pytest
from PIL import Image

from configs.score_sde import digits
from scorejax import systems
from scorejax.data import images
from scorejax.data.view import ImageView
from scorejax.train.state import TrainState

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


def test_a_damaged_picture_is_named_when_it_is_read(folder):
    root, _ = folder
    (root / "train/cat/a.png").write_bytes(b"no picture")
    rows = images.records("folder", "train", image_size=16, data_dir=str(root))
    assert rows[2]["label"] == 1
    with pytest.raises(ValueError, match=r"a\.png is not a readable picture"):
        rows[0]
