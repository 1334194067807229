# SPDX-License-Identifier: Apache-2.0
"""Every config, in every variant: locked at the command line, flat, read to the last key."""

import dataclasses
import importlib
import json
import pathlib
import re

import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits

from configs.score_sde import family
from scorejax.objectives.training_loss import make_loss_fn
from scorejax.systems import score_sde
from scorejax.train.settings import Settings
from scorejax.train.state import TrainState
from scorejax.train.step import make_train_step, scan_steps

ROOT = pathlib.Path(__file__).resolve().parent.parent
EXPERIMENTS = [f"configs.score_sde.{name}" for name in ("digits", "fashion_mnist", "photo_patches")]
VARIANTS = ["vp", "subvp", "ve", "debug", "subvp,debug", "ve,debug"]


def ddpm_size(nf, mult, attending, *, conditional=True, blocks=2):
    """Parameters of DDPM by its recipe; the level `attending` has attention."""
    dense, norm = lambda a, b: (a + 1) * b, lambda c: 2 * c
    conv = lambda a, b: 9 * a * b + b
    embed = dense(nf, 4 * nf) + dense(4 * nf, 4 * nf) if conditional else 0
    label = lambda b: dense(4 * nf, b) if conditional else 0
    attention = lambda c: norm(c) + 4 * dense(c, c)

    def block(a, b):
        body = norm(a) + conv(a, b) + label(b) + norm(b) + conv(b, b)
        return body + (dense(a, b) if a != b else 0)

    attends = lambda level: level == attending
    widths, size, c, skips = [nf * m for m in mult], embed + conv(3, nf), nf, [nf]
    for level, width in enumerate(widths):
        for _ in range(blocks):
            size += block(c, width) + attends(level) * attention(width)
            c = width
            skips.append(c)
        if level + 1 < len(widths):
            size += conv(c, c)
            skips.append(c)
    size += 2 * block(c, c) + attention(c)
    for level, width in reversed(list(enumerate(widths))):
        for _ in range(blocks + 1):
            size += block(c + skips.pop(), width)
            c = width
        size += attends(level) * attention(c) + (conv(c, c) if level else 0)
    return size + norm(c) + conv(c, 3)


DDPM_CIFAR10 = ddpm_size(128, (1, 2, 2, 2), 1)  # 16 of 32 pixels is level 1
DDPM_256 = ddpm_size(128, (1, 1, 2, 2, 4, 4), 4)
DDPMPP, DDPMPP_DEEP = 61_804_419, 106_632_579
NCSNPP, NCSNPP_DEEP, FREQUENCIES = 62_693_251, 107_521_411, 128 + 128 * 512
OFFICIAL = {  # name: parameters, as published or counted by hand
    "vp_cifar10_ddpm": DDPM_CIFAR10,
    "vp_cifar10_ddpm_continuous": DDPM_CIFAR10,
    "vp_cifar10_ddpm_unconditional": ddpm_size(128, (1, 2, 2, 2), 1, conditional=False),
    "vp_bedroom_ddpm": DDPM_256,
    "vp_church_ddpm": DDPM_256,
    "vp_celebahq_256_ddpm": DDPM_256,
    "vp_cifar10_ddpmpp": DDPMPP,
    "vp_cifar10_ddpmpp_continuous": DDPMPP,
    "vp_cifar10_ddpmpp_deep_continuous": DDPMPP_DEEP,
    "vp_cifar10_ncsnpp": NCSNPP,
    "vp_cifar10_ncsnpp_continuous": NCSNPP,
    "vp_cifar10_ncsnpp_deep_continuous": NCSNPP_DEEP,
    "subvp_cifar10_ddpm_continuous": DDPM_CIFAR10,
    "subvp_cifar10_ddpmpp_continuous": DDPMPP,
    "subvp_cifar10_ddpmpp_deep_continuous": DDPMPP_DEEP,
    "subvp_cifar10_ncsnpp_continuous": NCSNPP,
    "subvp_cifar10_ncsnpp_deep_continuous": NCSNPP_DEEP,
    "ve_cifar10_ddpm": DDPM_CIFAR10,
    "ve_cifar10_ncsnpp": NCSNPP,
    "ve_cifar10_ncsnpp_continuous": NCSNPP + FREQUENCIES,
    "ve_cifar10_ncsnpp_deep_continuous": NCSNPP_DEEP + FREQUENCIES,
    "ve_celeba_ncsnpp": NCSNPP,
    "ve_bedroom_ncsnpp_continuous": 65_574_549,
    "ve_church_ncsnpp_continuous": 65_574_549,
    "ve_celebahq_256_ncsnpp_continuous": 65_574_549,
    "ve_ffhq_256_ncsnpp_continuous": 65_574_549,
    "ve_celebahq_1024_ncsnpp_continuous": 105_785_896,
    "ve_ffhq_1024_ncsnpp_continuous": 105_785_896,
}


def official(in_full):
    """The official experiments; those that no other stands for are tested by default."""
    marks = lambda name: [] if name in in_full else [pytest.mark.slow]
    return pytest.mark.parametrize(
        "name", [pytest.param(name, marks=marks(name)) for name in OFFICIAL]
    )


def get_config(experiment, variant):
    return importlib.import_module(experiment).get_config(variant)


def test_no_config_is_forgotten_here():
    files = {path.stem for path in (ROOT / "configs" / "score_sde").glob("*.py")}
    files -= {"family", "digits_recurrent"}  # which is in test_recurrent_ncsnpp.py
    assert files == {name.split(".")[-1] for name in EXPERIMENTS} | set(OFFICIAL)


def test_ddpm_is_counted_as_its_authors_count():
    # 527,360 fewer than Ho et al. have: two attentions on the way up, of 256 channels each.
    assert DDPM_CIFAR10 == 35_746_307 - 527_360


@official(in_full=["vp_bedroom_ddpm", "ve_cifar10_ncsnpp", "ve_ffhq_1024_ncsnpp_continuous"])
def test_an_official_network_has_its_size(name):
    config = get_config(f"configs.score_sde.{name}", "")
    model, view = require_possible(config)
    image = jax.ShapeDtypeStruct((1, *view.shape), "float32")
    label = jax.ShapeDtypeStruct((1,), "float32")
    output, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), image, label)
    assert output.shape == image.shape
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == OFFICIAL[name]


@official(in_full=[])
def test_an_official_experiment_takes_three_steps_in_debug_size(name):
    config = get_config(f"configs.score_sde.{name}", "debug")
    model, view = require_possible(config)
    rng = np.random.default_rng(0)
    stored = rng.integers(0, view.levels, (3, 4, *view.shape), np.uint8)
    batches = {"image": np.stack([view.as_trained(rng, images) for images in stored])}
    variables = jax.jit(model.init)(jax.random.key(0), batches["image"][0], np.ones(4, np.float32))
    loss = make_loss_fn(
        score_sde.make_example_loss(config, score_sde.make_sde(config)), model.apply
    )
    tx = score_sde.make_optimizer(config)
    step = scan_steps(make_train_step(loss, tx, ema_rate=config.ema_rate))
    state = TrainState.create(variables["params"], {}, tx)
    after, metrics = jax.jit(step)(state, batches, jax.random.key(1))
    assert int(after.step) == 3 and np.isfinite(metrics["loss"]).all()
    assert (metrics["finite"] == 1).all()
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), after.params, state.params)
    assert max(jax.tree.leaves(moved)) > 0


def require_possible(config):
    """The network and the data of a config, after all that reads it."""
    Settings.from_config(config)
    score_sde.make_optimizer(config)
    score_sde.make_example_loss(config, score_sde.make_sde(config))
    score_sde.sampler(config, "pc")
    return score_sde.make_network(config), score_sde.image_view(config)


@pytest.mark.parametrize("name", OFFICIAL)
def test_an_official_config_reads_as_its_file_is_called(name):
    config = get_config(f"configs.score_sde.{name}", "")
    read = {"system", *score_sde.KEYS, *(field.name for field in dataclasses.fields(Settings))}
    assert set(config) == read
    sde, rest = name.split("_", 1)
    assert config.sde == sde
    assert (config.model == "ddpm") == ("ddpm" in rest.split("_"))
    assert (config.objective == "denoising") == (sde == "subvp" or rest.endswith("continuous"))
    assert ("deep" in rest) == (config.num_res_blocks == 8)
    assert config.fir == ("ncsnpp" in rest)
    header = importlib.import_module(f"configs.score_sde.{name}").__doc__
    assert f"--config=configs/score_sde/{name}.py" in header
    with pytest.raises(ValueError, match="unknown variant 'vee'"):
        get_config(f"configs.score_sde.{name}", "vee")


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_values_are_possible_and_none_is_idle(experiment, variant):
    config = get_config(experiment, variant)
    read = {"system", *score_sde.KEYS, *(field.name for field in dataclasses.fields(Settings))}
    assert set(config) == read
    model, view = require_possible(config)
    x, label = np.zeros((2, *view.shape), np.float32), np.ones(2, np.float32)
    output, _ = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), x, label))
    assert output.shape == x.shape


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_config_survives_its_json_file(experiment, variant):
    config = get_config(experiment, variant).to_dict()
    again = json.loads(json.dumps(config))
    assert {key: tuple(v) if isinstance(v, list) else v for key, v in again.items()} == config


@pytest.mark.parametrize(
    "experiment", [*EXPERIMENTS, *(f"configs.score_sde.{n}" for n in OFFICIAL)]
)
def test_the_header_says_what_one_must_know(experiment):
    header = importlib.import_module(experiment).__doc__
    for entry in ("Paper", "Command", "Expected", "Hardware"):
        assert re.search(rf"^{entry} ", header, re.MULTILINE)


def test_the_default_variant_is_vp_in_full():
    for experiment in EXPERIMENTS:
        assert get_config(experiment, "") == get_config(experiment, "vp")
        assert get_config(experiment, "full") == get_config(experiment, "vp")
    with pytest.raises(ValueError, match="unknown variant 'vee': did you mean 've'"):
        family.parse("vee")


def test_debug_changes_sizes_and_no_method():
    full, debug = (get_config(EXPERIMENTS[0], variant) for variant in ("ve", "ve,debug"))
    for key in ("sde", "objective", "sigma_max", "embedding_type", "predictor", "corrector"):
        assert full[key] == debug[key]


def test_sigma_max_of_the_digits_is_their_largest_distance():
    # Technique 1 of arXiv:2006.09011, for images in [0, 1]; brute force over all pairs.
    x = load_digits().data / 16
    square = np.sum(x**2, axis=1)
    distance = np.sqrt(np.max(square[:, None] + square[None] - 2 * x @ x.T))
    assert distance <= get_config(EXPERIMENTS[0], "ve").sigma_max < 1.1 * distance
