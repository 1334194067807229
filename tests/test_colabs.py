# SPDX-License-Identifier: Apache-2.0
"""The notebooks run from top to bottom, in debug size, and show what they promise to show."""

import os
import pathlib
import re

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = pathlib.Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "colabs").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_and_shows_its_pictures(path, tmp_path, monkeypatch):
    monkeypatch.setenv("SCOREJAX_DEBUG", "1")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".jax_cache"))
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": tmp_path}})
    client.execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs = [output for cell in code for output in cell.outputs]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    promised = [cell for cell in code if "Image." in cell.source]
    assert len(pictures) == len(promised) >= 1
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    bits = [float(value) for value in re.findall(r"([\d.]+) bits/dim", printed)]
    # log2(17) is what a model spends that knows nothing; the debug model is still near its start.
    assert len(bits) == 2 and all(0 < value < 20 for value in bits)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_committed_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells)
    assert len(notebook.cells) <= 15
