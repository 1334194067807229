# SPDX-License-Identifier: Apache-2.0
"""The command `scorejax`: from a clone, and from a wheel in an environment without the clone."""

import json
import os
import pathlib
import runpy
import site
import subprocess
import sys
import tarfile
import venv
import zipfile

import numpy as np
import pytest

import scorejax
from launch import command
from scorejax import systems
from scorejax.__main__ import COMMANDS, main

ROOT = pathlib.Path(__file__).resolve().parent.parent


def output(capsys, monkeypatch, *argv):
    """What `scorejax ...` prints; it has to end well."""
    monkeypatch.setattr(sys, "argv", ["scorejax", *argv])
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(runpy, "run_module", run_prepared)
    main()
    return capsys.readouterr().out


def run_prepared(name, **_):
    """Does the job of a command without absl, which ends the process and parses flags once."""
    module = __import__(name, fromlist=["prepare"])
    module.prepare(*sys.argv[1:])()


def test_every_command_has_a_line_of_help_and_a_module(capsys, monkeypatch):
    assert output(capsys, monkeypatch, "--version") == f"scorejax {scorejax.__version__}\n"
    usage = output(capsys, monkeypatch, "--help")
    modules = {path.stem for path in (ROOT / "launch").glob("[!_]*.py")} - {"command", "catalogue"}
    assert {name.replace("-", "_") for name in COMMANDS} == modules
    assert all(f"  {name} " in usage for name in COMMANDS)


def test_systems_and_configs_are_listed_with_what_their_headers_say(capsys, monkeypatch):
    listed = output(capsys, monkeypatch, "systems")
    for name in systems.known():
        assert f"\n{name}: --config={name}/" in f"\n{listed}"
    configs = output(capsys, monkeypatch, "configs", "bionet")
    assert configs.count("--config=bionet/") >= 3
    assert "    hardware  1 CPU core: three minutes\n" in configs
    assert len(output(capsys, monkeypatch, "configs").split("--config=")) > 80
    with pytest.raises(ValueError, match="unknown system 'bionets': did you mean 'bionet'"):
        output(capsys, monkeypatch, "configs", "bionets")


def test_papers_of_a_system_are_cited(capsys, monkeypatch):
    cited = output(capsys, monkeypatch, "cite", "edm")
    assert cited.startswith("@misc{karras202200364,") and cited.count("{") == cited.count("}")
    assert "author = {Karras, Tero and Aittala, Miika and" in cited
    assert "eprint = {2006.00227}" in output(capsys, monkeypatch, "cite", "2006.00227")
    for name in systems.known():
        assert "@misc" in output(capsys, monkeypatch, "cite", name)


def test_a_config_is_found_by_its_name_and_a_file_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ours = f"--config={ROOT}/configs/edm/digits.py"
    for name in ("edm/digits", "configs/edm/digits.py"):
        assert command._with_config_path(f"--config={name}:debug") == f"{ours}:debug"
    for other in (
        "--config=edm/nothing",
        "--config.edm/digits=1",
        "--workdir=edm/digits",
        "--config=",
    ):
        assert command._with_config_path(other) == other
    (tmp_path / "edm").mkdir()
    (tmp_path / "edm" / "digits").touch()
    assert command._with_config_path("--config=edm/digits") == "--config=edm/digits"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder of programs of an environment that has the wheel, made from the sdist, alone."""
    pytest.importorskip("hatchling")
    path = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-d", str(path / "dist"), "-t"]
    subprocess.run([*build, "sdist"], check=True, cwd=ROOT)
    (sdist,) = (path / "dist").iterdir()
    with tarfile.open(sdist) as archive:
        archive.extractall(path, filter="data")
    (source,) = path.glob("scorejax-*")
    subprocess.run([*build, "wheel"], check=True, cwd=source)
    (wheel,) = (path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.partition("/")[0] for name in archive.namelist()}
    # No folder that another package may have, as `configs`.
    assert {top.partition("-")[0] for top in tops} == {"scorejax"} and len(tops) == 2
    venv.create(path / "env", with_pip=False)
    programs = path / "env" / "bin"
    pip = [sys.executable, "-m", "pip", "--python", str(programs / "python"), "install"]
    subprocess.run([*pip, "--no-deps", "--no-index", str(wheel)], check=True)
    # The dependencies are those of this environment. Its links to the clone are in files that only
    # an environment's own folder may have.
    (packages,) = (path / "env" / "lib").glob("python*/site-packages")
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()))
    return programs


@pytest.mark.slow
def test_the_wheel_trains_and_samples_outside_of_the_clone(installed, tmp_path):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    environment.pop("PYTHONPATH", None)

    def run(*argv):
        program = [installed / "scorejax", *argv]
        done = subprocess.run(
            program, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    origin = subprocess.run(
        [installed / "python", "-c", "import scorejax; print(scorejax.__file__)"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert origin.startswith(str(installed.parent))
    assert run("--version") == f"scorejax {scorejax.__version__}\n"
    assert "edm: --config=edm/digits" in run("systems")
    assert "eprint = {2007.00243}" in run("cite", "bionet")
    small = ("--config.num_train_steps=10", "--config.eval_every=10", "--config.save_every=10")
    run("train", "--config=score_sde/digits:debug", "--workdir=run", *small)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["system"] == "score_sde"
    run("sample", "--workdir=run", "--num=3", "--sampler=heun", "--nfe=5", "--out=drawn")
    assert np.load(tmp_path / "drawn.npz")["images"].shape == (3, 8, 8, 1)
    wrong = [installed / "scorejax", "train", "--config=score_sde/digts", "--workdir=x"]
    done = subprocess.run(
        wrong, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "did you mean 'configs/score_sde/digits.py'" in done.stderr
