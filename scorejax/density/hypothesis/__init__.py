# SPDX-License-Identifier: Apache-2.0
"""Tests with guarantees of scores, such as log-densities, on the host and in double precision.

Every score is oriented so that a high one is normal. `two_sample` asks whether a set of failures
scores lower than a set of normal examples, `conformal` whether one example is odd, and `martingale`
whether a stream has changed. `multiple_testing` corrects many p-values, and `risk_control` chooses
which predictions to accept. The names below are imported on first use.
"""

import importlib

_HOME = {
    "ClassTest": "two_sample", "MannWhitney": "two_sample", "TwoSample": "two_sample",
    "ks_two_sample": "two_sample", "mann_whitney": "two_sample", "per_class": "two_sample",
    "permutation_test": "two_sample",
    "FalseAlarmLaw": "conformal", "bonferroni": "conformal", "calibration_size": "conformal",
    "conformal_p_values": "conformal", "false_alarm_law": "conformal",
    "marginal_rank": "conformal", "marginal_threshold": "conformal",
    "mondrian_p_values": "conformal", "smallest_alpha": "conformal",
    "training_conditional_rank": "conformal", "training_conditional_threshold": "conformal",
    "two_sided_p_values": "conformal",
    "benjamini_hochberg": "multiple_testing", "fixed_sequence": "multiple_testing",
    "holm": "multiple_testing",
    "MARTINGALES": "martingale", "Alarm": "martingale", "alarm": "martingale",
    "jumper_martingale": "martingale", "mixture_martingale": "martingale",
    "online_p_values": "martingale", "power_martingale": "martingale",
    "Selection": "risk_control", "clopper_pearson_p_value": "risk_control",
    "hoeffding_bentkus_p_value": "risk_control", "select_threshold": "risk_control",
}  # fmt: skip

__all__ = [*_HOME]


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
