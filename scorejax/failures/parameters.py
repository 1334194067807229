# SPDX-License-Identifier: Apache-2.0
"""Parameters of the detector: which are valid, and which calls have read them."""

import inspect
import numbers
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from sklearn.utils import check_random_state

from scorejax.choices import choose, require, require_known

LOGIT_SCORES = ("max_softmax", "negative_entropy", "max_logit", "energy")
"""Scores of logits that are not fitted."""
OF_FIT, OF_CALIBRATION = (
    ("density", "explained", "density_options"),
    ("alpha", "delta", "logit_score", "by_class"),
)
"""Parameters that `fit` and `calibrate` have read, and that later calls hold to."""


def require_parameters(detector: object) -> None:
    """Raises ValueError for the first parameter of a `FailureDetector` that is out of range."""
    options = vars(detector)
    inside = lambda v: isinstance(v, numbers.Real) and 0 < v < 1
    require(options, ("alpha",), inside, "to lie in (0, 1)")
    optional = [name for name in ("delta", "held_out") if options[name] is not None]
    require(options, optional, inside, "to lie in (0, 1), or to be None")
    whole = lambda v: inside(v) or (isinstance(v, numbers.Real) and v == 1)
    require(options, ("explained",), whole, "to lie in (0, 1]")
    choose("logit_score", options["logit_score"], dict.fromkeys(LOGIT_SCORES))


def require_options(fit: Callable[..., object], options: Mapping[str, Any]) -> None:
    """Raises ValueError for the first option that a density's `fit` does not have."""
    parameters = inspect.signature(fit).parameters.values()
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    for name in options:
        require_known("name in density_options", name, known)


def require_unchanged(detector: object, read: Mapping[str, Any], method: str) -> None:
    """Raises ValueError for a parameter that has been set anew since `method` has read it."""
    for name, value in read.items():
        if getattr(detector, name) != value:
            raise ValueError(
                f"{name} was {value!r} in {method}, and is {getattr(detector, name)!r} now: call "
                f"{method} again"
            )


def seed_of(random_state: int | np.random.RandomState | None) -> int:
    """The random state as an integer. Raises: ValueError for what scikit-learn refuses."""
    state = check_random_state(random_state)
    if isinstance(random_state, numbers.Integral):
        return int(random_state)
    return int(state.randint(2**31 - 1))
