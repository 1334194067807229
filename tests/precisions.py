# SPDX-License-Identifier: Apache-2.0
"""Precisions in which golden numbers are compared.

Double precision holds the formulas to 1e-8 and more. Single precision, with the tolerances of the
golden files, holds how they round; it repeats each test and compiles it again, so it is slow.
"""

import pytest

SINGLE_AND_DOUBLE = [pytest.param("float32", marks=pytest.mark.slow), "float64"]
