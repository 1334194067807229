# SPDX-License-Identifier: Apache-2.0
"""Classifier mistakes from configs: sets that are apart, labels that do not matter, a report."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.classifier_mistakes import cifar10, digits
from scorejax import systems
from scorejax.data.five_sets import five_sets
from scorejax.data.view import ImageView
from scorejax.evaluate.detection import auroc
from scorejax.failures.scores import SCORES
from scorejax.systems.classifier_mistakes import sources
from scorejax.systems.classifier_mistakes.classifier import make_augment
from scorejax.train.loop import train

VIEW = ImageView("digits", 8, centered=False)


def test_the_five_sets_are_apart_and_follow_the_seed():
    sizes = {"num_labelled": 300, "num_valid": 97, "num_calibration": 449}
    sets = five_sets(VIEW, seed=0, **sizes)
    assert [len(s.image) for s in sets] == [300, 97, 502, 449, 449]
    rows = np.concatenate([s.image.reshape(len(s.image), -1) for s in sets])
    everything = np.concatenate([VIEW.stored(s).image.reshape(-1, 64) for s in ("train", "test")])
    # All 1797 digits, each once: sorted they are the same rows.
    np.testing.assert_array_equal(rows[np.lexsort(rows.T)], everything[np.lexsort(everything.T)])
    again, other = five_sets(VIEW, seed=0, **sizes), five_sets(VIEW, seed=1, **sizes)
    np.testing.assert_array_equal(again.test.image, sets.test.image)
    assert (other.test.image != sets.test.image).any()
    with pytest.raises(ValueError, match="needs to be below the 899 images of the training split"):
        five_sets(VIEW, seed=0, num_labelled=800, num_valid=99, num_calibration=1)


def test_augmented_images_are_shifted_copies():
    x = jax.random.uniform(jax.random.key(0), (200, 4, 4, 1))
    moved = make_augment(noise=0.0, shift=1)(jax.random.key(1), x)
    padded = np.pad(np.asarray(x), ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    shifts = [(i, j) for i in range(3) for j in range(3)]
    copies = np.stack([padded[:, i : i + 4, j : j + 4] for i, j in shifts])
    equal = (copies == np.asarray(moved)[None]).all(axis=(2, 3, 4))
    assert equal.any(axis=0).all()
    # Each of nine shifts once in nine: none of 200 is missing but once in 10^9.
    assert equal.any(axis=1).all()


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("classifier")
    config = digits.get_config("debug")
    # Enough that it is right on images of every class, as the scores beside ours need.
    config.num_train_steps, config.eval_every, config.save_every = 200, 0, 200
    config.batch_size, config.learning_rate, config.ema_rate = 64, 3e-3, 0.9
    config.best_metric = ""
    train(systems.load(config), config.to_dict(), path)
    return path


def detector(workdir, **changes):
    config = digits.get_config("detector,debug")
    config.update({"classifier": str(workdir), "attacks": ("fgsm",), "num_attacked": 64} | changes)
    return systems.load_model(config)


@pytest.mark.slow
def test_the_report_has_every_source_and_the_false_alarms_are_few(workdir):
    model = detector(workdir)
    evaluation = model.data_metrics()["failures"]()(jax.random.key(0), None)
    scalars = evaluation.scalars
    assert scalars["false_alarms/gaussian"] < 0.05 + 4 * np.sqrt(0.05 / scalars["calibration_rows"])
    found = {name.split("/")[0] for name in scalars if name.endswith("/failures")}
    assert found == {"fgsm", "mistakes", "turned", "noise", "constant", "clothes"}
    # The area of the report is that of the scores of its images.
    source = model.failures()["turned"]
    scores = [model.scores(x)["max_softmax"] for x in (source.failures, source.normal)]
    failed = np.repeat([True, False], [len(s) for s in scores])
    expected = auroc(np.concatenate(scores), failed)
    assert scalars["turned/max_softmax/auroc"] == pytest.approx(expected)
    assert evaluation.pictures["turned_missed"].ndim == 3


def test_labels_leave_the_density_bit_equal(workdir):
    model, images = detector(workdir), VIEW.stored("test", 20).image / np.float32(16)
    sets = model.first_stage.sets
    shuffled = sets.density._replace(label=np.random.default_rng(0).permutation(sets.density.label))
    before = model.scores(images)
    again = detector(workdir)
    again.first_stage.__dict__["sets"] = sets._replace(density=shuffled)
    np.testing.assert_array_equal(again.scores(images)["gaussian"], before["gaussian"])
    # The labels of the rows that class means are fitted to do matter, to the scores that use them.
    labelled = sets.labelled._replace(label=np.roll(sets.labelled.label, 1))
    again = detector(workdir)
    again.first_stage.__dict__["sets"] = sets._replace(labelled=labelled)
    rows = again.outputs(again.first_stage.as_input(labelled))
    moved = SCORES["mahalanobis"].fit(rows.features, rows.logits, labelled.label)
    now = np.asarray(
        SCORES["mahalanobis"].score(moved, again.outputs(images).features, np.zeros((20, 10)))
    )
    assert not np.allclose(now, before["mahalanobis"])


def test_the_differentiable_margin_is_where_the_detector_flags(workdir):
    model = detector(workdir)
    images = model.first_stage.as_input(model.first_stage.sets.test)
    rows, pair = model.outputs(images), model.fitted["gaussian"]
    flagged = pair.predict(rows.pre_activations, logits=rows.logits) == -1
    margin = np.asarray(model.classify(model.run.variables, jnp.asarray(images))[1])
    # A row whose margin is rounding may fall on either side.
    clear = np.abs(margin) > 1e-4
    np.testing.assert_array_equal((margin <= 0)[clear], flagged[clear])
    assert clear.mean() > 0.95


def test_victims_are_classified_as_their_labels():
    logits = np.eye(3)[[0, 1, 2, 0]]
    victims = sources.victims_of(np.zeros((4, 1, 1, 1)), np.array([0, 2, 2, 0]), logits, 2)
    np.testing.assert_array_equal(victims.label, [0, 2])


@pytest.mark.parametrize(
    ("variant", "changes", "message"),
    [
        ("debug", {"centered": True}, "centered needs to be False"),
        ("debug", {"objective": "pi"}, "unknown objective 'pi'"),
        ("detector,debug", {"densities": ("mafs",)}, "did you mean 'maf'"),
        ("detector,debug", {"alpha": 1.0}, "alpha needs to lie in"),
        ("detector,debug", {"attacks": ("pdg",)}, "did you mean 'pgd'"),
    ],
)
def test_impossible_configs_are_one_line(variant, changes, message):
    config = digits.get_config(variant)
    config.update(changes)
    with pytest.raises(ValueError, match=message) as error:
        systems.load_model(config)
    assert "\n" not in str(error.value)


def test_a_detector_needs_a_classifier_and_is_not_trained():
    config = digits.get_config("detector,debug")
    with pytest.raises(ValueError, match="a detector is fitted, not trained"):
        systems.load(config)
    with pytest.raises(ValueError, match=r"set --config\.classifier"):
        systems.load_model(config).data_metrics()["failures"]()


def test_a_detector_of_another_data_set_is_refused_in_one_line(workdir):
    with pytest.raises(ValueError, match="is a run on 'digits', and this config is of") as error:
        _ = detector(workdir, dataset="fashion_mnist").first_stage
    assert "\n" not in str(error.value)


def test_the_network_of_cifar10_in_full_takes_its_images():
    model = systems.load_model(cifar10.get_config())
    init = functools.partial(model.network.init_with_output, jax.random.key(0))
    found, _ = jax.eval_shape(init, jax.ShapeDtypeStruct((2, 32, 32, 3), "float32"))
    assert found.logits.shape == (2, 10) and found.features.shape == (2, 640)
