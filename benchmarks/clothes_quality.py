# SPDX-License-Identifier: Apache-2.0
"""How good is NCSNv2 on clothes, beside a score SDE that costs as much to train?

    python -m benchmarks.clothes_quality --runs=runs

Reads three seeds of each, whose commands docs/results.md has: Fashion-MNIST at 14 x 14 pixels. A
table of bits/dim of the first test images, and of samples, judged as `benchmarks/digits_quality.py`
judges digits, by the last hidden layer of a classifier that is fitted to 10,000 training images.
The chains of both models make the same number of evaluations; the ODE chooses its own. Each seed is
measured once and kept in `--runs`.
"""

import argparse
import functools
import json
import pathlib

import numpy as np
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits

from benchmarks.digits_quality import SAMPLE_COLUMNS, Judge, draw, interval, judge
from launch import command
from scorejax import systems
from scorejax.data.view import ImageView
from scorejax.evaluate.atomic import written_whole
from scorejax.evaluate.digits_features import DigitsFeatures

SIDE, NUM, NUM_BITS, NUM_TRAIN, NUM_TEST = 14, 400, 64, 10_000, 2000
NFE = 231
"""Of the annealed Langevin chain: five steps at each of 46 levels, and the last denoising step."""
METHODS = {
    "ncsnv2": {"annealed Langevin": ("ald", {}), "predictor-corrector": ("pc", {"nfe": NFE})},
    "ve": {
        "predictor-corrector": ("pc", {"nfe": NFE}),
        "predictor-corrector, 72 evaluations": ("pc", {"nfe": 72}),
        "ODE": ("ode", {}),
    },
}
"""Of each model: label -> the sampler and its options."""


@functools.cache
def of_clothes() -> Judge:
    """Training and test images, and a classifier of them."""
    view = ImageView("fashion_mnist", SIDE)
    train, test = view.stored("train", NUM_TRAIN), view.stored("test", NUM_TEST)
    rows = lambda images: images.reshape(len(images), -1)
    model = MLPClassifier((128, 64), alpha=0.01, early_stopping=True, random_state=0)
    with threadpool_limits(1):
        model.fit(rows(train.image) / 255, train.label)
    print(f"the classifier is right on {model.score(rows(test.image) / 255, test.label):.3f}")

    def look(images: np.ndarray) -> DigitsFeatures:
        x = rows(np.floor(256 * np.clip(images, 0, 1 - 1e-6)) / 255)
        label = model.predict(x)
        for weight, bias in zip(model.coefs_[:-1], model.intercepts_[:-1], strict=True):
            x = np.maximum(x @ weight + bias, 0)
        return DigitsFeatures(x, label)

    levels = lambda images: np.floor(256 * np.clip(images, 0, 1 - 1e-6)).astype(np.int64)
    return Judge(train, test, 255, look, levels)


def measure(workdir: pathlib.Path, kind: str) -> dict:
    """Bits/dim and sample quality of a run, from its file if they are there."""
    path = workdir / "quality.json"
    if path.exists():
        return json.loads(path.read_text())
    config, restored = command.saved_config(str(workdir)), command.restore(str(workdir), None)
    variables = restored.params, restored.model_state
    make = {name: systems.capability(config, name) for name in ("sampler", "likelihood")}
    found = {"bits_per_dim": bits_per_dim(config, make["likelihood"](config), variables)}
    for label, (name, options) in METHODS[kind].items():
        drawn = draw(make["sampler"](config, name, **options), variables, NUM, name)
        with threadpool_limits(1):
            found[label] = judge(drawn[f"{name}/image"], drawn[f"{name}/nfe"], of_clothes())
    with written_whole(path) as file:
        file.write(json.dumps(found).encode())
    return found


def bits_per_dim(config, likelihood, variables) -> float:
    """Of the first test images, one dequantisation draw each."""
    view = systems.capability(config, "image_view")(config)
    x = view.dequantized(np.random.default_rng(0), view.stored("test", NUM_BITS).image)
    rows = {"image": x, "rng": command.keys(0, len(x))}
    rows = command.in_chunks(likelihood, variables, rows, NUM_BITS, "images")
    return float(np.nanmean(rows["bits_per_dim"]))


def row(label: str, columns: dict[str, list[float]]) -> str:
    """A line of the table: means and half widths over the seeds."""
    cells = [interval(columns[column]) for column in SAMPLE_COLUMNS]
    texts = [f"{mean:.3f}" + ("" if np.isnan(half) else f" ± {half:.3f}") for mean, half in cells]
    return f"| {label} | " + " | ".join(texts) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs"))
    runs = parser.parse_args().runs
    found = {
        kind: [measure(runs / f"{kind}_clothes_seed{seed}", kind) for seed in range(3)]
        for kind in METHODS
    }
    for kind, measured in found.items():
        mean, half = interval([run["bits_per_dim"] for run in measured])
        print(f"{kind}: bits/dim {mean:.3f} ± {half:.3f}")
    print("| samples | " + " | ".join(SAMPLE_COLUMNS) + " |")
    print("|---" * (len(SAMPLE_COLUMNS) + 1) + "|")
    for kind, measured in found.items():
        for label in METHODS[kind]:
            columns = {c: [run[label][c] for run in measured] for c in SAMPLE_COLUMNS}
            print(row(f"{kind}, {label}", columns))
    by = of_clothes()
    with threadpool_limits(1):
        floor = judge(by.train.image[:NUM] / 255, np.zeros(1), by)
    print(row("training images (floor)", {c: [floor[c]] for c in SAMPLE_COLUMNS}))


if __name__ == "__main__":
    main()
