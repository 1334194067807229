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

from benchmarks.digits_quality import SAMPLE_COLUMNS, draw, interval, judge
from launch import command
from scorejax.systems import edm

METHODS = {"Heun": ("heun", 35), "Heun, fewer": ("heun", 19), "DPM-Solver++": ("dpm++", 20)}
NUM, NUM_BITS = 450, 128


def measure(workdir: pathlib.Path) -> dict[str, dict[str, float]]:
    """Of a run: bits/dim, and sample quality by method."""
    config, restored = command.saved_config(str(workdir)), command.restore(str(workdir), None)
    variables = restored.params, restored.model_state
    view = edm.image_view(config)
    x = view.dequantized(np.random.default_rng(0), view.stored("test", NUM_BITS).image)
    rows = {"image": x, "rng": command.keys(0, len(x))}
    rows = command.in_chunks(edm.likelihood(config), variables, rows, NUM_BITS, "images")
    found = {"bits": {"bits_per_dim": float(np.nanmean(rows["bits_per_dim"]))}}
    for label, (name, nfe) in METHODS.items():
        drawn = draw(edm.sampler(config, name, nfe=nfe), variables, NUM, name)
        with threadpool_limits(1):
            found[label] = judge(drawn[f"{name}/image"], drawn[f"{name}/nfe"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdirs", nargs="+", type=pathlib.Path)
    runs = [measure(workdir) for workdir in parser.parse_args().workdirs]
    show = lambda values: "{:.3f} ± {:.3f}".format(*interval(values)).removesuffix(" ± nan")
    print(f"bits/dim {show([run['bits']['bits_per_dim'] for run in runs])}")
    print("| samples | " + " | ".join(SAMPLE_COLUMNS) + " |")
    print("|---" * (len(SAMPLE_COLUMNS) + 1) + "|")
    for label in METHODS:
        cells = [show([run[label][column] for run in runs]) for column in SAMPLE_COLUMNS]
        print(f"| {label} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
