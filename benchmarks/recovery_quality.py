# SPDX-License-Identifier: Apache-2.0
"""How good are samples of energies of digits, beside those of a score SDE, at equal calls?

    python -m benchmarks.recovery_quality runs/{recovery,denoising,vp}_{0,1,2}

Runs with the same name but for their last `_`-separated part are seeds of one row. Each model draws
with the number of gradient or network calls that six chains of 30 steps make, or, with `--own`, by
its own default. Samples are judged as in `benchmarks/digits_quality.py`: against the test half, in
the features of a classifier of digits; ± is half of the 95 % interval over the seeds.

Numbers: docs/results.md, "Recovery likelihood on digits".
"""

import argparse
import collections
import pathlib

from threadpoolctl import threadpool_limits

import launch  # noqa: F401  (XLA's flags and the allocator's settings)
from benchmarks.digits_quality import SAMPLE_HEAD, draw, judge, sample_row
from scorejax import runs, systems

CALLS = 180
EQUAL = {
    "recovery": ("chains", "", {}),
    "denoising": ("ancestral", "", {"nfe": CALLS}),
    "score SDE": ("predictor", "pc", {"nfe": CALLS}),
}
"""Of each kind of model: a label, a sampler and its options, for CALLS calls."""
OWN = {
    "recovery": EQUAL["recovery"],
    "denoising": ("all levels", "", {}),
    "score SDE": ("DPM-Solver++", "dpm++", {}),
}
"""The same for its own default."""


def measure(workdir: str, num: int, own: bool) -> tuple[str, dict[str, float]]:
    """The name of a sampler of a run, and the quality of `num` samples by it."""
    config, variables, _ = runs.open(workdir)
    kind = config.objective if config.system == "recovery_ebm" else "score SDE"
    label, name, options = (OWN if own else EQUAL)[kind]
    sampler = systems.load_model(config).sampler(name, **options)
    drawn = draw(sampler, variables, num, "drawn")
    with threadpool_limits(1):
        return label, judge(drawn["drawn/image"], drawn["drawn/nfe"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdirs", nargs="+")
    parser.add_argument("--num", type=int, default=512, help="samples of each run")
    parser.add_argument("--own", action="store_true", help="by the default of each model")
    options = parser.parse_args()
    groups = collections.defaultdict(list)
    for workdir in options.workdirs:
        groups[pathlib.Path(workdir).name.rpartition("_")[0]].append(workdir)
    print(SAMPLE_HEAD)
    for name, workdirs in groups.items():
        found = [measure(workdir, options.num, options.own) for workdir in workdirs]
        print(sample_row(f"{name}, {found[0][0]}", [row for _, row in found]), flush=True)


if __name__ == "__main__":
    main()
