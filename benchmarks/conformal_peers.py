# SPDX-License-Identifier: Apache-2.0
"""Are p-values, selections and martingales of `density.hypothesis` those of nonconform 2.0.0?

    python3.12 -m venv /tmp/nonconform
    /tmp/nonconform/bin/pip install nonconform==2.0.0 jax jaxtyping scikit-learn
    PYTHONPATH=. /tmp/nonconform/bin/python -m benchmarks.conformal_peers

nonconform needs Python 3.12. Scores are rounded, so that some tie; its large scores are odd, ours
are normal. Both are given the same uniform draws. Prints largest differences, and by how much the
processor time of nonconform exceeds ours.
"""

import argparse
import statistics
import time
import types
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from scorejax.density import hypothesis
from scorejax.density.hypothesis.conformal import uniform

NUM_CALIBRATION, NUM_SCORES, GRID, ROUNDS = 1000, 5000, 2000, 5
KEY, LEVEL = jax.random.key(0), 0.1


def draw(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Calibration scores of normal rows, and a stream that is odd in its second half."""
    generator = np.random.default_rng(seed)
    stream = generator.normal(size=NUM_SCORES) - 1.5 * (np.arange(NUM_SCORES) >= NUM_SCORES // 2)
    return generator.normal(size=NUM_CALIBRATION).round(2), stream.round(2)


def given(draws: np.ndarray) -> Any:
    """A generator of nonconform that returns these draws, all at once or one by one."""
    rest = iter(draws.tolist())
    return types.SimpleNamespace(uniform=lambda size: draws[:size], random=lambda: next(rest))


def online(calibration: np.ndarray, stream: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """nonconform's p-values of a stream."""
    from nonconform.monitoring import SequentialRankConformalizer

    ranks = SequentialRankConformalizer(tail="lower").prime_many(calibration)
    ranks._rng = given(draws)
    return ranks.update_many(stream)


def log_capital(martingale: Any, p_values: np.ndarray) -> np.ndarray:
    """nonconform's course of a martingale."""
    return np.array([state.log_martingale for state in martingale.update_many(p_values)])


def contests() -> dict[str, tuple[Callable[[], np.ndarray], Callable[[], np.ndarray]]]:
    """Pairs of ours and theirs."""
    from nonconform import martingales
    from nonconform._internal.p_value_selection import adjusted_p_values
    from nonconform.scoring import calculate_p_val

    calibration, scores = draw(0)
    draws = uniform(KEY, NUM_SCORES)
    p = hypothesis.conformal_p_values(calibration, scores)
    stream = hypothesis.online_p_values(KEY, calibration, scores)
    exponents = (np.arange(GRID) + 0.5) / GRID
    return {
        "conformal p-values": (
            lambda: hypothesis.conformal_p_values(calibration, scores),
            lambda: calculate_p_val(-scores, -calibration),
        ),
        "randomised": (
            lambda: hypothesis.conformal_p_values(calibration, scores, rng=KEY),
            lambda: calculate_p_val(
                -scores, -calibration, tie_break="randomized", rng=given(draws)
            ),
        ),
        "of a stream": (
            lambda: hypothesis.online_p_values(KEY, calibration, scores),
            lambda: online(calibration, scores, draws),
        ),
        "Benjamini-Hochberg": (
            lambda: hypothesis.benjamini_hochberg(p),
            lambda: adjusted_p_values(p, method="bh", n_calibration=NUM_CALIBRATION),
        ),
        "power martingale": (
            lambda: hypothesis.power_martingale(stream),
            lambda: log_capital(martingales.PowerMartingale(0.5), stream),
        ),
        "Simple Jumper": (
            lambda: hypothesis.jumper_martingale(stream),
            lambda: log_capital(martingales.SimpleJumperMartingale(0.01), stream),
        ),
        f"mixture over {GRID} exponents": (
            lambda: hypothesis.mixture_martingale(stream),
            lambda: log_capital(martingales.SimpleMixtureMartingale(exponents), stream),
        ),
    }


def seconds(call: Callable[[], object]) -> float:
    """Processor time of a call: the median of a few."""
    taken = []
    for _ in range(ROUNDS):
        start = time.process_time()
        call()
        taken.append(time.process_time() - start)
    return statistics.median(taken)


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    print("| | largest difference | time of nonconform over ours |")
    print("|---" * 3 + "|")
    for name, (ours, theirs) in contests().items():
        off = np.max(np.abs(ours() - theirs()))
        print(f"| {name} | {off:.1e} | {seconds(theirs) / seconds(ours):.3g} |", flush=True)
    calibration, scores = draw(0)
    odd = hypothesis.benjamini_hochberg(hypothesis.conformal_p_values(calibration, scores)) <= LEVEL
    normal = np.arange(NUM_SCORES) < NUM_SCORES // 2
    print(f"selected at {LEVEL:g}: {odd.sum()}, of which {normal[odd].mean():.3f} are normal")
    alarm = hypothesis.alarm(hypothesis.online_p_values(KEY, calibration, scores), 1e-3)
    print(f"alarm at {alarm.time}; the stream changes at {NUM_SCORES // 2}")


if __name__ == "__main__":
    main()
