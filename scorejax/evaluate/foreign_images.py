# SPDX-License-Identifier: Apache-2.0
"""Bits/dim of held-out digits beside those of images that are no digits."""

import importlib.resources
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8

from scorejax.data.view import ImageView
from scorejax.evaluate import pictures
from scorejax.evaluate.chunks import measure_in_chunks
from scorejax.typing import Array


def clothes() -> UInt8[np.ndarray, "n 8 8 1"]:
    """128 pieces of clothing with the grey levels 0 to 16 of digits, see data/samples."""
    samples = importlib.resources.files("scorejax.data") / "samples" / "fashion_mnist_8x8.npz"
    with samples.open("rb") as file:
        return np.load(file)["image"]


def digits_beside_others(
    measure: Callable[[Any, dict[str, Array]], dict[str, Array]],
    variables: Any,
    data: ImageView,
    num: int,
) -> dict[str, Float[np.ndarray, "n"]]:
    """Bits/dim of "test digits", "clothes" and "noise", at most `num` images 8 x 8 of each.

    `measure` is the likelihood of a model of `data`, see `score_model.evaluation.likelihood`.
    """
    rng = np.random.default_rng(0)
    noise = rng.integers(0, data.levels, (num, *data.shape), np.uint8)
    kinds = {"test digits": data.stored("test").image, "clothes": clothes(), "noise": noise}
    num = min(num, *map(len, kinds.values()))
    x = data.dequantized(rng, np.concatenate([images[:num] for images in kinds.values()]))
    rows = measure_in_chunks(jax.random.key(0), measure, variables, x, batch_size=num)
    return dict(zip(kinds, np.split(rows["bits_per_dim"], len(kinds)), strict=True))


def save_histogram(path: str | os.PathLike, bits: dict[str, Float[np.ndarray, "n"]]) -> None:
    """Draws the bits/dim of each kind of images."""
    picture = pictures.histogram_picture(bits, xlabel="bits/dim: lower is likelier")
    pictures.save_png(path, picture)


def table(bits: dict[str, Float[np.ndarray, "n"]]) -> str:
    """A line for each kind of images: mean bits/dim and its standard error."""
    error = lambda values: values.std(ddof=1) / len(values) ** 0.5
    return "\n".join(
        f"  {kind:12s} {values.mean():6.2f} ± {error(values):.2f}" for kind, values in bits.items()
    )
