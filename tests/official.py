# SPDX-License-Identifier: Apache-2.0
"""Agreement with numbers of official code, as the notes of the golden files define it."""

import numpy as np


def assert_agrees(value, file, name, precision):
    """Holds a value to file["out64/<name>"]: within its tolerance, or closely in double precision.

    The notes ask for 1e-8 of the largest entry of a row. The shape of the tolerance, one number for
    each row, says which axes make a row.
    """
    expected, tolerance = file[f"out64/{name}"], file[f"tol/{name}"]
    if precision == "float64":
        shape = np.shape(tolerance) or (1,) * expected.ndim
        axes = tuple(axis for axis, size in enumerate(shape) if size == 1)
        tolerance = 1e-8 * np.abs(expected).max(axis=axes, keepdims=True)
    assert np.shape(value) == expected.shape
    excess = np.abs(np.asarray(value, np.float64) - expected) - tolerance
    assert excess.max() <= 0, f"{name} is off by {excess.max():.3g} more than its tolerance"
