# SPDX-License-Identifier: Apache-2.0
"""Does recurrence pay? BiO-Net of 1, 2 and 3 passes, with and without INT, against plain U-Nets.

    python -m benchmarks.bionet_quality --out=runs/bionet_quality [--data=generated,ihc,retina]
        [--steps=1000] [--learning_rate=3e-3] [--seeds=3] [--pieces=1]

A piece is one training: a set of images, a network, a seed. Every call trains the next `--pieces`
that are missing in `--out`, a JSON file and a picture each, then prints the tables of what is
there; call it again to go on. All networks start from `configs/bionet/nuclei.py` and differ in
themselves alone. Plain U-Nets have no backward skips and no kernels for them; their widths are
chosen so that they have the parameters of three passes, or twice as many.

"Equal steps" is after `--steps` updates. "Equal work" is after as many as cost what `--steps`
updates of three passes with INT cost, in floating-point operations of the training step as XLA
counts them before it optimises; the learning rate goes on falling by the same rule. Scores are
means over test images; ± is half of the 95 % t-interval over seeds, which draw images, weights and
batches anew. Differences are to the plain U-Net of the same parameters, seed by seed. Masks of
photographs are weak labels by a classical rule, and train and test halves are of one photograph.
"""

import argparse
import dataclasses
import itertools
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from benchmarks.digits_quality import plus_minus
from configs.bionet import nuclei
from scorejax.data.segmentation import AnnotatedImage
from scorejax.evaluate.pictures import image_grid, save_png
from scorejax.evaluate.segmentation import image_scores, separate
from scorejax.evaluate.segmentation_pictures import overlay
from scorejax.evaluate.sliding_window import sliding_window
from scorejax.files import written_whole
from scorejax.models.bionet import BiONet, max_pool, official_widths
from scorejax.systems import bionet
from scorejax.train.state import TrainState
from scorejax.train.step import make_train_step

DATA = ("generated", "ihc", "retina", "coins")
PASSES = {
    "t1": (1, False), "t2": (2, False), "t2_int": (2, True), "t3": (3, False), "t3_int": (3, True)
}  # fmt: skip
"""(num_passes, integrate) by name."""
PLAIN = {"unet": 1.0, "unet_twice": 2.0}
"""Parameters by name, as a multiple of those of "t3"."""
KINDS = (*PASSES, *PLAIN)
DEAREST, BASELINE = "t3_int", "unet"
SHOWN = ("iou", "dice", "aji", "pq")


class PlainUNet(BiONet):
    """A U-Net: levels of the encoder see the level above and nothing else."""

    def _run(self, x, backward, number, train):
        h, forward = x, []
        for join, keep, down in self.encoder:
            h = keep(join(h, number, train), number, train)
            forward.append(h)
            h = max_pool(down(h, number, train))
        for unit in self.middle:
            h = unit(h, number, train)
        for join, keep, up in self.decoder:
            h = join(jnp.concatenate([h, forward.pop()], axis=-1), number, train)
            h = up(keep(h, number, train), number, train)
        return h, backward


class Training(NamedTuple):
    """What all trainings of a table share."""

    num_steps: int
    learning_rate: float


def make_config(data: str, seed: int, learning_rate: float) -> ConfigDict:
    """The settings that all networks share on a set of images."""
    config = nuclei.get_config()
    config.seed, config.learning_rate = seed, learning_rate
    config.layout = config.test_layout = data
    if data != "generated":
        config.num_images = config.test_num_images = 0
    return config


def make_network(kind: str) -> BiONet:
    """A network by name, of the widths that the config of the nuclei has."""
    config = nuclei.get_config()
    if kind in PASSES:
        config.num_passes, config.integrate = PASSES[kind]
        return bionet.build_network(config)
    aim = PLAIN[kind] * num_parameters(make_network("t3"))
    multipliers = np.arange(0.5, 2.5, 1 / 64) * config.multiplier
    nets = [PlainUNet(official_widths(m, config.num_levels)) for m in multipliers]
    net = min(nets, key=lambda net: abs(num_parameters(net) - aim))
    return net.clone(dialect=make_network("t3").dialect)


def num_parameters(model: BiONet) -> int:
    """Of the weights alone, by their shapes."""
    side = 2 ** (model.num_levels + 1)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, side, side, 3)))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


def make_step(config: ConfigDict, network: BiONet) -> Callable:
    """Builds step(state, batch, rng) -> (state, metrics), not yet compiled."""
    model = with_network(config, network)
    return make_train_step(model.loss, model.tx, ema_rate=0.0)


def with_network(config: ConfigDict, network: BiONet) -> bionet.Segmentation:
    """The model of a config, with another network."""
    return dataclasses.replace(bionet.make_model(config), network=network)


def first_state(config: ConfigDict, model: BiONet) -> TrainState:
    """Before any update."""
    image = jnp.zeros((1, config.side, config.side, 3))
    variables = dict(jax.jit(model.init)(jax.random.key(config.seed), image))
    return TrainState.create(variables.pop("params"), variables, bionet.optimizer(config))


def step_flops(config: ConfigDict, kind: str) -> float:
    """Floating-point operations of a training step, counted without compiling it."""
    model = make_network(kind)
    state = jax.eval_shape(lambda: first_state(config, model))
    shape = (config.batch_size, config.side, config.side)
    batch = {
        name: jax.ShapeDtypeStruct((*shape, channels), jnp.float32)
        for name, channels in (("image", 3), ("mask", 1))
    }
    lowered = jax.jit(make_step(config, model)).lower(state, batch, jax.random.key(0))
    return float(lowered.cost_analysis()["flops"])


def train_piece(data: str, kind: str, seed: int, training: Training, picture: pathlib.Path) -> dict:
    """Trains once; scores after equal steps and after equal work, image by image."""
    config, model = make_config(data, seed, training.learning_rate), make_network(kind)
    flops, most = step_flops(config, kind), step_flops(config, DEAREST)
    stops = {"steps": training.num_steps, "work": round(training.num_steps * most / flops)}
    step = jax.jit(make_step(config, model), donate_argnums=0)
    source, state = bionet.training_source(config), first_state(config, model)
    rng, test = jax.random.key(seed), bionet.annotated_images(config, "test")
    predict = jax.jit(lambda variables, x: jax.nn.sigmoid(model.apply(variables, x)))
    carry, started, scores = source.init(0, rng), time.perf_counter(), {}
    for number in range(1, max(stops.values()) + 1):
        carry, batch = source.next(carry, None, rng)
        state, metrics = step(state, batch, rng)
        jax.block_until_ready(metrics)
        for name in (name for name, stop in stops.items() if stop == number):
            variables = {"params": state.params, **state.model_state}
            found = [probabilities(config, predict, variables, image) for image in test]
            scores[name] = score(config, test, found)
    draw(config, test, found, picture)
    return {
        "settings": training._asdict(), "parameters": num_parameters(model),
        "flops": flops, "stops": stops, "loss": float(metrics["loss"]),
        "seconds": time.perf_counter() - started, "scores": scores,
    }  # fmt: skip


def probabilities(
    config: ConfigDict, predict: Callable, variables: Any, image: AnnotatedImage
) -> np.ndarray:
    """Of one test image (h, w), whatever its size."""
    return sliding_window(
        lambda x: predict(variables, x),
        image.image,
        tile=config.tile,
        overlap=config.overlap,
        margin=config.margin,
        multiple=2 ** (config.num_levels + 1),
        batch_size=config.tile_batch,
    )[..., 0]


def score(config: ConfigDict, test: tuple[AnnotatedImage, ...], found: list) -> dict[str, list]:
    """The scores of each image, by name."""
    options = {"threshold": config.threshold, "min_distance": config.min_distance}
    rows = [image_scores(t.instances, p, **options) for t, p in zip(test, found, strict=True)]
    return {name: [row[name] for row in rows] for name in rows[0]}


def draw(config: ConfigDict, test: tuple, found: list, picture: pathlib.Path) -> None:
    """Outlines on the first test images: green was missed, red was made up, yellow agrees."""
    drawn = [
        overlay(
            t.image, separate(p > config.threshold, min_distance=config.min_distance), t.instances
        )
        for t, p in zip(test[:4], found[:4], strict=True)
    ]
    save_png(picture, image_grid(np.stack(drawn) / 255, scale=2))


def table(pieces: dict[tuple[str, str, int], dict], data: str) -> str:
    """What is there of a set of images, a row for each network."""
    of = lambda kind: {s: piece for (d, k, s), piece in pieces.items() if (d, k) == (data, kind)}
    heads = [f"{name}, equal {what}" for what in ("steps", "work") for name in SHOWN]
    heads = ["parameters", "GFLOP a step", "seeds", "updates, equal work", *heads]
    lines = [f"| {data} | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for kind in (kind for kind in KINDS if of(kind)):
        runs = of(kind)
        any_run = next(iter(runs.values()))
        cells = [f"{any_run['parameters']:,}", f"{any_run['flops'] / 1e9:.2f}", str(len(runs))]
        cells.append(str(any_run["stops"]["work"]))
        for what, name in itertools.product(("steps", "work"), SHOWN):
            mean = {s: float(np.mean(run["scores"][what][name])) for s, run in runs.items()}
            base = {s: np.mean(run["scores"][what][name]) for s, run in of(BASELINE).items()}
            gains = [float(mean[s] - base[s]) for s in mean if s in base]
            gain = f" ({plus_minus(gains, '+.3f')})" if gains and kind != BASELINE else ""
            cells.append(plus_minus(list(mean.values())) + gain)
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def read_pieces(out: pathlib.Path, training: Training) -> dict[tuple[str, str, int], dict]:
    """Finished pieces of these settings; those of others are refused, not mixed in."""
    pieces = {}
    for path in sorted(out.glob("*.json")):
        data, kind, seed = path.stem.rsplit("-", 2)
        pieces[data, kind, int(seed)] = piece = json.loads(path.read_text())
        if piece["settings"] != training._asdict():
            raise SystemExit(
                f"{path} is of {piece['settings']}, not {training._asdict()}: choose another --out "
                "or the same settings"
            )
    return pieces


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/bionet_quality"))
    parser.add_argument("--data", default="generated,ihc,retina")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--learning_rate", type=float, default=nuclei.get_config().learning_rate)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pieces", type=int, default=1)
    arguments = parser.parse_args()
    out, sets, kinds = arguments.out, arguments.data.split(","), arguments.kinds.split(",")
    if not set(sets) <= set(DATA) or not set(kinds) <= set(KINDS):
        parser.error(f"--data are of {', '.join(DATA)}, --kinds of {', '.join(KINDS)}")
    out.mkdir(parents=True, exist_ok=True)
    training = Training(arguments.steps, arguments.learning_rate)
    pieces = read_pieces(out, training)
    # Seed by seed, so that a run that is cut short has compared all networks.
    wanted = [(d, k, s) for s, d, k in itertools.product(range(arguments.seeds), sets, kinds)]
    for piece in [piece for piece in wanted if piece not in pieces][: arguments.pieces]:
        name = "-".join(map(str, piece))
        pieces[piece] = train_piece(*piece, training, out / f"{name}.png")
        with written_whole(out / f"{name}.json") as file:
            file.write(json.dumps(pieces[piece]).encode())
        print(f"{name}: {pieces[piece]['seconds']:.0f} s", flush=True)
    for data in sets:
        if any(d == data for d, _, _ in pieces):
            print(table(pieces, data), flush=True)
    print(f"{sum(piece in pieces for piece in wanted)} of {len(wanted)} pieces are there")


if __name__ == "__main__":
    main()
