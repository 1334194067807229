# SPDX-License-Identifier: Apache-2.0
"""How good is NCSNv2 on clothes, beside a score SDE that costs as much to train?

    python -m benchmarks.clothes_quality --runs=runs
    python -m benchmarks.clothes_quality --run=runs/denoising_clothes [--picture=file.png]

Reads three seeds of each, whose commands docs/results.md has: Fashion-MNIST at 14 x 14 pixels. A
table of bits/dim of the first test images, and of samples, judged as `benchmarks/digits_quality.py`
judges digits, by the last hidden layer of a classifier that is fitted to 10,000 training images.
The chains of both models make the same number of evaluations; the ODE chooses its own. Each seed is
measured once and kept in `--runs`.

With `--run`, samples of that run alone, by its own sampler in as many evaluations: at its size, and
shrunk to 14 x 14 as the data are, in the features of the table of the others.
"""

import argparse
import functools
import json
import pathlib

import numpy as np
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits

import launch  # noqa: F401  (XLA's flags and the allocator's settings)
from benchmarks.digits_quality import (
    SAMPLE_HEAD,
    Judge,
    draw,
    judge,
    measure_bits,
    plus_minus,
    sample_row,
)
from scorejax import runs, systems
from scorejax.data.transforms import resize
from scorejax.data.view import ImageView
from scorejax.evaluate.digits_features import hidden_features
from scorejax.evaluate.pictures import image_grid, save_png
from scorejax.files import written_whole

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
def of_clothes(side: int = SIDE) -> Judge:
    """Training and test images of side x side pixels, and a classifier of them."""
    view = ImageView("fashion_mnist", side)
    train, test = view.stored("train", NUM_TRAIN), view.stored("test", NUM_TEST)
    rows = lambda images: images.reshape(len(images), -1)
    model = MLPClassifier((128, 64), alpha=0.01, early_stopping=True, random_state=0)
    with threadpool_limits(1):
        model.fit(rows(train.image) / 255, train.label)
    print(f"the classifier is right on {model.score(rows(test.image) / 255, test.label):.3f}")

    look = lambda images: hidden_features(model, rows(levels(images) / 255))
    return Judge(train, test, 255, look, levels)


def levels(images: np.ndarray) -> np.ndarray:
    """Grey levels 0 .. 255 of images in [0, 1]."""
    return np.floor(256 * np.clip(images, 0, 1 - 1e-6)).astype(np.int64)


def shrunk(images: np.ndarray) -> np.ndarray:
    """Images in [0, 1] at SIDE x SIDE pixels, by the rule of the data."""
    small = [resize(image, SIDE, SIDE) for image in levels(images).astype(np.uint8)]
    return np.stack(small) / 255


def report_run(workdir: pathlib.Path, picture: str) -> None:
    """Prints rows of samples of one run, and of as many training images."""
    config, variables, _ = runs.open(workdir)
    sampler = systems.load_model(config).sampler("", nfe=NFE)
    drawn = draw(sampler, variables, NUM, "drawn")
    samples, nfe = drawn["drawn/image"], drawn["drawn/nfe"]
    if picture:
        save_png(picture, image_grid(samples[:100]))
    print(SAMPLE_HEAD)
    for side, images in {config.image_size: samples, SIDE: shrunk(samples)}.items():
        by = of_clothes(side)
        rows = {
            workdir.name: (images, nfe),
            "training images": (by.train.image[:NUM] / 255, nfe[:1] * 0),
        }
        for name, (judged, calls) in rows.items():
            with threadpool_limits(1):
                print(
                    sample_row(f"{name}, {side} × {side}", [judge(judged, calls, by)]), flush=True
                )


def measure(workdir: pathlib.Path, kind: str) -> dict:
    """Bits/dim and sample quality of a run, from its file if they are there."""
    path = workdir / "quality.json"
    if path.exists():
        return json.loads(path.read_text())
    config, variables, _ = runs.open(workdir)
    model = systems.load_model(config)
    bits = measure_bits(config, variables, NUM_BITS)
    found = {"bits_per_dim": float(np.nanmean(bits))}
    for label, (name, options) in METHODS[kind].items():
        drawn = draw(model.sampler(name, **options), variables, NUM, name)
        with threadpool_limits(1):
            found[label] = judge(drawn[f"{name}/image"], drawn[f"{name}/nfe"], of_clothes())
    with written_whole(path) as file:
        file.write(json.dumps(found).encode())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs"))
    parser.add_argument("--run", type=pathlib.Path, help="samples of this run alone")
    parser.add_argument("--picture", default="", help="of 100 samples of --run")
    options = parser.parse_args()
    if options.run:
        report_run(options.run, options.picture)
        return
    runs = options.runs
    found = {
        kind: [measure(runs / f"{kind}_clothes_seed{seed}", kind) for seed in range(3)]
        for kind in METHODS
    }
    for kind, measured in found.items():
        print(f"{kind}: bits/dim {plus_minus([run['bits_per_dim'] for run in measured])}")
    print(SAMPLE_HEAD)
    for kind, measured in found.items():
        for label in METHODS[kind]:
            print(sample_row(f"{kind}, {label}", [run[label] for run in measured]))
    by = of_clothes()
    with threadpool_limits(1):
        floor = judge(by.train.image[:NUM] / 255, np.zeros(1), by)
    print(sample_row("training images (floor)", [floor]))


if __name__ == "__main__":
    main()
