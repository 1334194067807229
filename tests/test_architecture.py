# SPDX-License-Identifier: Apache-2.0
"""The layers of the house, read from the source: who may import whom."""

import ast
import builtins
import dis
import graphlib
import importlib
import pathlib
import subprocess
import sys
import types

import pytest

import scorejax
from scorejax import systems

ROOT = pathlib.Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "scorejax").rglob("*.py"))

OF_NO_LAYER = ("__init__.py", "__main__.py")
LAYERS = [
    {"typing", "numerics", "random", "choices", "ode", "distances", "files", "report"},
    {
        "sdes",
        "schedules",
        "parameterize",
        "preconditioning",
        "linear_operators",
        "energies",
        "quadrature",
        "noise_flow",
    },
    {
        "objectives",
        "samplers",
        "likelihood",
        "inverse",
        "guidance",
        "latent",
        "density",
        "bregman",
        "rl",
        "models",
        "attacks",
    },
    {"train", "data", "evaluate", "interop", "runs", "text"},
    {"score_model", "capabilities", "autoencoder", "failures"},
    {"systems"},
]  # fmt: skip


def layer(name: str) -> int:
    return next(i for i, names in enumerate(LAYERS) if name in names)


def imported_modules(path: pathlib.Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: imports are absolute"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def packages(modules: set[str], root: str = "scorejax") -> set[str]:
    parts = (module.split(".") for module in modules)
    known = set().union(*LAYERS)
    return {part[1] for part in parts if part[0] == root and len(part) > 1 and part[1] in known}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path):
    relative = path.relative_to(ROOT / "scorejax")
    if str(relative) in OF_NO_LAYER:
        pytest.skip("the package root names what is public, from any layer; so does the command")
    own = relative.parts[0].removesuffix(".py")
    above = {name for name in packages(imported_modules(path)) if layer(name) > layer(own)}
    assert not above, f"{relative} imports {above}, which lie above it"


def test_packages_form_no_circle():
    # Within a layer too: whoever reads a package needs to read no package that reads it in turn.
    graph = {}
    for path in SOURCES:
        relative = path.relative_to(ROOT / "scorejax")
        if str(relative) not in OF_NO_LAYER:
            own = relative.parts[0].removesuffix(".py")
            graph.setdefault(own, set()).update(packages(imported_modules(path)) - {own})
    order = [*graphlib.TopologicalSorter(graph).static_order()]  # CycleError names the circle
    assert order[-1] == "systems"


@pytest.mark.parametrize("package", ["bregman", "interop"])
def test_folders_of_a_package_form_no_circle(package):
    graph = {}
    for path in (ROOT / "scorejax" / package).rglob("*.py"):
        folder = path.relative_to(ROOT / "scorejax" / package).parts[0].removesuffix(".py")
        inside = [
            m.split(".") for m in imported_modules(path) if m.startswith(f"scorejax.{package}.")
        ]
        graph.setdefault(folder, set()).update({parts[2] for parts in inside} - {folder})
    assert [*graphlib.TopologicalSorter(graph).static_order()]  # CycleError names the circle


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_edge_is_where_it_should_be(path):
    relative = path.relative_to(ROOT / "scorejax")
    modules = imported_modules(path)
    roots = {module.split(".")[0] for module in modules}
    assert not roots & {"tensorflow", "torch", "launch", "configs"}
    if "ml_collections" in roots:
        assert relative.parts[0] in {"systems", "train"}
    if any(
        isinstance(node, ast.Attribute) and node.attr == "pmap"
        for node in ast.walk(ast.parse(path.read_text()))
    ):
        assert relative == pathlib.Path("train/parallel.py")
    if relative.parts[0] == "systems" and len(relative.parts) > 1:
        others = {f"scorejax.systems.{name}" for name in systems.known()} & modules
        own = f"scorejax.systems.{relative.parts[1].removesuffix('.py')}"
        assert others <= {own}, f"{relative} imports another system: {others}"


def global_names(code):
    """Names that a code object and the functions inside it read from the module."""
    reads = {i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL"}
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return reads.union(*map(global_names, inner))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_name_that_a_function_reads_is_defined(path):
    # ruff's own check cannot tell the shapes in annotations from names, and is off.
    relative = path.relative_to(ROOT).with_suffix("")
    module = importlib.import_module(".".join(relative.parts).removesuffix(".__init__"))
    names = global_names(compile(path.read_text(), path, "exec"))
    assert not names - vars(module).keys() - set(dir(builtins))


def test_the_walk_sees_what_it_must_see(tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text("from scorejax import systems\nimport scorejax.train.loop as loop\n")
    assert packages(imported_modules(bad)) == {"systems", "train"}
    assert global_names(compile("def f():\n    return lambda: nowhere\n", "bad", "exec")) == {
        "nowhere"
    }


def test_importing_the_package_touches_no_device_and_no_tensorflow():
    code = (
        "import sys, scorejax\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge._backends, 'a device was touched'\n"
        "assert 'tensorflow' not in sys.modules and 'torch' not in sys.modules\n"
    )
    result = subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT)
    assert result.returncode == 0


def test_every_public_name_is_where_the_package_says():
    assert {"VPSDE", "log_prob", "predictor_corrector", "NCSNpp"} <= set(dir(scorejax))
    for name in scorejax.__all__:
        assert getattr(scorejax, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'VPSED'"):
        scorejax.VPSED  # noqa: B018


def test_importing_the_package_imports_not_even_jax():
    code = "import sys, scorejax; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
