# SPDX-License-Identifier: Apache-2.0
"""What a run says at its start, when it resumes, and when nothing is left to do."""

import pytest
from test_checkpoint import harm
from toy_system import CONFIG, build

from configs.bionet import nuclei
from configs.edm import digits
from scorejax import capabilities, systems
from scorejax.data.source import array_source
from scorejax.data.tables import load
from scorejax.score_model.sampling import default_caption
from scorejax.systems import ar_csm
from scorejax.train import banner
from scorejax.train.evaluations import Evaluations
from scorejax.train.loop import train
from scorejax.train.preflight import preflight
from scorejax.train.workdir import open_workdir

SHORT = CONFIG | {"num_train_steps": 8, "save_every": 8, "eval_every": 8}


def said(capfd, config, workdir):
    """The lines of a training before those of its steps."""
    capfd.readouterr()
    train(build(config), config, workdir)
    lines = capfd.readouterr().err.splitlines()
    return [line for line in lines if not line.startswith("step ")]


def test_a_run_says_what_it_trains_where_and_from_which_step(tmp_path, capfd):
    config = SHORT | {"dataset": "circle", "data_dir": "my/circles"}
    first = said(capfd, config, tmp_path)
    assert first == [
        f"data        circle, in my/circles, {config['batch_size']} a step",
        "parameters  82",  # 3 x 16 + 16 x 2 + 2
        "devices     2 x cpu",
        f"workdir     {tmp_path}",
        "a new run of 8 steps",
    ]
    assert said(capfd, config | {"num_train_steps": 16}, tmp_path)[-1] == "resuming at step 8 of 16"
    again = said(capfd, config | {"num_train_steps": 16}, tmp_path)
    assert again[-1] == "already at step 16 of 16: raise num_train_steps to go on"


def test_sources_know_how_many_examples_they_have():
    table = load("breast_cancer")
    assert table.training_source(4).num_examples == len(table.train)
    assert array_source({"x": table.train}, 4).num_examples == len(table.train)


def test_a_run_is_finished_if_its_last_step_is_sound_and_evaluated(tmp_path):
    settings, path = preflight(build(SHORT), SHORT, tmp_path)
    assert banner.finished(path, settings) is None
    train(build(SHORT), SHORT, tmp_path)
    assert banner.finished(path, settings) == 8
    longer, _ = preflight(build(SHORT), SHORT | {"num_train_steps": 16}, tmp_path)
    assert banner.finished(path, longer) is None
    record = (path / "evaluations.json").read_text()
    Evaluations(path).expect(9)
    assert banner.finished(path, settings) == 8  # of another step
    (path / "evaluations.json").write_text('{"8": {"attempts": 1, "failures": 0}}')
    assert banner.finished(path, settings) is None
    (path / "evaluations.json").write_text(record)
    harm(path / "checkpoints" / "8", "bit")
    assert banner.finished(path, settings) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"atol": 2, "sde": "ve", "nf": 3}, "with sde='vp', the config has sde='ve' .*atol, nf"),
        ({"nf": 3, "system": "edm", "sde": "ve"}, "with system='score_sde', the config has "),
        ({"nf": 3}, "with nf=1, the config has nf=3; .* or nf=1 to resume"),
        ({"damaged": "skip"}, None),
    ],
)
def test_a_contradiction_begins_with_the_key_that_decides_the_others(changes, words, tmp_path):
    config = {"atol": 1, "nf": 1, "sde": "vp", "system": "score_sde", "damaged": "raise"}
    open_workdir(tmp_path, config)
    if words is None:
        open_workdir(tmp_path, config | changes)
        return
    with pytest.raises(ValueError, match=words):
        open_workdir(tmp_path, config | changes)
    # A key that only the old config has, such as one of its model, follows from the difference.
    open_workdir(tmp_path / "more", config | {"beta_max": 20.0})
    if "sde" in changes:
        with pytest.raises(ValueError, match=words):
            open_workdir(tmp_path / "more", config | changes)


def test_a_command_that_cannot_names_the_one_that_can():
    config = nuclei.get_config("debug")
    words = r"cannot draw samples; .* launch\.segment --workdir=RUN --images=FOLDER or launch\."
    with pytest.raises(ValueError, match=words):
        systems.require(config, capabilities.DrawsSamples)
    drawing = systems.load_model(digits.get_config("debug"))
    offered = capabilities.commands(drawing, "runs/x")
    assert offered[0] == "launch.sample --workdir=runs/x --num=64"
    assert not any("segment" in line for line in offered)


def test_captions_name_the_sampler_and_its_evaluations():
    # Heun's 18 steps: two evaluations each but one in the last, and one that removes the noise.
    assert default_caption(systems.load_model(digits.get_config())) == "heun, 35 evaluations each"
    assert ar_csm.ConditionalModel.sampler_names[0] == "inverse_cdf"
