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
from scorejax.systems import score_sde
from scorejax.train.settings import Settings

ROOT = pathlib.Path(__file__).resolve().parent.parent
EXPERIMENTS = ["configs.score_sde.digits", "configs.score_sde.fashion_mnist"]
VARIANTS = ["vp", "subvp", "ve", "debug", "subvp,debug", "ve,debug"]


def get_config(experiment, variant):
    return importlib.import_module(experiment).get_config(variant)


def test_no_config_is_forgotten_here():
    files = {path.stem for path in (ROOT / "configs" / "score_sde").glob("*.py")}
    assert files - {"family"} == {name.split(".")[-1] for name in EXPERIMENTS}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_values_are_possible_and_none_is_idle(experiment, variant):
    config = get_config(experiment, variant)
    read = {"system", *score_sde.KEYS, *(field.name for field in dataclasses.fields(Settings))}
    assert set(config) == read
    Settings.from_config(config)
    score_sde.make_optimizer(config)
    score_sde.make_example_loss(config, score_sde.make_sde(config))
    score_sde.sampler(config, "pc")
    model, view = score_sde.make_network(config), score_sde.image_view(config)
    x, label = np.zeros((2, *view.shape), np.float32), np.ones(2, np.float32)
    output, _ = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), x, label))
    assert output.shape == x.shape


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_config_survives_its_json_file(experiment, variant):
    config = get_config(experiment, variant).to_dict()
    again = json.loads(json.dumps(config))
    assert {key: tuple(v) if isinstance(v, list) else v for key, v in again.items()} == config


@pytest.mark.parametrize("experiment", EXPERIMENTS)
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
