# SPDX-License-Identifier: Apache-2.0
"""Comparisons of trees of arrays."""

import jax
import numpy as np


def assert_equal(a, b):
    """Asserts that two trees have the same structure and the same arrays, bit for bit."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def assert_close(a, b, *, rtol, atol):
    """Asserts that two trees have the same structure and arrays equal up to a tolerance."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)
