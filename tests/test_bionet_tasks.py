# SPDX-License-Identifier: Apache-2.0
"""BiO-Net for several classes, ignored pixels, other channels and contacts, from its configs."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tifffile
from PIL import Image

from scorejax import systems
from scorejax.data.augmentation import Augmentation
from scorejax.data.nuclei import nuclei, nuclei_in_focus
from scorejax.data.segmentation import segmentation_source
from scorejax.data.segmentation_targets import load_classes
from scorejax.evaluate import segmentation
from scorejax.objectives.segmentation import LOSSES
from scorejax.systems import bionet
from scorejax.systems.bionet.task import Segmented, Task, TaskOptions
from tests import commands
from tests.test_bionet_system import get_config

CLASSES, NUCLEI = "configs.bionet.classes", "configs.bionet.nuclei"


def first_batch(config):
    source = bionet.training_source(config)
    return source.next(source.init(0, jax.random.key(0)), None, None)[1]


def test_a_run_from_before_has_one_class_and_nothing_new():
    config = get_config(NUCLEI, "t1,debug")
    config.validation_fraction = 0.0
    old = dict(config)
    for key in bionet.OPTIONS:
        del old[key]
    old = type(config)(old)
    model = bionet.make_model(old)
    assert model.task.options == TaskOptions() == bionet.make_model(config).task.options
    assert model.network == bionet.make_model(config).network and model.network.num_classes == 1
    # The batches of the release before: 0/1 masks of the same pieces, moved alike.
    plain = segmentation_source(
        bionet.annotated_images(old, "train"),
        4,
        side=32,
        augmentation=Augmentation(shear=15.0),
    )
    batch = plain.next(plain.init(0, jax.random.key(0)), None, None)[1]
    for found in map(first_batch, (old, config)):
        assert found.keys() == batch.keys() == {"image", "mask"}
        for name, array in found.items():
            np.testing.assert_array_equal(array, batch[name])


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        (NUCLEI, {"num_classes": 3}, "masks='classes' and num_classes of more than 1 need each"),
        (NUCLEI, {"masks": "classes"}, "need each other; got masks='classes', num_classes=1"),
        (NUCLEI, {"class_weights": (1.0, 2.0, 3.0)}, "class_weights needs 2 numbers of at least 0"),
        (NUCLEI, {"class_weights": (1.0, -2.0)}, "class_weights needs 2 numbers of at least 0"),
        (NUCLEI, {"class_weights": (1.0, 2.0), "objective": "tversky"}, "no effect on objective"),
        (NUCLEI, {"focal_gamma": -1.0}, "focal_gamma needs to be at least 0; got -1.0"),
        (NUCLEI, {"normalisation": "percentile"}, "did you mean 'percentiles'"),
        (NUCLEI, {"num_channels": 4}, "layout 'generated' has 3 channels; got num_channels=4"),
        (NUCLEI, {"eval_symmetries": 2}, "eval_symmetries needs to be 1, 4 or 8; got 2"),
        (NUCLEI, {"noise": -0.1}, "augmentation needs 0 <= noise"),
        (CLASSES, {"objective": "bce"}, "unknown objective 'bce'"),
        (CLASSES, {"contact_width": 1}, "contact_width=1 separates the instances of one class"),
        (CLASSES, {"num_classes": 300}, r"num_classes needs to lie in \[1, 256\]; got 300"),
        (CLASSES, {"num_classes": 5}, "num_classes to be 1 or 3; got 5"),
        (CLASSES, {"layout": "coins"}, "num_classes needs to be 1 for photographs; got 3"),
        (CLASSES, {"best_metric": "iou"}, "unknown best_metric 'iou'"),
    ],
)  # fmt: skip
def test_impossible_values_are_named_in_one_line(config, change, message):
    config = get_config(config, "t1,debug")
    config.update(change)
    with pytest.raises(ValueError, match=message):
        systems.load(config)


def task(**options):
    options = TaskOptions(**options)
    loss = "ce" if options.num_classes > 1 else "bce"
    return Task(options, LOSSES[loss], threshold=0.5, min_distance=3)


def test_the_loss_sees_weights_and_what_is_known():
    logits = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
    labels = np.random.default_rng(0).integers(-1, 3, (2, 4, 4)).astype(np.int32)
    several = task(num_classes=3, class_weights=(1.0, 2.0, 5.0), ignore_label=255)
    batch = {name: jnp.asarray(array) for name, array in several.encoding(labels).items()}
    found = several.loss(logits, batch)
    p = np.asarray(jax.nn.log_softmax(logits))
    for one, label, loss in zip(p, labels, found, strict=True):
        known = np.argwhere(label >= 0)
        weight = np.array([(1.0, 2.0, 5.0)[label[tuple(at)]] for at in known])
        values = np.array([-one[tuple(at)][label[tuple(at)]] for at in known])
        np.testing.assert_allclose(loss, np.average(values, weights=weight), rtol=1e-5)
    right = np.argmax(p, axis=-1) == labels
    np.testing.assert_allclose(
        several.accuracy(logits, batch), right[labels >= 0].mean(), rtol=1e-6
    )


def test_what_is_not_known_is_in_no_score():
    config = get_config(NUCLEI, "t1,debug")
    config.update(ignore_label=255)
    images, instances = nuclei(2, 48, seed=1)
    hidden = np.zeros((48, 48), bool)
    hidden[:, :20] = True
    numbers = [np.where(hidden, -1, one) for one in instances]
    annotated = tuple(
        bionet.data.AnnotatedImage.of_instances("a", *pair)
        for pair in zip(images, numbers, strict=True)
    )
    model = bionet.make_model(config)
    # Right where it is known, wrong everywhere else.
    wrong = {
        image.tobytes(): np.where(hidden, 99, one)
        for image, one in zip(images, instances, strict=True)
    }
    segment = lambda _, image: Segmented((wrong[image.tobytes()] > 0) * 1.0, wrong[image.tobytes()])
    metrics = bionet.make_metrics(lambda: annotated, segment, model.task, batch_size=2)
    for name in ("iou", "precision", "pq"):
        assert metrics[name]()(jax.random.key(0), object()).scalars[name] == 1
    assert metrics["published"]()(jax.random.key(0), ()).scalars["published_iou"] == 1


def test_classes_are_the_most_probable_and_scored_by_class():
    model = bionet.make_model(get_config(CLASSES, "t1,debug"))
    assert model.network.num_classes == 3
    drawn = nuclei_in_focus(3, 48, seed=1)
    annotated = tuple(bionet.data.AnnotatedImage("a", *parts) for parts in zip(*drawn, strict=True))
    confused = lambda classes: np.where(classes == 2, 1, classes)  # all are in focus
    answer = {image.tobytes(): np.eye(3)[confused(c)] for image, _, c in zip(*drawn, strict=True)}
    segment = lambda _, image: model.task.segmented(answer[image.tobytes()])
    metrics = bionet.make_metrics(lambda: annotated, segment, model.task, batch_size=2)
    variables = object()
    found = {
        name: metrics[name]()(jax.random.key(0), variables).scalars[name]
        for name in ("iou_0", "iou_1", "iou_2", "mean_iou", "dice_1", "mean_dice")
    }
    one, two = (drawn.classes == 1).sum(), (drawn.classes == 2).sum()
    expected = {"iou_0": 1, "iou_1": one / (one + two), "iou_2": 0}
    expected |= {"mean_iou": (1 + expected["iou_1"]) / 3, "dice_1": 2 * one / (2 * one + two)}
    expected["mean_dice"] = (1 + expected["dice_1"]) / 3
    assert found == pytest.approx(expected, rel=1e-12)
    (first, *_) = metrics["overlays"]()(jax.random.key(0), variables).pictures.values()
    assert first.shape == (48, 96, 3)  # prediction beside truth


def test_predicted_contacts_make_the_instances():
    config = get_config(NUCLEI, "t1,debug")
    config.update(contact_width=1)
    model = bionet.make_model(config)
    assert model.network.num_classes == 2
    assert first_batch(config)["mask"].shape == (4, 32, 32, 2)
    instances = nuclei(1, 48, seed=2).instances
    masks = model.task.encoding(instances)["mask"][0]
    found = model.task.segmented(masks)
    np.testing.assert_array_equal(found.probability, instances[0] > 0)
    expected = segmentation.separate(instances[0] > 0, min_distance=4, contacts=masks[..., 1] > 0)
    np.testing.assert_array_equal(found.instances, expected)


def test_appearance_is_changed_after_the_movement_and_only_if_asked():
    config = get_config(NUCLEI, "t1,debug")
    plain = first_batch(config)
    config.update(noise=0.2, brightness=0.1, colour=0.1, blur=1.0)
    varied = first_batch(config)
    np.testing.assert_array_equal(varied["mask"][0], plain["mask"][0])
    difference = varied["image"][0] - plain["image"][0]
    assert 0.001 < difference.std() < 0.3


def write_pairs(folder, num):
    """Pictures of five channels of 16 bits, and masks of three classes, 255 where not known."""
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for index, parts in enumerate(zip(*nuclei_in_focus(num, 48, seed=num), strict=True)):
        image, _, classes = parts
        deep = np.concatenate([image, image[..., :2]], axis=2).astype(np.uint16) * 200 + 1000
        tifffile.imwrite(folder / "images" / f"{index}.tif", deep, photometric="minisblack")
        classes[:8] = 255
        Image.fromarray(classes.astype(np.uint8)).save(folder / "masks" / f"{index}.png")


@pytest.mark.slow
def test_a_folder_of_class_masks_is_trained_on_evaluated_and_segmented(tmp_path):
    run = functools.partial(commands.run, **commands.TWO_DEVICES)
    for split, num in (("train", 6), ("test", 2)):
        write_pairs(tmp_path / split, num)
    workdir = tmp_path / "run"
    run(
        "train", "--config=configs/bionet/classes.py:t1,debug", f"--workdir={workdir}",
        "--config.layout=folders", f"--config.data_dir={tmp_path}/train", "--config.num_images=0",
        "--config.test_layout=folders", f"--config.test_data_dir={tmp_path}/test",
        "--config.test_num_images=0", "--config.num_channels=5", "--config.ignore_label=255",
        "--config.normalisation=percentiles", "--config.class_weights=(1.0,2.0,4.0)",
        "--config.objective=softmax_focal", "--config.noise=0.05",
    )  # fmt: skip
    run("evaluate", f"--workdir={workdir}", "--metrics=mean_iou,dice_1,overlays")
    report = json.loads((workdir / "evaluation.json").read_text())
    assert 0 < report["mean_iou"] < 1 and "dice_1_low" in report
    images = f"--images={tmp_path}/test/images"
    run("segment", f"--workdir={workdir}", images, "--symmetries=8")
    written = workdir / "segmented"
    kinds = {f"{i}_{kind}.png" for i in range(2) for kind in ("classes", "overlay")}
    assert {path.name for path in written.iterdir()} == kinds
    assert load_classes(written / "0_classes.png", num_classes=3).shape == (48, 48)
    once = tmp_path / "once"
    run("segment", f"--workdir={workdir}", images, f"--out={once}")
    (first, second) = (np.asarray(Image.open(p / "0_classes.png")) for p in (written, once))
    assert first.max() <= 2 and np.mean(first != second) < 0.2
