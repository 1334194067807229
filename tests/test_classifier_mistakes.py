# SPDX-License-Identifier: Apache-2.0
"""Classifier mistakes from configs: sets that are apart, labels that do not matter, a report."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from configs.classifier_mistakes import cifar10, digits
from scorejax import systems
from scorejax.data.five_sets import five_sets, of_classes
from scorejax.data.view import ImageView
from scorejax.evaluate.detection import auroc
from scorejax.failures.scores import SCORES, odin
from scorejax.systems.classifier_mistakes import report, sources
from scorejax.systems.classifier_mistakes.classifier import make_augment
from scorejax.systems.classifier_mistakes.detector import Outputs
from scorejax.systems.classifier_mistakes.detector import Tested as Seen  # pytest collects Test*
from scorejax.train.loop import train

# Features of so short a run have one dimension less than units.
pytestmark = pytest.mark.filterwarnings("ignore:the density sees 63 of 64 dimensions")
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


def test_classes_held_out_are_in_no_set_and_the_others_are_numbered_without_gaps():
    held_out = (7, 2)
    sizes = {"num_labelled": 200, "num_valid": 97, "num_calibration": 300}
    sets = five_sets(VIEW, seed=0, **sizes, held_out_classes=held_out)
    known = np.array([0, 1, 3, 4, 5, 6, 8, 9])
    stored = [VIEW.stored(split) for split in ("train", "test")]
    of = {
        image.tobytes(): label
        for part in stored
        for image, label in zip(part.image, part.label, strict=True)
    }
    labels = np.concatenate([known[part.label] for part in sets])
    images = np.concatenate([part.image for part in sets])
    np.testing.assert_array_equal(labels, [of[image.tobytes()] for image in images])
    # Together with the images of the classes held out they are all.
    unseen = of_classes(stored[1], held_out)
    assert set(unseen.label.tolist()) == set(held_out)
    assert len(images) + len(unseen.image) + len(of_classes(stored[0], held_out).image) == 1797
    assert len(unseen.image) + sum(len(part.image) for part in sets[3:]) == len(stored[1].image)
    config = digits.get_config("debug")
    config.held_out_classes = held_out
    model = systems.load_model(config)
    assert model.network.num_classes == 8
    np.testing.assert_array_equal(model.classes, known)
    np.testing.assert_array_equal(model.unseen.image, unseen.image)


def test_a_run_from_before_classes_could_be_held_out_has_all_of_them():
    config = digits.get_config("debug")
    del config.held_out_classes
    model = systems.load_model(config)
    assert model.network.num_classes == 10 and len(model.classes) == 10


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
    config.best_metric, config.held_out_classes = "", (9,)
    train(systems.load(config), config.to_dict(), path)
    return path


def detector(workdir, **changes):
    config = digits.get_config("detector,debug")
    config.update({"classifier": str(workdir), "attacks": ("fgsm",), "num_attacked": 64} | changes)
    return systems.load_model(config)


@pytest.mark.slow
def test_the_report_has_every_source_and_the_false_alarms_are_few(workdir):
    model = detector(workdir, attacks=("feature_matching", "fgsm"))
    evaluation = model.data_metrics()["failures"]()(jax.random.key(0), None)
    scalars = evaluation.scalars
    assert scalars["false_alarms/gaussian"] < 0.05 + 4 * np.sqrt(0.05 / scalars["calibration_rows"])
    found = {name.split("/")[0] for name in scalars if name.endswith("/failures")}
    foreign = {"turned", "noise", "constant", "photographs", "clothes"}
    assert found == {"fgsm", "feature_matching", "mistakes", "unseen_classes"} | foreign
    # The area of the report is that of the scores of its images.
    source = model.failures()["turned"]
    scores = [model.scores(x)["max_softmax"] for x in (source.failures, source.normal)]
    failed = np.repeat([True, False], [len(s) for s in scores])
    expected = auroc(np.concatenate(scores), failed)
    assert scalars["turned/max_softmax/auroc"] == pytest.approx(expected)
    assert evaluation.pictures["turned_missed"].ndim == 3
    # ODIN of a few images by themselves; float32 in two programs.
    few = source.failures[:5]
    logits_fn = lambda x: model.first_stage.classify(model.run.variables, x).logits
    alone = jax.jit(lambda x: odin(logits_fn, x))(few)
    np.testing.assert_allclose(model.scores(few)["odin"], alone, atol=1e-5)
    unseen = model.failures()["unseen_classes"].failures
    np.testing.assert_array_equal(unseen, model.first_stage.as_input(model.first_stage.unseen))


@pytest.mark.deep
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
        SCORES["mahalanobis"].score(moved, again.outputs(images).features, np.zeros((20, 9)))
    )
    assert not np.allclose(now, before["mahalanobis"])


@pytest.mark.deep
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
    rng = np.random.default_rng(0)
    features, others = (rng.normal(size=(num, 5)).astype(np.float32) for num in (4, 30))
    label = rng.integers(0, 3, 30)
    # Every third image of the pool is a mistake: no image of its class, as the classifier sees it.
    right = np.arange(30) % 3 != 0
    pool = others, np.eye(3)[np.where(right, label, (label + 1) % 3)], label
    images, label = np.zeros((4, 1, 1, 1)), np.array([0, 2, 2, 0])
    victims = sources.victims_of(images, label, logits, features, pool, 2)
    np.testing.assert_array_equal(victims.label, [0, 2])
    # The nearest features of another class, by brute force; ties have probability 0.
    for row, own, target in zip(features[[0, 2]], victims.label, victims.target, strict=True):
        allowed = others[right & (pool[2] != own)]
        nearest = np.argmin(np.sum((allowed - row[None]) ** 2, axis=1))
        np.testing.assert_array_equal(target, allowed[nearest])
    wrong = others, np.eye(3)[(pool[2] + 1) % 3], pool[2]
    with pytest.raises(ValueError, match="that the classifier gets right; got 0 images"):
        sources.victims_of(images, label, logits, features, wrong, 2)


def test_intervals_are_of_sources_whose_rows_are_independent():
    test = np.random.default_rng(0).random((30, 8, 8, 1), np.float32)
    found = sources.out_of_distribution(test, test[:20])
    independent = {name for name, source in found.items() if source.independent}
    assert independent == {"noise", "constant", "clothes"}
    assert set(found) - independent == {"turned", "photographs"}
    assert all(len(source.normal) == 20 for source in found.values())


def test_an_attack_of_few_successes_has_its_rate_of_success():
    few = np.zeros((2, 8, 8, 1), np.float32)
    source = sources.Source(few, few, independent=False, success=0.02)
    scalars, shown = report.source_report(None, "pgd", source)
    assert scalars == {"pgd/failures": 2.0, "pgd/normal": 2.0, "pgd/success": 0.02}
    assert shown == {}


def test_a_score_that_cannot_be_fitted_is_left_out_of_the_report(workdir):
    model = detector(workdir, attacks=())
    sets = model.first_stage.sets
    predicted = model.outputs(model.first_stage.as_input(sets.labelled)).logits.argmax(axis=1)
    # Class 3 has images, and the classifier gets none of them right.
    label = np.where(sets.labelled.label == 3, 4, sets.labelled.label)
    label[np.flatnonzero(predicted != 3)[0]] = 3
    model.first_stage.__dict__["sets"] = sets._replace(labelled=sets.labelled._replace(label=label))
    with pytest.warns(
        UserWarning, match="without 'stored_patterns': .* class 3 .* none$"
    ) as warned:
        fitted = model.others
    assert warned[0].filename == __file__  # and not functools, which calls it
    assert set(SCORES) - set(fitted) == {"stored_patterns"}


def test_mistakes_are_tested_by_predicted_and_by_true_class():
    # Of 60 images of class 4, 12 are taken for 6, and 3 of class 6 for 4. Mistakes score lower.
    rng = np.random.default_rng(0)
    label, predicted = np.repeat([0, 1], [60, 60]), np.repeat([0, 1, 1, 0], [48, 12, 57, 3])
    right = label == predicted
    scores = rng.normal(size=120) - 1.0 * ~right
    rows = Outputs(np.eye(2)[predicted], scores[:, None], scores[:, None])
    density = types.SimpleNamespace(density_scores=lambda x: {"density": x[:, 0]})
    model = types.SimpleNamespace(
        tested=Seen(np.zeros((120, 1, 1, 1)), label, rows, right),
        fitted={"gaussian": density},
        first_stage=types.SimpleNamespace(classes=np.array([4, 6])),
    )
    found = report.class_tests(model, "gaussian")
    assert found["mistakes/predicted/classes_tested"] == found["mistakes/true/classes_tested"] == 1
    counts = {
        "predicted_4": (3, 48),
        "predicted_6": (12, 57),
        "true_4": (12, 48),
        "true_6": (3, 57),
    }
    for name, (failures, normal) in counts.items():
        assert found[f"mistakes/{name}/failures"] == failures
        assert found[f"mistakes/{name}/normal"] == normal
        # Three mistakes are too few to test.
        assert (f"mistakes/{name}/p_value" in found) == (failures >= 5)
    for kind, inside in (("predicted_6", predicted == 1), ("true_4", label == 0)):
        low, high = scores[inside & ~right], scores[inside & right]
        expected = mannwhitneyu(low, high, alternative="less", method="asymptotic").pvalue
        # One class is tested, so that Holm's correction is none; sums of 60 terms in float64.
        assert found[f"mistakes/{kind}/p_value"] == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(
    ("variant", "changes", "message"),
    [
        ("debug", {"centered": True}, "centered needs to be False"),
        ("debug", {"objective": "pi"}, "unknown objective 'pi'"),
        ("debug", {"held_out_classes": (3, 10)}, r"different classes 0 \.\. 9"),
        ("debug", {"held_out_classes": (3, 3)}, r"different classes 0 \.\. 9"),
        ("debug", {"held_out_classes": tuple(range(9))}, "and two others that are left"),
        ("detector,debug", {"densities": ("mafs",)}, "did you mean 'maf'"),
        ("detector,debug", {"densities": ()}, r"densities needs one of .*, or more; got \(\)"),
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
