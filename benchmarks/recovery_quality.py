# SPDX-License-Identifier: Apache-2.0
"""How good are samples of energies of digits, beside those of a score SDE, at equal calls?

    python -m benchmarks.recovery_quality runs/{recovery,denoising,vp}_{0,1,2}

Runs with the same name but for their last `_`-separated part are seeds of one row. Each model draws
with the number of gradient or network calls that six chains of 30 steps make, and by its own
default. Samples are judged as in `benchmarks/digits_quality.py`: against the test half, in the
features of a classifier of digits; ± is half of the 95 % interval over the seeds.

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
SAMPLERS = {
    "recovery": {"chains": ("", {})},
    "denoising": {"ancestral": ("", {"nfe": CALLS}), "all levels": ("", {})},
    "score SDE": {"predictor": ("pc", {"nfe": CALLS}), "DPM-Solver++": ("dpm++", {})},
}
"""Of each kind of model: label -> the sampler and its options."""


def measure(workdir: str, num: int) -> dict[str, dict[str, float]]:
    """The quality of `num` samples of a run, by each sampler of its kind."""
    config, variables, _ = runs.open(workdir)
    kind = config.objective if config.system == "recovery_ebm" else "score SDE"
    model, found = systems.load_model(config), {}
    for label, (name, options) in SAMPLERS[kind].items():
        drawn = draw(model.sampler(name, **options), variables, num, "drawn")
        with threadpool_limits(1):
            found[label] = judge(drawn["drawn/image"], drawn["drawn/nfe"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdirs", nargs="+")
    parser.add_argument("--num", type=int, default=512, help="samples of each run")
    options = parser.parse_args()
    groups = collections.defaultdict(list)
    for workdir in options.workdirs:
        groups[pathlib.Path(workdir).name.rpartition("_")[0]].append(workdir)
    print(SAMPLE_HEAD)
    for name, workdirs in groups.items():
        found = [measure(workdir, options.num) for workdir in workdirs]
        for label in found[0]:
            print(sample_row(f"{name}, {label}", [seed[label] for seed in found]), flush=True)


if __name__ == "__main__":
    main()
