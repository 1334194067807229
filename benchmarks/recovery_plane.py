# SPDX-License-Identifier: Apache-2.0
"""How near are energies of points of the plane to the truth, and do bounds of log Z hold?

    for seed in 0 1 2; do
      python -m launch.train --workdir=runs/eight_$seed \
        --config=configs/recovery_ebm/eight_gaussians.py --config.seed=$seed
    done
    python -m benchmarks.recovery_plane runs/eight_0 runs/eight_1 runs/eight_2 [--picture=file.png]

One row for each trained run of recovery likelihood on a toy: KL(truth || model) in nats and total
variation at level 0, and log Z, by quadrature; bounds of log Z by annealed importance sampling down
and up the ladder, which do not know of the quadrature, with a 95 % interval and a verdict. Walks
back start from chains of MALA that begin at test data. The picture shows the first run.

Numbers: docs/results.md, "Recovery likelihood on the plane".
"""

import argparse
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from scorejax import runs, systems
from scorejax.density.bidirectional import confidence_interval, verdict
from scorejax.evaluate import plane
from scorejax.evaluate.pictures import save_png
from scorejax.systems.recovery_ebm import RecoveryModel
from scorejax.systems.recovery_ebm.density import data_log_prob, noised_truth, normalizer
from scorejax.systems.recovery_ebm.evaluation import LIMIT
from scorejax.typing import Variables

NUM_TEMPERATURES, NUM_CHAIN_STEPS = 550, 1000


class Trained(NamedTuple):
    """A run: its name, its step, its model and its averaged variables."""

    name: str
    step: int
    model: RecoveryModel
    variables: Variables


def open_run(workdir: str) -> Trained:
    """Raises: ValueError unless it is a run of recovery likelihood on points of the plane."""
    run = runs.open(workdir)
    model = systems.load_model(run.config)
    if not isinstance(model, RecoveryModel) or model.truth is None:
        raise ValueError(f"{workdir} is no run of recovery_ebm on a toy of the plane")
    return Trained(f"{run.config.dataset}, seed {run.config.seed}", run.step, model, run.variables)


def report(trained: Trained, num_walks: int) -> None:
    """Prints a row of the table, and the verdict on the bounds."""
    model, variables = trained.model, trained.variables
    compared = plane.compare(
        noised_truth(model).log_prob, data_log_prob(model, variables), limit=LIMIT
    )
    bounds_of = normalizer(
        model,
        num_walks=num_walks,
        num_temperatures=NUM_TEMPERATURES,
        num_chain_steps=NUM_CHAIN_STEPS,
    )
    x = jnp.asarray(model.truth.sample(jax.random.key(1), num_walks))
    bounds = bounds_of(variables, jax.random.key(0), x)
    interval = confidence_interval(bounds)
    cells = (
        trained.name,
        trained.step,
        f"{compared.divergence.value:.4f}",
        f"{compared.total_variation.value:.3f}",
        f"{compared.log_normalizer.value:.3f}",
        f"{bounds.lower:.3f} ± {bounds.lower_error:.3f}",
        f"{bounds.upper:.3f} ± {bounds.upper_error:.3f}",
        f"{interval.low:.1f} to {interval.high:.1f}",
        "yes" if bounds.met else "no",
    )
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)
    print(f"<!-- {verdict(bounds)} -->", flush=True)


def save_picture(trained: Trained, path: str, num_samples: int, limit: float = 1.4) -> None:
    """Draws the true density, the model's and samples of the model's chains, side by side."""
    model, variables = trained.model, trained.variables
    grid = functools.partial(plane.grid_log_prob, limit=limit)
    values = grid(data_log_prob(model, variables))
    densities = {
        "truth": grid(noised_truth(model).log_prob),
        "model": values - plane.log_integral(values, limit=limit).value,
    }
    keys = jax.random.split(jax.random.key(2), num_samples)
    samples = {f"{num_samples} samples": jax.jit(model.sampler())(variables, keys)["x"]}
    save_png(path, plane.plane_picture(densities, limit=limit, samples=samples))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdirs", nargs="+")
    parser.add_argument("--walks", type=int, default=1000)
    parser.add_argument("--picture", default="")
    parser.add_argument("--samples", type=int, default=4000)
    options = parser.parse_args()
    print("| run | step | KL | TV | log Z | lower | upper | 95 % | met |")
    print("|---|---|---|---|---|---|---|---|---|")
    trained = [open_run(workdir) for workdir in options.workdirs]
    for run in trained:
        report(run, options.walks)
    if options.picture:
        save_picture(trained[0], options.picture, options.samples)


if __name__ == "__main__":
    main()
