# SPDX-License-Identifier: Apache-2.0
"""The configs and what their headers say: for the commands systems, configs and cite."""

import ast
import pathlib
import re
import textwrap
from typing import NamedTuple

from launch.command import ROOT


class Header(NamedTuple):
    """Entries of the docstring of a config."""

    name: str
    title: str
    paper: str
    expected: str
    hardware: str


def headers(system: str = "") -> list[Header]:
    """Headers of all configs, or of those of a system, by name. Raises: ValueError if unknown."""
    from scorejax.choices import require_known

    paths = sorted((ROOT / "configs").glob("*/*.py"))
    names = dict.fromkeys(path.parent.name for path in paths)
    if system:
        require_known("system", system, names)
    kept = [path for path in paths if system in ("", path.parent.name)]
    return [_header(path) for path in kept if path.stem != "family"]


def described(header: Header, name: str) -> str:
    """Some lines about a config: its title, cost and hardware, and what it reached."""
    lines = [f"{name}\n    {header.title}"]
    for entry in ("hardware", "expected"):
        text = textwrap.fill(getattr(header, entry), 84, subsequent_indent=" " * 14)
        lines.append(f"    {entry:<10}{text}")
    return "\n".join(lines)


def _header(path: pathlib.Path) -> Header:
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    entry = {}
    for word in ("Paper", "Expected", "Hardware"):
        found = re.search(rf"^{word} +(.*(?:\n +.*)*)", doc, re.MULTILINE)
        entry[word.lower()] = " ".join(found[1].split()) if found else ""
    name = f"{path.parent.name}/{path.stem}"
    title = " ".join(doc.split("\n\n")[0].split())
    return Header(name, title, **entry)
