# SPDX-License-Identifier: Apache-2.0
"""Images of a trained model that are like given ones: in what was measured, or halfway between."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from scorejax import inverse, latent
from scorejax import linear_operators as operators
from scorejax.choices import choose
from scorejax.linear_operators import LinearOperator
from scorejax.score_model import ScoreModel
from scorejax.score_model.sampling import chain_options
from scorejax.typing import Array, Shape, Variables

BLUR_STD, WEAKEST = 1.0, 0.05
"""The Gaussian that blurs, in pixels, and the share below which a frequency is lost in it."""


def measurement(
    task: str, shape: Shape, *, mask: np.ndarray | None = None, factor: int = 2, seed: int = 0
) -> LinearOperator:
    """What is seen of images (h, w, c): "inpaint", "colorize", "super_resolution", "deblur" or
    "fourier".

    `mask` (h, w) is 1 where inpainting is given the image, the upper half by default; `factor` is
    the side of the blocks that super-resolution starts from; "fourier" keeps the lowest quarter of
    the frequencies each way and a third of the others, which `seed` chooses.

    Raises: ValueError for an unknown task, or one that such images do not allow.
    """
    return choose("task", task, TASKS)(shape, mask=mask, factor=factor, seed=seed)


Apply = Callable[[Variables, dict[str, Array]], dict[str, Array]]
"""(variables, rows) -> rows."""


def completion(model: ScoreModel, operator: LinearOperator, *, num_steps: int = 0) -> Apply:
    """complete(variables, {"image": as the model sees it, "rng": (b,)}) -> {"measured", "image"}.

    What was seen of each image (b, h, w, c), and one that agrees with it, both in [0, 1] and not
    clipped; by the model's predictor and corrector, in as many steps as its options say unless
    num_steps is more than 0. The first of the keys decides.

    Raises: ValueError for a chain that cannot be.
    """
    if num_steps:
        options = {**model.options, "num_sampling_steps": num_steps}
        model = dataclasses.replace(model, options=options)
    chain = chain_options(model) | {"denoise": model.options["denoise"]}

    def complete(variables: Variables, rows: dict[str, Array]) -> dict[str, Array]:
        x, rng = rows["image"], rows["rng"][0]
        y, score_fn = operator.forward(x), model.score(variables)
        drawn = inverse.sample_given(rng, score_fn, x.shape, operator=operator, y=y, **chain)
        return {
            "measured": model.images.to_unit(operator.pinv(y)),
            "image": model.images.to_unit(drawn.x),
        }

    return complete


def interpolation(model: ScoreModel, num: int) -> Apply:
    """path(variables, {"start", "end": (b, h, w, c)}) -> {"image": (b, num, h, w, c) in [0, 1]}."""
    solver = model.tolerances

    def path(variables: Variables, rows: dict[str, Array]) -> dict[str, Array]:
        ends = rows["start"], rows["end"]
        x = latent.interpolate(model.score(variables), *ends, num, sde=model.sde, **solver)
        return {"image": model.images.to_unit(jnp.moveaxis(x, 0, 1))}

    return path


def _inpaint(shape: Shape, *, mask: np.ndarray | None, **_: int) -> LinearOperator:
    if mask is None:
        mask = np.arange(shape[0])[:, None] < shape[0] // 2 + np.zeros(shape[1])
    if mask.shape != shape[:2]:
        raise ValueError(f"mask needs the images' {shape[:2]} pixels; got {mask.shape}")
    return operators.mask_operator(np.asarray(mask, np.float32)[..., None])


def _colorize(shape: Shape, **_: Any) -> LinearOperator:
    if shape[-1] != 3:
        raise ValueError(f"task 'colorize' needs a model of colour images; its shape is {shape}")
    return operators.grey_operator()


def _super_resolution(shape: Shape, *, factor: int, **_: Any) -> LinearOperator:
    if factor < 2 or shape[0] % factor or shape[1] % factor:
        raise ValueError(f"factor needs to be 2 or more and to divide {shape[:2]}; got {factor}")
    return operators.average_pool_operator(factor)


def _deblur(shape: Shape, **_: Any) -> LinearOperator:
    rows, columns = (np.exp(-((np.fft.fftfreq(n) * n / BLUR_STD) ** 2) / 2) for n in shape[:2])
    kernel = np.outer(rows / rows.sum(), columns / columns.sum())
    return operators.blur_operator(kernel, cutoff=WEAKEST)


def _fourier(shape: Shape, *, seed: int, **_: Any) -> LinearOperator:
    rows, columns = (np.abs(np.fft.fftfreq(n) * n) <= n / 8 for n in shape[:2])
    chosen = np.random.default_rng(seed).random(shape[:2]) < 1 / 3
    return operators.fourier_operator(np.outer(rows, columns) | chosen)


TASKS: dict[str, Callable[..., LinearOperator]] = {
    "inpaint": _inpaint,
    "colorize": _colorize,
    "super_resolution": _super_resolution,
    "deblur": _deblur,
    "fourier": _fourier,
}
