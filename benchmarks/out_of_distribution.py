# SPDX-License-Identifier: Apache-2.0
"""Do densities of digits tell that an image is no digit?

    python -m benchmarks.out_of_distribution runs/ebm_seed0 runs/denoising_seed0 runs/vp_seed0

AUROC of log p, by each trained run on digits: the chance that a test digit has a higher log p than
a piece of clothing of 8 x 8 pixels, or than a test digit that is turned by 90 degrees. One half is
chance, and below one half log p prefers what it should not. The constant of an energy cancels; its
log p is of the image with the noise of its level 0 (see `systems.recovery_ebm.density`), that of a
score SDE is by the probability-flow ODE with one Hutchinson probe. Runs with the same name but for
their last `_`-separated part are one row: mean and standard deviation over them.

Numbers: docs/results.md, "Recovery likelihood on digits".
"""

import argparse
import collections

import jax
import numpy as np
from jaxtyping import Float, UInt8
from sklearn.metrics import roc_auc_score

import launch  # noqa: F401  (XLA's flags and the allocator's settings)
from scorejax import runs, systems
from scorejax.capabilities import MeasuresDensity
from scorejax.data import images
from scorejax.evaluate.chunks import measure_in_chunks
from scorejax.evaluate.foreign_images import clothes


def image_kinds(num: int) -> dict[str, UInt8[np.ndarray, "n 8 8 1"]]:
    """The first `num` images of each kind, or as many as there are; test digits come first."""
    digits = images.load("digits", "test", limit=num).image
    return {
        "test digits": digits,
        "clothes": clothes()[:num],
        "turned by 90 degrees": np.rot90(digits, axes=(1, 2)),
    }


def log_probs(workdir: str, num: int) -> dict[str, Float[np.ndarray, "n"]]:
    """log p of each kind of images in nats, up to one constant if the model is an energy."""
    run = runs.open(workdir)
    model = systems.require(run.config, MeasuresDensity)
    kinds = image_kinds(num)
    x = model.data.dequantized(np.random.default_rng(0), np.concatenate([*kinds.values()]))
    rows = measure_in_chunks(jax.random.key(0), model.likelihood(), run.variables, x)
    ends = np.cumsum([len(kind) for kind in kinds.values()])[:-1]
    return dict(zip(kinds, np.split(rows["log_prob"], ends), strict=True))


def areas(log_prob: dict[str, Float[np.ndarray, "n"]]) -> dict[str, float]:
    """AUROC of test digits, the positives, against each other kind."""
    (_, digits), *others = log_prob.items()
    area = lambda other: roc_auc_score(
        np.repeat([1, 0], [len(digits), len(other)]), np.concatenate([digits, other])
    )
    return {name: float(area(other)) for name, other in others}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdirs", nargs="+")
    parser.add_argument("--num", type=int, default=898, help="images of each kind, at most")
    options = parser.parse_args()
    groups = collections.defaultdict(list)
    for workdir in options.workdirs:
        groups[workdir.rstrip("/").rpartition("_")[0] or workdir].append(workdir)
    head = ["runs", *list(image_kinds(1))[1:]]
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for name, workdirs in groups.items():
        found = [areas(log_probs(workdir, options.num)) for workdir in workdirs]
        cells = [plus_minus([area[kind] for area in found]) for kind in head[1:]]
        print("| " + " | ".join([f"{name} ({len(workdirs)})", *cells]) + " |", flush=True)


def plus_minus(values: list[float]) -> str:
    """Mean and, of several values, standard deviation."""
    spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"


if __name__ == "__main__":
    main()
