# SPDX-License-Identifier: Apache-2.0
"""Passes that training adds, a loss of each pass, images held out, and a segmenter as one file."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.bionet import nuclei
from scorejax import runs, systems
from scorejax.evaluate.segmentation import image_scores
from scorejax.systems import bionet
from scorejax.systems.bionet import images
from scorejax.systems.bionet.exported import export_segmenter
from scorejax.systems.bionet.passes import PassTraining
from scorejax.train.loop import train
from scorejax.train.state import TrainState
from tests.random_variables import random_variables


@pytest.fixture
def config():
    config = nuclei.get_config("t3,debug")
    config.multiplier, config.num_levels, config.num_backward_skips = 0.0625, 1, 1
    return config


def test_a_pass_is_added_at_its_number_of_updates_and_seen_in_the_statistics():
    passes = PassTraining(3, (2, 2))
    assert [passes.at(step) for step in range(4)] == [1, 1, 3, 3]
    assert [start for start, _ in passes.phases(lambda **_: None)] == [0, 2]
    assert PassTraining(3).at(0) == 3 and len(PassTraining(3).phases(lambda **_: None)) == 1
    counts = lambda *seen: {"enc": {f"norm_{i}": {"count": n} for i, n in enumerate(seen)}}
    reached = [passes.trained(counts(*seen)) for seen in [(2, 0, 0), (3, 1, 0), (3, 1, 1)]]
    assert reached == [1, 2, 3]
    assert passes.trained(counts(0, 0, 0)) == PassTraining(3).trained(counts(1, 0, 0)) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"progressive_passes": (2,)}, r"needs 2 numbers of updates .* num_passes=3.*got \(2,\)"),
        ({"progressive_passes": (4, 2)}, "that do not fall"),
        ({"deep_supervision": -1.0}, "deep_supervision needs to be at least 0; got -1.0"),
        ({"grad_clip": -1.0}, "grad_clip needs to be positive, or 0 for none; got -1.0"),
        ({"warmup": -1}, "warmup needs to be at least 0 updates; got -1"),
        ({"validation_fraction": 1.0}, r"validation_fraction needs to lie in \[0, 1\); got 1.0"),
    ],
)
def test_impossible_values_are_one_line(config, change, message):
    config.update(change)
    with pytest.raises(ValueError, match=message):
        systems.load(config)


def test_a_step_within_a_compiled_call_is_refused(config, tmp_path):
    config.progressive_passes = (15, 20)
    with pytest.raises(ValueError, match="starts=15 needs to be a multiple of num_steps_per_call"):
        train(systems.load(config), config, tmp_path)


@pytest.mark.deep
def test_a_run_that_adds_a_pass_resumes_in_its_phase_bit_for_bit(config, tmp_path):
    config.num_passes, config.integrate, config.progressive_passes = 2, True, (2,)
    config.num_steps_per_call, config.num_train_steps = 1, 4
    config.save_every = config.eval_every = config.log_every = 4
    whole = train(systems.load(config), config, tmp_path / "whole")
    for config.num_train_steps, passes in ((1, 1), (3, 2), (4, 2)):
        parts = train(systems.load(config), config, tmp_path / "parts")
        restored = runs.open(tmp_path / "parts")
        assert bionet.make_model(config).passes.trained(restored.variables[1]) == passes
    jax.tree.map(np.testing.assert_array_equal, parts, whole)
    assert _counts(whole) == [{4}, {2}]


def _counts(state):
    """Batches that the normalisations of each pass have seen."""
    found = [set(), set()]
    for path, leaf in jax.tree_util.tree_flatten_with_path(state.model_state)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name.endswith("/count") and "coder" in name:
            found[int(name.split("norm_")[1][0])].add(int(leaf))
    return found


def variables_of(model):
    x = jnp.zeros((1, 32, 32, 3))
    variables = random_variables(model.network, x, seed=0, mean=0.05, std=0.3)
    return variables["params"], {"batch_stats": jax.tree.map(np.abs, variables["batch_stats"])}


@pytest.mark.deep
@pytest.mark.parametrize("integrate", [False, True])
def test_fewer_passes_are_a_network_of_fewer_and_a_loss_of_each_is_their_mean(config, integrate):
    config.integrate, config.deep_supervision = integrate, 0.5
    model = bionet.make_model(config)
    params, model_state = variables_of(model)
    rng = np.random.default_rng(0)
    batch = {"image": rng.random((2, 32, 32, 3), np.float32)}
    batch["mask"] = (rng.random((2, 32, 32, 1)) < 0.5).astype(np.float32)
    batch = jax.tree.map(jnp.asarray, batch)
    state = TrainState.create(params, model_state, model.tx)
    value, aux = jax.jit(model.loss)(params, state, jax.random.key(0), batch)

    losses, moved = [], []
    for number in (1, 2, 3):
        smaller = model.network.clone(num_passes=number)
        first = dict(params)
        if integrate:
            # What the last pass made stands for those left out: their kernels are added to its.
            kernel, width = params["post_0"]["kernel"], model.network.widths[0]
            parts = jnp.split(kernel, 3, axis=2)
            assert parts[0].shape[2] == width
            joined = [*parts[: number - 1], sum(parts[number - 1 :])]
            first["post_0"] = params["post_0"] | {"kernel": jnp.concatenate(joined, axis=2)}
        run = jax.jit(lambda p, s, x, n=smaller: n.apply({"params": p, **s}, x, True, mutable=True))
        logits, changed = run(first, model_state, batch["image"])
        losses.append(float(jnp.mean(model.task.loss(logits, batch))))
        moved.append(changed["batch_stats"]["post_1"])
    # Sums of kernels in another order: single precision, of a loss of order one.
    np.testing.assert_allclose(value, losses[2] + 0.5 * np.mean(losses[:2]), rtol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
        aux.model_state["batch_stats"]["post_1"],
        moved[2],
    )


def test_images_held_out_of_training_rank_checkpoints_and_no_test_image_does(config):
    config.num_images, config.test_num_images = 10, 3
    split = lambda name: [one.name for one in images.annotated_images(config, name)]
    train_names, held_out = split("train"), split("validation")
    assert (len(train_names), len(held_out)) == (8, 2) and not set(train_names) & set(held_out)
    ranking = [one.name for one in images.ranking_images(config)]
    assert ranking == held_out and not set(ranking) & set(split("test"))
    config.num_images = 8  # The others are what they were: more images change no training image.
    config.validation_fraction = 0.0
    assert split("train") == train_names and split("validation") == []
    assert [one.name for one in images.ranking_images(config)] == split("test")


@pytest.mark.deep
def test_the_published_evaluation_of_training_is_of_held_out_images(config):
    config.num_passes = 1
    variables = variables_of(bionet.make_model(config))
    scalars = systems.load(config).evaluate(jax.random.key(0), variables).scalars
    segment = bionet.make_model(config).segmenter()
    expected = [
        image_scores(one.instances, segment(variables, one.image).probability)["iou"]
        for one in images.annotated_images(config, "validation")
    ]
    np.testing.assert_allclose(scalars["iou"], np.mean(expected), rtol=1e-12)


@pytest.mark.deep
def test_an_exported_segmenter_says_what_the_network_says(config):
    pytest.importorskip("flatbuffers")
    from jax import export

    config.num_passes = 2
    model = bionet.make_model(config)
    variables = variables_of(model)
    data = export_segmenter(model, variables)
    tiles = np.random.default_rng(0).random((3, config.tile, config.tile, 3), np.float32)
    loaded = export.deserialize(bytearray(data))
    assert set(loaded.platforms) == {"cpu", "cuda"}
    expected = jax.jit(lambda v, x: model.probability(v, x, passes=2))(variables, tiles)
    for num in (1, 3):
        # Weights are constants of the exported program: sums may be in another order.
        np.testing.assert_allclose(loaded.call(tiles[:num]), expected[:num], atol=1e-5)


def test_an_export_without_its_package_is_one_line(config, monkeypatch):
    from jax import export

    def fail(*_, **__):
        raise ImportError("flatbuffers")

    monkeypatch.setattr(export.Exported, "serialize", fail)
    config.num_passes = 1
    model = bionet.make_model(config)
    with pytest.raises(ValueError, match=r"needs the package flatbuffers: .*scorejax\[export\]"):
        export_segmenter(model, variables_of(model), platforms=("cpu",))
