# SPDX-License-Identifier: Apache-2.0
"""How good are score SDEs of the handwritten digits: in bits/dim, and by their samples?

    python -m benchmarks.digits_quality runs/digits_{vp,subvp,ve}_seed{0,1,2} --out=docs/results

Each workdir is measured once and keeps its numbers in quality_<num_bits>_<num_samples>.npz, so that
a call that was stopped goes on; a newer checkpoint is measured anew. `--num_samples=0` is bits/dim
alone. Then tables (also as JSON) and pictures are written.

Bits/dim: of the test half, to be held against the densities of `benchmarks/digits_baselines.py`.
Samples: as many as the test half has images, by the probability-flow ODE, and by the chains
(predictor alone, and with Langevin correctors) at the same number of evaluations (NFE).
Judged in the features of a classifier of digits, against the test half. As many real images of the
training half are the floor; samples of the fitted Gaussian are the ceiling. 95 % intervals over the
seeds are Student's.
"""

import argparse
import collections
import functools
import json
import math
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from scipy import stats
from threadpoolctl import threadpool_limits

import launch  # noqa: F401  (XLA's flags and the allocator's settings)
from benchmarks import digits_baselines as baselines
from scorejax import runs, systems
from scorejax.capabilities import MeasuresDensity
from scorejax.data import images
from scorejax.evaluate import frechet, memorization, pictures
from scorejax.evaluate.chunks import draw_in_chunks, measure_in_chunks
from scorejax.evaluate.digits_features import digits_features, quantized

ODE_TOLERANCE = 1e-3
NUM_NEIGHBOURS = 3
SAMPLE_COLUMNS = ("NFE", "Fréchet distance", "precision", "recall", "class balance",
                  "nearest training image")  # fmt: skip
SAMPLE_HEAD = (
    "| samples | " + " | ".join(SAMPLE_COLUMNS) + " |\n" + "|---" * (len(SAMPLE_COLUMNS) + 1) + "|"
)


def measure(workdir: pathlib.Path, *, num_bits: int, num_samples: int) -> dict[str, np.ndarray]:
    """Bits/dim of test images and samples by every method, from the workdir if they are there."""
    run = runs.open(workdir)
    path = workdir / f"quality_{num_bits}_{num_samples}.npz"
    if path.exists():
        with np.load(path) as file:
            if file["step"] == run.step:
                return dict(file)
    found = {"step": np.array(run.step), "sde": np.array(run.config.sde)}
    found["bits_per_dim"] = measure_bits(run.config, run.variables, num_bits)
    if num_samples:
        found |= draw_all(run.config, run.variables, num_samples)
    np.savez(path, **found)
    return found


def measure_bits(config, variables, num: int) -> np.ndarray:
    """Bits/dim (num,) of the first test images, one dequantisation draw each."""
    model = systems.require(config, MeasuresDensity)
    x = model.data.density_examples(np.random.default_rng(0), num)
    rows = measure_in_chunks(jax.random.key(0), model.likelihood(), variables, x)
    return rows["bits_per_dim"]


def draw_all(config, variables, num: int) -> dict[str, np.ndarray]:
    """Samples and their NFE by method: keys "<method>/image" and "<method>/nfe".

    What the ODE costs is the budget of the chains.
    """
    config = config.copy_and_resolve_references()
    config.rtol = config.atol = ODE_TOLERANCE
    found = draw(systems.load_model(config).sampler("ode"), variables, num, "ODE")
    for name, settings in chains(round(float(found["ODE/nfe"].mean()))).items():
        config.update(settings)
        found |= draw(systems.load_model(config).sampler("pc"), variables, num, name)
    return found


def chains(budget: int) -> dict[str, dict]:
    """Settings of the chains that cost `budget` evaluations: a corrector move costs one as well."""
    common = {"predictor": "reverse_diffusion", "num_corrector_steps": 1, "denoise": True}
    alone = {"corrector": "none", "num_sampling_steps": budget}
    both = {"corrector": "langevin", "num_sampling_steps": budget // 2}
    return {"predictor": common | alone, "predictor-corrector": common | both}


def draw(sampler: Callable, variables, num: int, name: str) -> dict[str, np.ndarray]:
    """`num` samples in [0, 1], clipped to it, and their NFE."""
    rows = draw_in_chunks(jax.random.key(1), sampler, variables, num, unit=name)
    return {f"{name}/image": np.clip(rows["image"], 0, 1), f"{name}/nfe": rows["nfe"]}


class Judge(NamedTuple):
    """Whom samples are compared with, and how it looks at images in [0, 1]."""

    train: images.Images
    test: images.Images
    white: int
    look: Callable
    """images -> features (n, d) and the class (n,) that they are taken for."""
    levels: Callable[[np.ndarray], np.ndarray]
    """images -> levels 0 to white, as data are stored."""


@functools.cache
def of_digits() -> Judge:
    """The halves of the digits, and their classifier."""
    return Judge(real("train"), real("test"), 16, digits_features, quantized)


def judge(samples: np.ndarray, nfe: np.ndarray, by: Judge | None = None) -> dict[str, float]:
    """Sample quality against test images; what is not finite is left out, and counted."""
    train, test, white, look, levels = by or of_digits()
    finite = np.isfinite(samples).all(axis=(1, 2, 3))
    samples = samples[finite]
    ours, theirs = look(samples), look(test.image / white)
    shares = frechet.precision_recall(theirs.features, ours.features)
    balance = frechet.class_balance(test.label, ours.label, num_classes=10)
    copies = memorization.memorization(levels(samples), test.image, train.image)
    return {
        "NFE": float(nfe.mean()),
        "Fréchet distance": frechet.frechet_distance(theirs.features, ours.features),
        "precision": shares.precision,
        "recall": shares.recall,
        "class balance": balance.total_variation,
        "class balance by chance": balance.chance,
        "nearest training image": copies.distance_ratio,
        "closer to training than held-out": copies.probability_closer,
        "failures": int((~finite).sum()),
    }


def real(split: str) -> images.Images:
    """A half of the data."""
    return images.load("digits", split)


def references(num: int) -> dict[str, dict[str, float]]:
    """The same numbers for the real training half (the floor) and for two fitted densities."""
    train = real("train").image
    levels = train.reshape(len(train), -1).astype(np.float64)
    gaussian = baselines.fit_gaussian(levels, shrinkage=0.03)
    mixture = baselines.fit_mixture(levels, kind="full", num_components=15, seed=0)
    rng, free = np.random.default_rng(0), np.zeros(1)
    drawn = {
        "training half (floor)": train[:num] / 16,
        "Gaussian mixture": mixture_samples(rng, baselines.shrunk(mixture, 0.4), num),
        "full-covariance Gaussian (ceiling)": mixture_samples(rng, gaussian, num),
    }
    return {name: judge(samples, free) for name, samples in drawn.items()}


def mixture_samples(rng: np.random.Generator, mixture: baselines.Mixture, num: int) -> np.ndarray:
    """Images (num, 8, 8, 1) of a mixture with one member per covariance, clipped to [0, 1]."""
    weights = np.exp(mixture.log_weights[:, 0])
    chosen = rng.choice(len(weights), num, p=weights / weights.sum())
    roots = np.linalg.cholesky(mixture.covariances)
    noise = rng.standard_normal((num, roots.shape[-1]))
    x = mixture.means[chosen, 0] + np.einsum("nij,nj->ni", roots[chosen], noise)
    return np.clip(x, 0, 1).reshape(num, 8, 8, 1)


def interval(values: list[float]) -> tuple[float, float]:
    """Mean over seeds and the half-width of its 95 % interval, NaN for one seed."""
    if len(values) < 2:
        return float(values[0]), math.nan
    spread = np.std(values, ddof=1) / math.sqrt(len(values))
    return float(np.mean(values)), float(stats.t.ppf(0.975, len(values) - 1) * spread)


def plus_minus(values: list[float], form: str = ".3f") -> str:
    """A mean over seeds and its half-width, which one seed has not."""
    mean, half = interval(values)
    return f"{mean:{form}}" + ("" if math.isnan(half) else f" ± {half:.3f}")


def sample_row(label: str, rows: list[dict[str, float]]) -> str:
    """A line of a table below `SAMPLE_HEAD`, of what was judged seed by seed."""
    cells = [plus_minus([row[column] for row in rows]) for column in SAMPLE_COLUMNS]
    return f"| {label} | " + " | ".join(cells) + " |"


def summarise(runs: dict[str, dict[str, np.ndarray]]) -> dict:
    """What the tables show: intervals over the runs of each SDE."""
    bits, samples = collections.defaultdict(list), collections.defaultdict(list)
    for found in runs.values():
        sde = str(found["sde"])
        bits[sde].append(float(np.nanmean(found["bits_per_dim"])))
        methods = [key.removesuffix("/image") for key in found if key.endswith("/image")]
        for method in methods:
            row = judge(found[f"{method}/image"], found[f"{method}/nfe"])
            samples[f"{sde}, {method}"].append(row)
    return {
        "runs": list(runs),
        "bits_per_dim": {sde: interval(values) for sde, values in bits.items()},
        "unfinished": int(sum(np.isnan(found["bits_per_dim"]).sum() for found in runs.values())),
        "samples": {
            name: {column: interval([row[column] for row in rows]) for column in rows[0]}
            for name, rows in samples.items()
        },
    }


def tables(report: dict) -> str:
    """The report in markdown."""
    lines = ["| model | test bits/dim |", "|---|---|"]
    for sde, (mean, half) in report["bits_per_dim"].items():
        lines.append(f"| {sde} score SDE | {_with_interval(mean, half)} |")
    if "references" not in report:
        return "\n".join(lines)
    lines += ["", SAMPLE_HEAD]
    for name, row in report["samples"].items():
        cells = [_with_interval(*row[column]) for column in SAMPLE_COLUMNS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    floor = next(iter(report["references"].values()))  # its images are the training images
    for name, row in report["references"].items():
        cells = ["", *(f"{row[column]:.3f}" for column in SAMPLE_COLUMNS[1:-1])]
        cells.append("" if row is floor else f"{row[SAMPLE_COLUMNS[-1]]:.3f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw_pictures(found: dict[str, np.ndarray], out: pathlib.Path) -> None:
    """A grid of each SDE's samples, and beside those closest to the training half their origins."""
    sde, train = str(found["sde"]), real("train").image
    samples = found["predictor-corrector/image"]
    samples = samples[np.isfinite(samples).all(axis=(1, 2, 3))]
    pictures.save_png(out / f"digits_{sde}_samples.png", pictures.image_grid(samples[:100]))
    nearest = memorization.nearest_training(quantized(samples), train, k=NUM_NEIGHBOURS)
    closest = memorization.most_copied(nearest, num=10)
    shown = np.concatenate([np.arange(10), closest])
    picture = pictures.neighbours_picture(samples[shown], train[nearest.index[shown]] / 16)
    pictures.save_png(out / f"digits_{sde}_neighbours.png", picture)


def _with_interval(mean: float, half: float) -> str:
    digits = 0 if abs(mean) >= 20 else 3
    text = f"{mean:.{digits}f}"
    return text if math.isnan(half) or half == 0 else f"{text} ± {half:.{digits}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdirs", nargs="+", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/digits_quality"))
    parser.add_argument("--num_bits", type=int, default=898, help="test images for bits/dim")
    parser.add_argument("--num_samples", type=int, default=898)
    arguments = parser.parse_args()
    counts = {"num_bits": arguments.num_bits, "num_samples": arguments.num_samples}
    runs = {str(workdir): measure(workdir, **counts) for workdir in arguments.workdirs}
    arguments.out.mkdir(parents=True, exist_ok=True)
    with threadpool_limits(1):
        report = summarise(runs)
        if arguments.num_samples:
            report |= {"references": references(arguments.num_samples)}
            for found in {str(found["sde"]): found for found in runs.values()}.values():
                draw_pictures(found, arguments.out)
    print(tables(report))
    (arguments.out / "digits_quality.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
