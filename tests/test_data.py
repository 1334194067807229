# SPDX-License-Identifier: Apache-2.0
"""Data sets hold what their sources hold; batches depend on the seed and the step alone."""

import dataclasses
import struct
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from PIL import Image
from sklearn.datasets import load_digits, load_sample_image

from scorejax.data import images, source, tfrecords, transforms
from scorejax.data.images import IMAGE_SETS, Images
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


def field(number, content):
    """A protocol-buffer field that holds bytes, of fewer than 2^14."""
    length = len(content)
    size = bytes([length]) if length < 128 else bytes([length & 127 | 128, length >> 7])
    return bytes([number << 3 | 2]) + size + content


def example(**features):
    """A tf.Example byte by byte: a map from names to lists of bytes or of integers."""
    entries = b""
    for name, value in features.items():
        kind = (
            field(1, field(1, value)) if isinstance(value, bytes) else field(3, field(1, value[0]))
        )
        entries += field(1, field(1, name.encode()) + field(2, kind))
    return field(1, entries)


def tfrecord(*examples):
    framed = [struct.pack("<Q", len(e)) + b"crc." + e + b"crc." for e in examples]
    return b"".join(framed)


def picture(seed, size=4):
    return np.random.default_rng(seed).integers(0, 256, (3, size, size)).astype(np.uint8)


def test_tfrecords_are_read_as_they_were_written(tmp_path):
    (tmp_path / "ffhq").mkdir()
    pictures = [picture(seed) for seed in range(5)]
    content = tfrecord(*(example(shape=(bytes([3, 4, 4]),), data=p.tobytes()) for p in pictures))
    (tmp_path / "ffhq" / "ffhq-r02.tfrecords").write_bytes(content)
    rows = images.records("ffhq", "train", image_size=4, data_dir=str(tmp_path))
    assert len(rows) == 5
    for index in (3, 0, 4):
        expected = pictures[index].transpose(1, 2, 0)
        np.testing.assert_array_equal(rows[index]["image"], expected)
    # A set that is not kept in memory is read by rows, as an array would be.
    streamed = ImageView("ffhq", 4, data_dir=str(tmp_path)).streamed("train")
    wanted = np.stack([pictures[index].transpose(1, 2, 0) for index in (4, 1)])
    np.testing.assert_array_equal(streamed[np.array([4, 1])], wanted)
    assert len(streamed) == 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (tfrecord(example(data=b"abc"))[:-1], "damaged or not a TFRecord file: record 0"),
        (b"\xff" * 40, "damaged or not a TFRecord file"),
        (b"short", "damaged or not a TFRecord file"),
        (
            tfrecord(b"\xff\xff\xff"),
            "record 0 of .* is not an image: its bytes are not a tf.Example",
        ),
        (tfrecord(example(data=b"abc")), r"one byte per entry of its shape; got 3 and \(\)"),
        (tfrecord(example(shape=(bytes([3, 4, 4]),), data=b"abc")), r"got 3 and \(3, 4, 4\)"),
    ],
)
def test_a_tfrecord_file_that_is_none_is_named_in_one_line(content, message, tmp_path):
    path = tmp_path / "broken.tfrecords"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as raised:
        tfrecords.TFRecordImages(path)[0]
    assert "\n" not in str(raised.value)


def test_tfrecords_come_in_powers_of_two(tmp_path):
    with pytest.raises(ValueError, match="got image_size=20, try 16"):
        images.records("celebahq", "train", image_size=20, data_dir=str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"celebahq-r08.tfrecords; make it with"):
        images.records("celebahq", "train", data_dir=str(tmp_path))


def test_unknown_names_come_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'cifar10'"):
        images.load("cifar-10", "train")
    with pytest.raises(ValueError, match="unknown split 'tset': did you mean 'test'"):
        images.load("digits", "tset")


# Transforms.


def test_dequantized_levels_are_uniform_in_their_cell():
    # A Kolmogorov-Smirnov test per level; at 1e-6 each, three levels alarm once in 300,000 seeds.
    rng = np.random.default_rng(0)
    for level in (0, 16, 255):
        x = transforms.dequantize(rng, np.full((20_000, 1, 1, 1), level, np.uint8))
        assert x.dtype == np.float32 and x.min() * 256 >= level and x.max() * 256 < level + 1
        assert scipy.stats.kstest(x.ravel() * 256 - level, "uniform").pvalue > 1e-6


def test_both_ends_of_the_levels_reach_both_ends_of_the_range():
    ends = np.array([0, 16], np.uint8)
    np.testing.assert_array_equal(transforms.to_unit(ends, 17), [0, 1])
    np.testing.assert_array_equal(transforms.centre(transforms.to_unit(ends, 17)), [-1, 1])
    x = np.linspace(-1, 1, 9, dtype=np.float32)
    np.testing.assert_array_equal(transforms.centre(transforms.uncentre(x)), x)


def test_flip_mirrors_about_half_of_the_images():
    image = np.arange(1000 * 6, dtype=np.int64).reshape(1000, 1, 6, 1)
    flipped = transforms.flip(np.random.default_rng(0), image)
    mirrored = (flipped == image[:, :, ::-1]).all(axis=(1, 2, 3))
    np.testing.assert_array_equal(flipped[~mirrored], image[~mirrored])
    # 500 +- 16: five standard deviations.
    assert abs(mirrored.sum() - 500) < 80


@pytest.mark.parametrize("method, name", [(Image.BILINEAR, "linear"), (Image.BICUBIC, "cubic")])
@pytest.mark.parametrize("size", [(13, 9), (40, 44)])
def test_resize_agrees_with_an_antialiased_resampling(method, name, size):
    # Away from black and white, where Pillow clips between its two passes. Each of them rounds.
    image = np.random.default_rng(1).integers(64, 192, (32, 24, 3), dtype=np.uint8)
    resized = transforms.resize(image, *size, method=method)
    expected = jax.image.resize(image.astype(np.float32), (*size, 3), name, antialias=True)
    np.testing.assert_allclose(resized, expected, atol=1.5)


def test_resize_clips_the_overshoot_of_the_bicubic_filter():
    edge = np.repeat(np.array([0, 255], np.uint8), 16)[None, :, None].repeat(32, axis=0)
    resized = transforms.resize(edge, 16, 16, method=Image.BICUBIC)
    assert resized.dtype == np.uint8 and (np.diff(resized[:, :, 0].astype(int)) >= 0).all()


def test_images_are_fitted_as_their_sets_ask():
    image = np.random.default_rng(2).integers(0, 256, (218, 178, 3), dtype=np.uint8)
    face = IMAGE_SETS["celeba"].fit(image, 64)
    np.testing.assert_array_equal(face, transforms.resize(image[39:179, 19:159], 64, 64))
    scene = IMAGE_SETS["lsun_bedroom"].fit
    np.testing.assert_array_equal(scene(image, 128), transforms.resize(image, 157, 128)[14:142])
    square = transforms.resize(image[20:198], 256, 256, method=Image.BICUBIC)
    np.testing.assert_array_equal(scene(image, 256), square)
    np.testing.assert_array_equal(transforms.square(image, 218)[:, :, 0].shape, (218, 218))


def test_digits_can_be_resized():
    loaded = images.load("digits", "test", image_size=16, limit=4)
    expected = jax.image.resize(
        images.load("digits", "test").image[:4].astype(jnp.float32), (4, 16, 16, 1), "linear"
    )
    np.testing.assert_allclose(loaded.image, expected, atol=1.0)


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
