# SPDX-License-Identifier: Apache-2.0
"""What do score-matching objectives learn, by exact likelihood, and what does it cost?

    python -m benchmarks.score_matching_quality train --model=nice_wine --objectives=fd_ssm,ssm,mle
    python -m benchmarks.score_matching_quality report

`train` trains one model by some objectives with some seeds, which are of the split of a table as
well, and writes a file for each; one that is there is not made again. `report` prints the log-
likelihood of the test rows in nats, the mean over seeds and its 95 % interval; what it has over
that by FD-SSM, seed by seed; and the processor seconds that training took (on one core, wall-clock
without other people's work). It draws one against the other. "At its best" is the mean over seeds
of the best point on the way, chosen by the test rows themselves. Flows are measured
exactly, after all steps; of the kernel family the normaliser is estimated, and the smallest
effective size is printed; it overfits, so that the loss of its validation rows chooses when to
stop. Digits are measured as logits of dequantised pixels; bits per dimension are in the files too.
"""

import argparse
import importlib
import json
import pathlib
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from benchmarks.digits_quality import interval
from scorejax import systems
from scorejax.data import tables
from scorejax.evaluate import progress
from scorejax.models.nice import NICE
from scorejax.report import Evaluation
from scorejax.systems import System
from scorejax.systems.fd_score_matching import training
from scorejax.train.state import TrainState
from scorejax.train.step import make_train_step, scan_steps

MODELS = ("nice_digits", "nice_wine", "nice_breast_cancer", "kernel_wine", "kernel_breast_cancer")
OBJECTIVES = ("mle", "sm", "ssm", "ssm_vr", "fd_ssm", "dsm", "fd_dsm")
NUM_POINTS = {"nice": 10, "kernel": 4}  # annealing costs more than training does
DATA_NOISE = 0.05


class Run(NamedTuple):
    """A model by an objective with a seed: test log-likelihood along the way."""

    steps: list[int]
    seconds: list[float]
    scalars: list[dict[str, float]]
    finite: bool

    @property
    def log_prob(self) -> list[float]:
        return [scalars["log_prob"] for scalars in self.scalars]

    @property
    def chosen(self) -> int:
        """The last point; of the kernel family, the one whose validation loss is smallest."""
        losses = [scalars.get("valid_score_matching", 0.0) for scalars in self.scalars[::-1]]
        return len(losses) - 1 - int(np.argmin(losses))


def make_system(model: str, objective: str, seed: int, num_steps: int) -> tuple:
    """The config and the system of a piece."""
    kind, _, data = model.partition("_")
    of_table = kind == "nice" and data != "digits"
    experiment = "nice_digits" if of_table else model
    config = importlib.import_module(f"configs.fd_score_matching.{experiment}").get_config()
    config.objective, config.seed, config.num_train_steps = objective, seed, num_steps
    config.num_steps_per_call, config.ema_rate = 20, 0.99
    if kind == "kernel":
        config.split_seed = seed
    else:
        config.eval_exact_examples = config.eval_samples = 0
    return config, table_flow(config, data, seed) if of_table else systems.load(config)


def table_flow(config, name: str, seed: int) -> System:
    """A flow of the white rows of a table, in training with the kernel family's noise."""
    table = tables.load(name, seed=seed)
    flow, test = NICE(table.dim, 4, 64, 2), jnp.asarray(table.test)
    objective = training.make_objective(config, (table.dim,), normalised=True)

    def row_losses(params, rng, x):
        return objective(lambda x: -flow.apply({"params": params}, x), rng, x)

    log_prob = jax.jit(lambda params: flow.apply({"params": params}, test))

    def evaluate(rng, variables) -> Evaluation:
        values = np.asarray(log_prob(variables[0]))
        return Evaluation(progress.summary("log_prob", values[None]), {})

    return System(
        init=systems.make_init(flow, jnp.ones((1, table.dim))),
        loss=training.make_loss(row_losses),
        tx=training.optimizer(config),
        source=table.training_source(config.batch_size, noise=DATA_NOISE),
        evaluate=evaluate,
    )


def train(config, system: System, num_points: int) -> Run:
    """Trains, and evaluates so many times; neither that nor compilation is in the seconds."""
    keys = jax.random.split(jax.random.key(config.seed), 4)
    state = jax.jit(lambda rng: TrainState.create(*system.init(rng), system.tx))(keys[0])
    carry, steps = system.source.init(0, keys[1]), config.num_steps_per_call
    step = scan_steps(make_train_step(system.loss, system.tx, ema_rate=config.ema_rate))
    points = set(np.linspace(0, config.num_train_steps, num_points + 1)[1:].round(-1).astype(int))
    run, compiled = Run([], [], [], finite=True), None
    seconds = 0.0
    for number in range(steps, config.num_train_steps + 1, steps):
        rows = []
        for _ in range(steps):
            carry, batch = system.source.next(carry, state, None)
            rows.append(batch)
        batches = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
        compiled = compiled or jax.jit(step).lower(state, batches, keys[2]).compile()
        start = time.process_time()
        state, metrics = jax.block_until_ready(compiled(state, batches, keys[2]))
        seconds += time.process_time() - start
        if not metrics["finite"].all():
            return run._replace(finite=False)
        if points & set(range(number - steps + 1, number + 1)):
            run.steps.append(number)
            run.seconds.append(seconds)
            run.scalars.append(system.evaluate(keys[3], system.published(state)).scalars)
    return run


def report(out: pathlib.Path) -> None:
    """The table, and a picture with a panel for each model."""
    print("| model | objective | nats | over fd_ssm | at its best | seconds | effective size |")
    print("|---" * 7 + "|")
    found: dict[str, dict[str, list[Run]]] = {}
    for model in MODELS:
        for objective in OBJECTIVES:
            paths = sorted(out.glob(f"{model}-{objective}-*.json"))
            runs = [Run(**json.loads(path.read_text())) for path in paths]
            runs = [run for run in runs if run.finite]
            if runs:
                found.setdefault(model, {})[objective] = runs
        for objective, runs in found.get(model, {}).items():
            print(row(model, objective, runs, found[model].get("fd_ssm", [])), flush=True)
    draw(out / "likelihood.png", found)


def row(model: str, objective: str, runs: list[Run], by_fd_ssm: list[Run]) -> str:
    reached = lambda runs: [run.log_prob[run.chosen] for run in runs]
    pairs = zip(reached(runs), reached(by_fd_ssm), strict=False)
    over = [ours - theirs for ours, theirs in pairs if objective != "fd_ssm"]
    best = np.mean([max(run.log_prob) for run in runs])
    chosen = [run.scalars[run.chosen] for run in runs]
    sizes = [scalars["effective_size"] for scalars in chosen if "effective_size" in scalars]
    seconds = np.mean([run.seconds[run.chosen] for run in runs])
    size = f"{min(sizes):.0f}" if sizes else "exact"
    likelihood = f"{spread(reached(runs))} | {spread(over) if over else ''} | {best:.1f}"
    return f"| {model} | {objective} | {likelihood} | {seconds:.1f} | {size} |"


def spread(values: Sequence[float], digits: int = 1) -> str:
    mean, half = interval(values)
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


def draw(path: pathlib.Path, found: dict[str, dict[str, list[Run]]]) -> None:
    """Log-likelihood against seconds of training: seeds faintly, their mean strongly.

    What falls below most of a panel's values leaves it.
    """
    figure = Figure(figsize=(4.2 * len(found), 3.6), dpi=90, layout="constrained")
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for axes, (model, of_model) in zip(panels, found.items(), strict=True):
        for objective, runs in of_model.items():
            colour = f"C{OBJECTIVES.index(objective)}"
            seconds = np.array([run.seconds for run in runs])
            values = np.array([run.log_prob for run in runs])
            axes.plot(seconds.T, values.T, color=colour, alpha=0.3, linewidth=0.8)
            means = seconds.mean(axis=0), values.mean(axis=0)
            axes.plot(*means, color=colour, linewidth=1.8, label=objective)
        every = np.concatenate([r.log_prob for runs in of_model.values() for r in runs])
        axes.set_ylim(np.quantile(every, 0.15), every.max() + 0.02 * np.ptp(every))
        axes.set(xscale="log", xlabel="seconds", title=model)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("log-likelihood of test rows, nats")
    panels[0].legend(fontsize=8, edgecolor="none")
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("train", "report"))
    parser.add_argument("--model", choices=MODELS, default=MODELS[1])
    parser.add_argument("--objectives", default="fd_ssm")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/score_matching"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.what == "report":
        report(arguments.out)
        return
    for objective in arguments.objectives.split(","):
        for seed in range(arguments.seeds):
            path = arguments.out / f"{arguments.model}-{objective}-{seed}.json"
            if path.exists():
                continue
            config, system = make_system(arguments.model, objective, seed, arguments.steps)
            run = train(config, system, NUM_POINTS[arguments.model.partition("_")[0]])
            path.write_text(json.dumps(run._asdict()))
            found = f"{run.log_prob[run.chosen]:.3f} nats" if run.finite else "not finite"
            print(f"{path.stem}: {found} after {sum(run.seconds[-1:]):.1f} s", flush=True)


if __name__ == "__main__":
    main()
