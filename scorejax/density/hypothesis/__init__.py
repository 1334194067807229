# SPDX-License-Identifier: Apache-2.0
"""Tests with guarantees of scores, such as log-densities, on the host and in double precision.

Every score is oriented so that a high one is normal. `two_sample` asks whether a set of failures
scores lower than a set of normal examples, `conformal` whether one example is odd, and `martingale`
whether a stream has changed. `multiple_testing` corrects many p-values, and `risk_control` chooses
which predictions to accept.
"""

from scorejax.density.hypothesis.conformal import (
    FalseAlarmLaw,
    bonferroni,
    calibration_size,
    conformal_p_values,
    false_alarm_law,
    marginal_rank,
    marginal_threshold,
    mondrian_p_values,
    smallest_alpha,
    training_conditional_rank,
    training_conditional_threshold,
    two_sided_p_values,
)
from scorejax.density.hypothesis.martingale import (
    MARTINGALES,
    Alarm,
    alarm,
    jumper_martingale,
    mixture_martingale,
    online_p_values,
    power_martingale,
)
from scorejax.density.hypothesis.multiple_testing import (
    benjamini_hochberg,
    fixed_sequence,
    holm,
)
from scorejax.density.hypothesis.risk_control import (
    Selection,
    clopper_pearson_p_value,
    hoeffding_bentkus_p_value,
    select_threshold,
)
from scorejax.density.hypothesis.two_sample import (
    ClassTest,
    MannWhitney,
    TwoSample,
    ks_two_sample,
    mann_whitney,
    per_class,
    permutation_test,
)

__all__ = [
    "MARTINGALES",
    "Alarm",
    "ClassTest",
    "FalseAlarmLaw",
    "MannWhitney",
    "Selection",
    "TwoSample",
    "alarm",
    "benjamini_hochberg",
    "bonferroni",
    "calibration_size",
    "clopper_pearson_p_value",
    "conformal_p_values",
    "false_alarm_law",
    "fixed_sequence",
    "hoeffding_bentkus_p_value",
    "holm",
    "jumper_martingale",
    "ks_two_sample",
    "mann_whitney",
    "marginal_rank",
    "marginal_threshold",
    "mixture_martingale",
    "mondrian_p_values",
    "online_p_values",
    "per_class",
    "permutation_test",
    "power_martingale",
    "select_threshold",
    "smallest_alpha",
    "training_conditional_rank",
    "training_conditional_threshold",
    "two_sided_p_values",
]
