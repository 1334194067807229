# SPDX-License-Identifier: Apache-2.0
"""How good is EDM on the handwritten digits, in a few evaluations?

    python -m benchmarks.edm_digits runs/edm_digits_seed{0,1,2}

Bits/dim of the first test images by the probability flow, and 450 samples by each sampler, judged
as in `benchmarks/digits_quality.py`; means over the runs, with 95 % intervals if there are several.
"""

import argparse
import pathlib

import numpy as np
from threadpoolctl import threadpool_limits

import launch  # noqa: F401  (XLA's flags and the allocator's settings)
from benchmarks.digits_quality import SAMPLE_HEAD, draw, judge, measure_bits, plus_minus, sample_row
from scorejax import runs, systems

METHODS = {"Heun": ("heun", 35), "Heun, fewer": ("heun", 19), "DPM-Solver++": ("dpm++", 20)}
NUM, NUM_BITS = 450, 128


def measure(workdir: pathlib.Path) -> dict[str, dict[str, float]]:
    """Of a run: bits/dim, and sample quality by method."""
    config, variables, _ = runs.open(workdir)
    model = systems.load_model(config)
    bits = measure_bits(config, variables, NUM_BITS)
    found = {"bits": {"bits_per_dim": float(np.nanmean(bits))}}
    for label, (name, nfe) in METHODS.items():
        drawn = draw(model.sampler(name, nfe=nfe), variables, NUM, name)
        with threadpool_limits(1):
            found[label] = judge(drawn[f"{name}/image"], drawn[f"{name}/nfe"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdirs", nargs="+", type=pathlib.Path)
    runs = [measure(workdir) for workdir in parser.parse_args().workdirs]
    print(f"bits/dim {plus_minus([run['bits']['bits_per_dim'] for run in runs])}")
    print(SAMPLE_HEAD)
    for label in METHODS:
        print(sample_row(label, [run[label] for run in runs]))


if __name__ == "__main__":
    main()
