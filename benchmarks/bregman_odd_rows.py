# SPDX-License-Identifier: Apache-2.0
"""What do a few odd rows, heavy tails or columns of other units cost a search in memory?

    python -m benchmarks.bregman_odd_rows [--num=100000] [--dim=64] [--rounds=5]

For each kind of odd data the time of a search of 16 queries for 10 neighbours, over that of plain
data of the same law, in both orders of arguments: processor time, turns in one process. Points are
those whose divergence from a query is computed in double precision.
"""

from benchmarks import timing  # first: it sets what JAX reads as it starts

# isort: split
import argparse
import functools
import statistics
import time
from collections.abc import Callable

import numpy as np

from scorejax import bregman
from scorejax.bregman.divergences import SIDES

NUM_QUERIES, K = 16, 10
Change = Callable[[np.ndarray], np.ndarray]


def long_rows(x: np.ndarray, num: int) -> np.ndarray:
    """The first `num` rows are 10^4 times longer."""
    return np.concatenate([1e4 * x[:num], x[num:]])


def one_entry(x: np.ndarray, value: float) -> np.ndarray:
    """One entry has this value."""
    changed = x.copy()
    changed[5, 3] = value
    return changed


def tilted(x: np.ndarray, decibels: float) -> np.ndarray:
    """Columns in units from 1 to 10^(decibels / 10)."""
    return x * 10 ** np.linspace(0, decibels / 10, x.shape[1])


# Name: (divergence, law, change of the points, change of points and queries alike).
ODD: dict[str, tuple[str, str, Change | None, Change | None]] = {
    "one long row": ("squared_euclidean", "normal", functools.partial(long_rows, num=1), None),
    "50 long rows": ("squared_euclidean", "normal", functools.partial(long_rows, num=50), None),
    "Student's t": ("squared_euclidean", "student", None, None),
    "an entry of 1e-6": ("itakura_saito", "gamma", functools.partial(one_entry, value=1e-6), None),
    "an entry of 1e6": ("generalized_kl", "gamma", functools.partial(one_entry, value=1e6), None),
    "tilt of 60 dB": ("itakura_saito", "gamma", None, functools.partial(tilted, decibels=60)),
    "tilt of 80 dB": ("itakura_saito", "gamma", None, functools.partial(tilted, decibels=80)),
    "lognormal": ("itakura_saito", "lognormal", None, None),
}
PLAIN = {"student": "normal", "lognormal": "gamma"}
"""The plain law beside a heavy-tailed one."""


def drawn(law: str, num: int, dim: int) -> np.ndarray:
    """Rows (num, dim) of a law."""
    rng = np.random.default_rng(0)
    draw = {
        "normal": rng.standard_normal,
        "gamma": functools.partial(rng.standard_gamma, 2.0),
        "student": functools.partial(rng.standard_t, 2),
        "lognormal": lambda size: np.exp(2 * rng.standard_normal(size)),
    }
    return draw[law](size=(num, dim))


def searching(
    x: np.ndarray, divergence: str, side: str, points_only: Change | None = None
) -> Callable[[], bregman.Neighbours]:
    """A search of the last rows among the others."""
    points, queries = x[:-NUM_QUERIES], x[-NUM_QUERIES:]
    points = points if points_only is None else points_only(points)
    index = bregman.build_index(points, divergence, side=side)
    return lambda: bregman.search(index, queries, K)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    rows = functools.partial(drawn, num=args.num + NUM_QUERIES, dim=args.dim)
    print(f"{'':28}  {'odd / plain':>20}  points a query, plain and odd")
    for (name, (divergence, law, points_only, both)), side in (
        (item, side) for item in ODD.items() for side in SIDES
    ):
        odd = rows(law) if both is None else both(rows(law))
        contenders = {
            "plain": searching(rows(PLAIN.get(law, law)), divergence, side),
            "odd": searching(odd, divergence, side, points_only),
        }
        clock = {"rounds": args.rounds, "calls": 3, "clock": time.process_time}
        times = timing.compare(contenders, **clock)
        points = [statistics.fmean(search().candidates) for search in contenders.values()]
        ratio = timing.ratio(times["odd"], times["plain"])
        print(f"{name:16} {side:11}  {ratio:>20}  {points[0]:9.1f} {points[1]:9.1f}", flush=True)


if __name__ == "__main__":
    main()
