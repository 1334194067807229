# SPDX-License-Identifier: Apache-2.0
"""Do passes pay if they are trained with care? One pass, three, and one that becomes three.

    python -m benchmarks.bionet_progressive --out=runs/progressive [--data=generated,ihc]
        [--steps=1000] [--multiplier=0.25] [--seeds=5] [--recipes=...] [--pieces=1]

A piece is one training: a set of images, a recipe, a seed. Every call trains the next `--pieces`
that are missing in `--out`, a JSON file each, then prints the tables of what is there; call it
again to go on. All start from `configs/bionet/nuclei.py`, see `benchmarks/bionet_quality.py`, with
the parameters of three passes. A recipe says how many passes are made when, and whether gradients
are clipped to norm 1 behind a warm-up of 50 updates. The second and third pass of "one, then three"
are added at half of the steps. Its control, "one, then one", is one pass, clipped: nothing restarts
when passes are added, so that adding none changes nothing.

Scores are those of the last update and, to see whether training has converged, of the update at
three quarters; no checkpoint is chosen by them. Means over test images; ± is half of the 95 %
t-interval over seeds, which draw images, weights and batches anew. Differences are to one pass,
clipped, seed by seed.
"""

import argparse
import functools
import itertools
import json
import pathlib
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from benchmarks import bionet_quality
from benchmarks.digits_quality import plus_minus
from scorejax.files import written_whole
from scorejax.systems import bionet
from scorejax.train.state import TrainState
from scorejax.train.step import make_train_step


class Recipe(NamedTuple):
    """Passes at first and at last, and whether gradients are clipped behind a warm-up."""

    title: str
    first: int
    last: int
    clips: bool


RECIPES = {
    "t1_clipped": Recipe("one pass, clipped", 1, 1, True),
    "t1_t3_clipped": Recipe("one, then three, clipped", 1, 3, True),
    "t3_clipped": Recipe("three passes, clipped", 3, 3, True),
    "t3": Recipe("three passes", 3, 3, False),
    "t1": Recipe("one pass", 1, 1, False),
}
CONTROL = "t1_clipped"
SHOWN = ("iou", "aji", "pq")


class Training(NamedTuple):
    """What all trainings of a table share."""

    num_steps: int
    multiplier: float


def make_config(data: str, recipe: Recipe, seed: int, training: Training) -> ConfigDict:
    """The settings of one training."""
    config = bionet_quality.make_config(data, seed, 3e-3)
    config.multiplier, config.num_passes = training.multiplier, 3
    starts = {(1, 1): training.num_steps, (3, 3): 0, (1, 3): training.num_steps // 2}
    config.progressive_passes = (starts[recipe.first, recipe.last],) * 2
    config.grad_clip, config.warmup = (1.0, 50) if recipe.clips else (0.0, 0)
    return config


@functools.cache
def compiled_init(training: Training) -> Callable:
    """(rng, image) -> variables: compiled once for all pieces, like what follows."""
    config = make_config("generated", RECIPES[CONTROL], 0, training)
    return jax.jit(bionet.build_network(config).init)


@functools.cache
def compiled_step(clips: bool, passes: int, training: Training) -> Callable:
    """(state, batch, rng) -> (state, metrics)."""
    config = make_config("generated", Recipe("", passes, passes, clips), 0, training)
    model = bionet.make_model(config)
    loss = functools.partial(model.loss, passes=passes)
    return jax.jit(make_train_step(loss, model.tx, ema_rate=0.0), donate_argnums=0)


@functools.cache
def compiled_prediction(passes: int, training: Training) -> Callable:
    """(variables, x) -> probabilities."""
    network = bionet.build_network(make_config("generated", RECIPES[CONTROL], 0, training))
    return jax.jit(lambda variables, x: jax.nn.sigmoid(network.apply(variables, x, passes=passes)))


def train_piece(data: str, name: str, seed: int, training: Training) -> dict:
    """Trains once; scores at three quarters and at the end, image by image."""
    recipe, started = RECIPES[name], time.perf_counter()
    config, rng = make_config(data, recipe, seed, training), jax.random.key(seed)
    model = bionet.make_model(config)
    source, test = bionet.training_source(config), bionet.annotated_images(config, "test")
    image = jnp.zeros((1, config.side, config.side, 3))
    variables = dict(compiled_init(training)(rng, image))
    state = TrainState.create(variables.pop("params"), variables, model.tx)
    carry, scores, losses, norms = source.init(0, rng), {}, [], []
    for number in range(1, training.num_steps + 1):
        passes = model.passes.at(number - 1)
        carry, batch = source.next(carry, None, rng)
        state, metrics = compiled_step(recipe.clips, passes, training)(state, batch, rng)
        losses.append(float(metrics["loss"]))
        norms.append(float(metrics["grad_norm"]))
        if number in (training.num_steps * 3 // 4, training.num_steps):
            variables = {"params": state.params, **state.model_state}
            run = compiled_prediction(passes, training)
            found = [bionet_quality.probabilities(config, run, variables, t) for t in test]
            scores[str(number)] = bionet_quality.score(config, test, found)
    return {
        "settings": training._asdict(), "scores": scores, "seconds": time.perf_counter() - started,
        "loss": float(np.mean(losses[-50:])), "first_norm": norms[0], "norms": norms,
    }  # fmt: skip


def table(pieces: dict[tuple[str, str, int], dict], data: str, num_steps: int) -> str:
    """What is there of a set of images, a row for each recipe."""
    of = lambda name: {s: piece for (d, n, s), piece in pieces.items() if (d, n) == (data, name)}
    moments = (num_steps * 3 // 4, num_steps)
    heads = ["seeds", f"IoU, {moments[0]} steps", *(f"{name}, {num_steps} steps" for name in SHOWN)]
    heads += ["loss of the last 50 steps", "first gradient's norm"]
    lines = [f"| {data} | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for name in (name for name in RECIPES if of(name)):
        runs = of(name)
        cells = [str(len(runs))]
        for moment, score in [(moments[0], "iou"), *((num_steps, score) for score in SHOWN)]:
            mean = {s: np.mean(run["scores"][str(moment)][score]) for s, run in runs.items()}
            base = {s: np.mean(r["scores"][str(moment)][score]) for s, r in of(CONTROL).items()}
            gains = [float(mean[s] - base[s]) for s in mean if s in base]
            gain = f" ({plus_minus(gains, '+.3f')})" if gains and name != CONTROL else ""
            cells.append(plus_minus([float(value) for value in mean.values()]) + gain)
        cells.append(plus_minus([run["loss"] for run in runs.values()]))
        cells.append(f"{np.median([run['first_norm'] for run in runs.values()]):.3g}")
        lines.append(f"| {RECIPES[name].title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/progressive"))
    parser.add_argument("--data", default="generated,ihc")
    parser.add_argument("--recipes", default=",".join(RECIPES))
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--multiplier", type=float, default=0.25)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--pieces", type=int, default=1)
    arguments = parser.parse_args()
    out, sets, recipes = arguments.out, arguments.data.split(","), arguments.recipes.split(",")
    if not set(sets) <= set(bionet_quality.DATA) or not set(recipes) <= set(RECIPES):
        parser.error(
            f"--data are of {', '.join(bionet_quality.DATA)}, --recipes of {', '.join(RECIPES)}"
        )
    out.mkdir(parents=True, exist_ok=True)
    training = Training(arguments.steps, arguments.multiplier)
    pieces = bionet_quality.read_pieces(out, training)
    # Seed by seed, so that a run that is cut short has compared all recipes.
    wanted = [(d, n, s) for s, d, n in itertools.product(range(arguments.seeds), sets, recipes)]
    for piece in [piece for piece in wanted if piece not in pieces][: arguments.pieces]:
        name = "-".join(map(str, piece))
        pieces[piece] = train_piece(*piece, training)
        with written_whole(out / f"{name}.json") as file:
            file.write(json.dumps(pieces[piece]).encode())
        print(f"{name}: {pieces[piece]['seconds']:.0f} s", flush=True)
    for data in sets:
        if any(d == data for d, _, _ in pieces):
            print(table(pieces, data, training.num_steps), flush=True)
    print(f"{sum(piece in pieces for piece in wanted)} of {len(wanted)} pieces are there")


if __name__ == "__main__":
    main()
