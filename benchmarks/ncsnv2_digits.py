# SPDX-License-Identifier: Apache-2.0
"""How good is NCSNv2 on the handwritten digits, and what is each of its techniques worth?

    python -m benchmarks.ncsnv2_digits --runs=runs --out=docs/results

Reads the runs whose commands docs/results.md has: three seeds, and one run for each technique that
is left out in training. Prints a table of bits/dim and of samples, 450 each, judged as in
`benchmarks/digits_quality.py`; and how far the mean brightness of samples is from that of the data
with and without the moving average, at every checkpoint. Writes pictures of both.
"""

import argparse
import pathlib

import numpy as np
import orbax.checkpoint as ocp
from threadpoolctl import threadpool_limits

import launch  # noqa: F401  (XLA's flags and the allocator's settings)
from benchmarks.digits_quality import (
    SAMPLE_HEAD,
    draw,
    judge,
    measure_bits,
    plus_minus,
    real,
    sample_row,
)
from scorejax import runs, systems
from scorejax.evaluate import pictures

SEEDS = tuple(f"ncsnv2_digits_seed{seed}" for seed in range(3))
LEFT_OUT = {
    "1: sigma_max = 1, too small": "ncsnv2_digits_technique1",
    "2: 8 levels, too few": "ncsnv2_digits_technique2",
    "3: a network for each level's label (NCSN)": "ncsnv2_digits_technique3",
}
NUM, NUM_BITS = 450, 128


def load(workdir: pathlib.Path, step: int | None = None, *, raw: bool = False):
    """Config and variables of a run; `raw` are the parameters without the moving average."""
    config, (params, model_state), step = runs.open(workdir, step)
    if raw:
        path = workdir.absolute() / "checkpoints" / str(step) / "train"
        with ocp.StandardCheckpointer() as checkpointer:
            params = checkpointer.restore(path)["params"]
    return config, (params, model_state)


def samples(config, variables, name: str = "ald", **options) -> dict[str, float]:
    """What is found of samples of a method."""
    found = draw(systems.load_model(config).sampler(name, **options), variables, NUM, name)
    with threadpool_limits(1):
        return judge(found[f"{name}/image"], found[f"{name}/nfe"])


def over_seeds(runs: pathlib.Path, change: dict | None = None, name: str = "ald", **options):
    """What is found of samples, seed by seed."""
    rows = []
    for seed in SEEDS:
        config, variables = load(runs / seed)
        config.update(change or {})
        rows.append(samples(config, variables, name, **options))
    return rows


def brightness(runs: pathlib.Path, out: pathlib.Path) -> str:
    """How far off samples' mean brightness is over a training, with the average and without."""
    truth = (real("train").image.mean() + 0.5) / 17  # of dequantised levels, as samples are
    steps = sorted(int(path.name) for path in (runs / SEEDS[0] / "checkpoints").glob("[0-9]*"))
    means, shown = {"moving average": [], "last weights": []}, []
    for step in steps:
        for label in means:
            config, variables = load(runs / SEEDS[0], step, raw=label == "last weights")
            found = draw(systems.load_model(config).sampler("ald"), variables, 256, "ald")[
                "ald/image"
            ]
            means[label].append(float(found.mean()))
            if step == steps[-1]:
                shown.append(found[:20])
    grid = pictures.image_grid(np.concatenate(shown), num_columns=20)
    pictures.save_png(out / "ncsnv2_average.png", grid)
    curves = means | {"data": [truth] * len(steps)}
    picture = pictures.curve_picture(np.array(steps), curves, xlabel="step")
    pictures.save_png(out / "ncsnv2_brightness.png", picture)
    lines = [f"mean brightness of the data {truth:.4f}; of samples at steps {steps}:"]
    for label, found in means.items():
        off = np.sqrt(np.mean((np.array(found) - truth) ** 2))
        values = ", ".join(f"{value:.3f}" for value in found)
        lines.append(f"  {label}: {values}; root mean squared difference {off:.4f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs"))
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("docs/results"))
    arguments = parser.parse_args()
    runs, out = arguments.runs, arguments.out
    bits = [float(np.nanmean(measure_bits(*load(runs / seed), NUM_BITS))) for seed in SEEDS]
    print(f"bits/dim {plus_minus(bits)}", flush=True)
    print(SAMPLE_HEAD, flush=True)
    config, _ = load(runs / SEEDS[0])
    show("annealed Langevin", over_seeds(runs))
    show("without the last denoising step", over_seeds(runs, {"denoise": False}))
    show("4: a fifth of the step size", over_seeds(runs, {"step_size": fifth(config)}))
    show("predictor-corrector", over_seeds(runs, name="pc", nfe=221))
    for label, name in LEFT_OUT.items():
        show(label, [samples(*load(runs / name))])
    show("5: no moving average", [samples(*load(runs / SEEDS[0], raw=True))])
    print(brightness(runs, out))


def show(label: str, rows: list[dict[str, float]]) -> None:
    print(sample_row(label, rows), flush=True)


def fifth(config) -> float:
    """A fifth of the step size that technique 4 chooses."""
    return systems.load_model(config).ladder.chain()["step_size"] / 5


if __name__ == "__main__":
    main()
