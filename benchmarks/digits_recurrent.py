# SPDX-License-Identifier: Apache-2.0
"""Do recurrent backward skips pay in a score network? Digits, at equal steps and at equal work.

    python -m benchmarks.digits_recurrent --runs=runs [--steps=500] [--seeds 0 1 2]
        [--num_bits=64] [--num_samples=450] [--nfe=20]

Reads runs of configs/score_sde/digits_recurrent.py, `recurrent_t1_seed0` and so on, of which those
of one pass went on for twice as many steps: a training step of two passes takes 1.996 times the
floating-point operations of one. Both networks have the same parameters. Bits/dim are of the first
test images, one dequantisation draw each, the same for all; samples are DPM-Solver++'s from one
noise, judged as in `benchmarks/digits_quality.py`. An evaluation of two passes costs twice as much.
± is half of the 95 % t-interval over seeds; differences are taken seed by seed. What was measured
is kept in the workdirs, so that a call that was stopped goes on.
"""

import argparse
import json
import pathlib
from typing import NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

import launch  # noqa: F401  (XLA's flags and the allocator's settings)
from benchmarks.digits_quality import draw, judge, measure_bits, plus_minus
from scorejax import runs, systems
from scorejax.files import written_whole

COLUMNS = ("bits/dim", "Fréchet distance", "precision", "recall", "class balance")
SAMPLER = "dpm++"


class Arm(NamedTuple):
    """One side of a comparison: passes, and the steps of its training in units of `--steps`."""

    num_passes: int
    times: int


ARMS = {
    "two passes": Arm(2, 1),
    "one pass, equal steps": Arm(1, 1),
    "one pass, equal work": Arm(1, 2),
}


class Counts(NamedTuple):
    """How much is measured."""

    num_bits: int
    num_samples: int
    nfe: int


def measure(workdir: pathlib.Path, step: int, counts: Counts) -> dict[str, float]:
    """The columns of a checkpoint, from the workdir if they are there."""
    path = workdir / f"recurrent_{step}_{'_'.join(map(str, counts))}.json"
    if path.exists():
        return json.loads(path.read_text())
    config, variables, _ = runs.open(workdir, step)
    bits = measure_bits(config, variables, counts.num_bits)
    sampler = systems.load_model(config).sampler(SAMPLER, nfe=counts.nfe)
    drawn = draw(sampler, variables, counts.num_samples, SAMPLER)
    with threadpool_limits(1):
        found = judge(drawn[f"{SAMPLER}/image"], drawn[f"{SAMPLER}/nfe"])
    found["bits/dim"] = float(np.mean(bits))
    with written_whole(path) as file:
        file.write(json.dumps(found).encode())
    return found


def table(found: dict[str, list[dict[str, float]]]) -> str:
    """A row for each arm, and one for the differences of the first to each of the others."""
    lines = ["| network | seeds | " + " | ".join(COLUMNS) + " |"]
    lines.append("|---" * (len(COLUMNS) + 2) + "|")
    add = lambda name, rows, form: lines.append(
        f"| {name} | {len(rows)} | "
        + " | ".join(plus_minus([row[c] for row in rows], form) for c in COLUMNS)
        + " |"
    )
    for name, rows in found.items():
        add(name, rows, ".3f")
    (first, ours), *others = found.items()
    for name, theirs in others:
        pairs = list(zip(ours, theirs, strict=True))
        gains = [{column: a[column] - b[column] for column in COLUMNS} for a, b in pairs]
        add(f"{first} − {name}", gains, "+.3f")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs"))
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--num_bits", type=int, default=64)
    parser.add_argument("--num_samples", type=int, default=450)
    parser.add_argument("--nfe", type=int, default=20)
    options = parser.parse_args()
    counts = Counts(options.num_bits, options.num_samples, options.nfe)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ARMS}
    for seed in options.seeds:
        for name, arm in ARMS.items():
            workdir = options.runs / f"recurrent_t{arm.num_passes}_seed{seed}"
            found[name].append(measure(workdir, arm.times * options.steps, counts))
            print(f"seed {seed}, {name}: {found[name][-1]}", flush=True)
    print(table(found))


if __name__ == "__main__":
    main()
