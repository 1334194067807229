# SPDX-License-Identifier: Apache-2.0
"""A published file becomes a run, from which the other commands go on; a wrong one is one line."""

import functools
import json

import jax
import numpy as np
import pytest
from flax.serialization import msgpack_serialize

from configs.ncsnv2 import digits as ncsnv2_digits
from configs.score_sde import digits
from scorejax import interop, runs, systems
from scorejax.interop.networks import refinenet as refinenet_weights
from scorejax.interop.networks.score_sde import build, correspondence
from scorejax.train import checkpoint
from scorejax.train.state import TrainState
from tests import commands
from tests.jax_skeleton import jax_layout
from tests.published_files import Call, Stored, score_sde_checkpoint, torch_zip

run = functools.partial(commands.run, **commands.SAME_FLAGS)
HYPER = {
    "nf": 8, "ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": (4,), "image_size": 8,
    "num_channels": 1, "embedding_type": "fourier", "fir": True, "centered": False,
    "progressive_input": "residual",
}  # fmt: skip
"""What the debug config of the digits says of the network for the VE SDE."""
NCSNPP = "score_sde/ncsnpp"


@pytest.fixture(scope="module")
def weights():
    """(raw, averaged) state dictionaries of the config's network, of small numbers."""
    rng, table = np.random.default_rng(0), correspondence(build(NCSNPP, HYPER), HYPER)
    draw = lambda shape: (0.05 * rng.normal(size=shape)).astype("f4")
    raw = {"sigmas": np.ones(10)} | {name: draw(shape) for name, shape in table.shapes.items()}
    frozen = ("sigmas", "all_modules.0.W")
    return raw, {name: a if name in frozen else draw(a.shape) for name, a in raw.items()}


@pytest.fixture(scope="module")
def files(weights, tmp_path_factory):
    """The same weights in two official layouts, and a hostile file; and a run that is there."""
    path = tmp_path_factory.mktemp("files")
    raw, averaged = weights
    shadow = [a for name, a in averaged.items() if name not in ("sigmas", "all_modules.0.W")]
    (path / "torch.pth").write_bytes(torch_zip(score_sde_checkpoint(raw, shadow)))
    tree = jax_layout(averaged, HYPER)
    optimizer = {"target": jax_layout(raw, HYPER), "state": {}}
    saved = {"step": 1234, "optimizer": optimizer, "params_ema": tree}
    (path / "checkpoint_9").write_bytes(msgpack_serialize(saved))
    few = {name: Stored(a) for name, a in list(raw.items())[:-1]}
    (path / "few.pth").write_bytes(torch_zip(few))
    raw_list, ema = ({k: Stored(a) for k, a in state.items()} for state in refinenet_states())
    (path / "ncsnv2.pth").write_bytes(torch_zip([raw_list, {"lr": 1e-4}, 3, 70, ema]))
    (path / "hostile.pth").write_bytes(torch_zip(Call("posix.system", f"touch {path}/canary")))
    (path / "letter.pth").write_text("Dear reader, these are no weights, only words.")
    (path / "run").mkdir()
    (path / "run" / "config.json").write_text(json.dumps(digits.get_config("ve,debug").to_dict()))
    return path


NCSNV2, REFINENET = "ncsnv2/ncsnv2", {"nf": 8, "image_size": 8, "num_channels": 1}
"""What the debug config of NCSNv2's digits says of its network; its ladder has ten levels."""


def refinenet_states():
    """(raw, averaged) state dictionaries of that network, in the official names."""
    rng, ladder = np.random.default_rng(1), {"sigma_begin": 4.4, "num_classes": 10}
    net = refinenet_weights.build(NCSNV2, REFINENET | ladder)
    table = refinenet_weights.correspondence(net, REFINENET)
    draw = lambda: {k: (0.05 * rng.normal(size=s)).astype("f4") for k, s in table.shapes.items()}
    sigmas = refinenet_weights.sigmas(REFINENET | ladder).astype("f4")
    return [{f"module.{k}": a for k, a in {"sigmas": sigmas, **draw()}.items()} for _ in range(2)]


CONFIG = "--config=configs/score_sde/digits.py:ve,debug"
LADDER = "--config=configs/ncsnv2/digits.py:debug"


@pytest.mark.deep
@pytest.mark.parametrize("name", ["torch.pth", "checkpoint_9"])
def test_a_published_file_becomes_a_run_that_sampling_goes_on_from(weights, files, tmp_path, name):
    said = run(
        "import_weights", f"--architecture={NCSNPP}", f"--weights={files}/{name}", CONFIG,
        f"--workdir={tmp_path}", "--config.num_sampling_steps=3",
    )  # fmt: skip
    assert said == f"step 1234, raw and averaged weights: {tmp_path}\n"
    raw, averaged = (interop.load_torch(NCSNPP, w, **HYPER)[1]["params"] for w in weights)
    restored = runs.open(tmp_path)
    assert restored.step == 1234
    jax.tree.map(np.testing.assert_array_equal, restored.variables[0], averaged)
    # Training could go on: the state has the form of the config's, and a fresh optimiser.
    system = systems.load(digits.get_config("ve,debug"))
    like = jax.eval_shape(lambda: TrainState.create(*system.init(jax.random.key(0)), system.tx))
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        state = checkpoints.restore_latest(like)
    jax.tree.map(np.testing.assert_array_equal, state.params, raw)
    assert not any(leaf.any() for leaf in jax.tree.leaves(state.opt_state))
    if name == "torch.pth":  # Both are the same run by now; one may do.
        run("sample", f"--workdir={tmp_path}", "--num=2")
        drawn = np.load(tmp_path / "samples.npz")
        assert drawn["images"].shape == (2, 8, 8, 1) and np.isfinite(drawn["images"]).all()
        assert drawn["step"] == 1234


@pytest.mark.slow
def test_the_official_list_of_ncsnv2_becomes_a_run_that_sampling_goes_on_from(files, tmp_path):
    said = run(
        "import_weights", f"--architecture={NCSNV2}", f"--weights={files}/ncsnv2.pth", LADDER,
        f"--workdir={tmp_path}",
    )  # fmt: skip
    assert said == f"step 70, raw and averaged weights: {tmp_path}\n"
    restored = runs.open(tmp_path)
    config = ncsnv2_digits.get_config("debug")
    _, loaded = interop.load_checkpoint(
        NCSNV2, files / "ncsnv2.pth", averaged=True, sigma_max=config.sigma_max,
        num_scales=config.num_scales, **REFINENET,
    )  # fmt: skip
    averaged = loaded["params"]["network"]
    jax.tree.map(np.testing.assert_array_equal, restored.variables[0], averaged)
    run("sample", f"--workdir={tmp_path}", "--num=2")
    drawn = np.load(tmp_path / "samples.npz")
    assert drawn["images"].shape == (2, 8, 8, 1) and np.isfinite(drawn["images"]).all()


def case(words, *, weights="torch.pth", architecture=NCSNPP, config=CONFIG, workdir="new", more=()):
    argv = [f"--architecture={architecture}", f"--weights={{tmp}}/{weights}", config]
    return [*argv, f"--workdir={{tmp}}/{workdir}", *more], words


CASES = {
    "no file": case("no file of weights at {tmp}/none.pth", weights="none.pth"),
    "a letter": case("not a checkpoint of a known kind", weights="letter.pth"),
    "hostile": case("'posix.system', which no checkpoint needs", weights="hostile.pth"),
    "missing": case("1 missing, first all_modules.", weights="few.pth"),
    "another width": case("misshapen, first all_modules.0.W", more=["--config.nf=16"]),
    "another depth": case(
        "missing, first all_modules.", more=["--config.num_res_blocks=2"],
    ),
    "another embedding": case(
        "surplus, first all_modules.0.W", config="--config=configs/score_sde/digits.py:vp,debug",
    ),
    "another network": case(
        "score_sde/ddpm has fir=False; the config has True", architecture="score_sde/ddpm",
        more=["--config.resblock_type=ddpm", "--config.embedding_type=positional"],
    ),
    "architecture": case("did you mean 'score_sde/ncsnpp'?", architecture="score_sde/ncsnp"),
    "another RefineNet": case(
        "missing, first res", weights="ncsnv2.pth", architecture="ncsnv2/ncsnv2_deeper",
        config=LADDER, more=["--config.model=ncsnv2_deeper"],
    ),
    "another ladder": case(
        "sigmas", weights="ncsnv2.pth", architecture=NCSNV2, config=LADDER,
        more=["--config.num_scales=12"],
    ),
    "a run is there": case("{tmp}/run already holds a run", workdir="run"),
    "no weights": (
        [f"--architecture={NCSNPP}", CONFIG, "--workdir={tmp}/x"], "--weights is missing",
    ),
    "no config": (
        [f"--architecture={NCSNPP}", "--weights=x", "--workdir={tmp}/x"], "--config is missing",
    ),
    "bad config": case("'fourier'?", more=["--config.embedding_type=fourrier"]),
}  # fmt: skip


@pytest.fixture(scope="module")
def outcomes(files):
    cases = {
        name: ("import_weights", [word.replace("{tmp}", str(files)) for word in argv])
        for name, (argv, _) in CASES.items()
    }
    return commands.outcomes_of(cases, **commands.SAME_FLAGS)


@pytest.mark.deep
@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_one_line_before_anything_is_compiled(name, outcomes, files):
    outcome, words = outcomes[name], CASES[name][1].replace("{tmp}", str(files))
    lines = outcome["stderr"].strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), outcome["stderr"]
    assert words in lines[0]
    assert outcome["status"] == 2 and outcome["compilations"] == 0
    assert not (files / "canary").exists() and not (files / "new").exists()
    assert [path.name for path in (files / "run").iterdir()] == ["config.json"]
