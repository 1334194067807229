# SPDX-License-Identifier: Apache-2.0
"""What README and docs say is executed: code runs, names and files exist, commands parse."""

import contextlib
import importlib
import inspect
import io
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
IDS = [str(page.relative_to(ROOT)) for page in PAGES]
CODE = [
    pytest.param(
        block,
        id=f"{page.name}-{number}",
        marks=[] if page.name in ("README.md", "extending.md") else [pytest.mark.deep],
    )
    for page in PAGES
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.S))
]


def resolve(dotted: str) -> object:
    """The object behind `scorejax.a.b.c`, importing as many leading parts as are modules."""
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):
        with contextlib.suppress(ModuleNotFoundError):
            found = importlib.import_module(".".join(parts[:cut]))
            for name in parts[cut:]:
                found = getattr(found, name)
            return found
    raise ModuleNotFoundError(dotted)


@pytest.mark.parametrize("block", CODE)
def test_python_examples_run_and_print_what_they_say(block, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block, "example", "exec"), {"__name__": "example"})
    for promised in re.findall(r"^# prints: (.*)$", block, re.M):
        assert promised in printed.getvalue()


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_names_and_files_that_a_page_mentions_exist(page):
    text = page.read_text()
    for dotted in sorted(set(re.findall(r"\bscorejax(?:\.[a-z_]\w*|\.[A-Z]\w*)+", text))):
        resolve(dotted.removesuffix(".py"))
    for name in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (page.parent / name).exists(), f"{page.name} links to {name}"
    folders = "configs|tests|launch|benchmarks|colabs|docs"
    pattern = rf"\b((?:{folders})/[\w/.-]+\.(?:py|md|sh|ipynb|sbatch))"
    for name in re.findall(pattern, text):
        assert (ROOT / name).exists() or (page.parent / name).exists(), f"{page.name} names {name}"


COMMANDS = [
    pytest.param(module, flags, id=f"{page.name}-{number}")
    for page in PAGES
    for number, (module, flags) in enumerate(
        re.findall(r"-m ((?:launch|benchmarks)\.\w+)((?:[^\n`#]|\\\n)*)", page.read_text())
    )
]
COMMON = {"config", "workdir", "help"}


@pytest.mark.parametrize("module, flags", COMMANDS)
def test_a_command_has_the_flags_that_a_page_gives_it(module, flags):
    source = (ROOT / module.replace(".", "/")).with_suffix(".py").read_text()
    known = set(re.findall(r'(?:DEFINE_\w+|add_argument)\(\s*"(?:--)?(\w+)"', source)) | COMMON
    known |= {"distributed"} if "shares_work=True" in source else set()
    assert "<" not in flags, "a shell reads < as a redirection"
    assert set(re.findall(r"(?<=--)\w+", flags)) <= known


LINES = [
    pytest.param(line, place, id=f"{page.stem}: {place}")
    for page in PAGES
    for line, place in re.findall(
        r"^\|[^|]*\| `([^`]+)` \| `(scorejax[\w.]+)` \|$", page.read_text(), re.M
    )
]


@pytest.mark.parametrize("line, place", LINES)
def test_a_line_of_code_that_a_page_quotes_is_there(line, place):
    source = " ".join(inspect.getsource(resolve(place)).split())
    assert " ".join(line.split()) in source


def test_the_pages_on_papers_quote_code():
    assert len(LINES) > 20
