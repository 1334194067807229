# SPDX-License-Identifier: Apache-2.0
"""Are samples of handwritten digits copies of training images?

    python -m launch.sample --workdir=runs/ncsnv2_digits_seed0 --num=300 --out=runs/digits
    python -m benchmarks.digits_memorization runs/digits.npz

For samples, and for as many held-out images: the median distance to the nearest training image, the
ratio test (nearest against second nearest) and the duplicate rate, both with 95 % intervals. An
image counts as a duplicate within the distance that one in a hundred held-out images has to its
nearest training image. In pixels, levels 0 to 16, and in the features of a classifier of digits.
"""

import argparse

import numpy as np
from threadpoolctl import threadpool_limits

from scorejax.data import images
from scorejax.evaluate import memorization
from scorejax.evaluate.digits_features import digits_features, quantized

CHANCE = 0.01


def pixels(pictures: np.ndarray) -> np.ndarray:
    return quantized(pictures).astype(np.float64)


def features(pictures: np.ndarray) -> np.ndarray:
    return digits_features(pictures).features


def show(name: str, nearest: memorization.Nearest, radius: float) -> None:
    """Prints a row."""
    rates = (
        memorization.ratio_test(nearest),
        memorization.duplicate_rate(nearest, radius=radius),
    )
    cells = [f"{rate.rate:.4f} ({rate.lower:.4f} to {rate.upper:.4f})" for rate in rates]
    median = np.median(nearest.distance[:, 0])
    print(f"| {name} | {len(nearest.distance)} | {median:.2f} | {cells[0]} | {cells[1]} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("samples", nargs="+", help="files of launch.sample")
    arguments = parser.parse_args()
    train, test = (images.load("digits", split).image / 16 for split in ("train", "test"))
    print("| images, in | number | median distance | ratio test | duplicate rate |")
    print("|---|---|---|---|---|")
    with threadpool_limits(1):
        for view in (pixels, features):
            find = lambda pictures: memorization.nearest_training(view(pictures), view(train), k=2)  # noqa: B023
            held_out = find(test)
            radius = float(np.quantile(held_out.distance[:, 0], CHANCE))
            show(f"held-out, {view.__name__}", held_out, radius)
            for path in arguments.samples:
                with np.load(path) as file:
                    show(f"{path}, {view.__name__}", find(np.clip(file["images"], 0, 1)), radius)


if __name__ == "__main__":
    main()
