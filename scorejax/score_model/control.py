# SPDX-License-Identifier: Apache-2.0
"""Controlled sampling: completions of measured images, interpolations, samples of a class."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from scorejax import guidance as guidance_by
from scorejax import inverse, latent
from scorejax import linear_operators as operators
from scorejax.choices import choose
from scorejax.data.view import DataView
from scorejax.linear_operators import LinearOperator
from scorejax.score_model import sampling
from scorejax.sdes import SDE
from scorejax.typing import Array, ScoreFn, Shape, Variables

if TYPE_CHECKING:
    from scorejax.capabilities import Guides
    from scorejax.score_model import ScoreModel

BLUR_STD, WEAKEST = 1.0, 0.05
"""The Gaussian that blurs, in pixels, and the share below which a frequency is lost in it."""


def measurement(
    task: str, shape: Shape, *, mask: np.ndarray | None = None, factor: int = 2, seed: int = 0
) -> LinearOperator:
    """The operator that measures images (h, w, c), by name.

    The names are "inpaint", "colorize", "super_resolution", "deblur" and "fourier".

    `mask` (h, w) is 1 where inpainting is given the image, the upper half by default; `factor` is
    the side of the blocks that super-resolution starts from; "fourier" keeps the lowest quarter of
    the frequencies each way and a third of the others, which `seed` chooses.

    Raises: ValueError for an unknown task, or one that such images do not allow.
    """
    return choose("task", task, TASKS)(shape, mask=mask, factor=factor, seed=seed)


Apply = Callable[[Variables, dict[str, Array]], dict[str, Array]]
"""(variables, rows) -> rows."""
MakeCompletion = Callable[["ScoreModel", LinearOperator, int], Apply]


def chain_completion(model: "ScoreModel", operator: LinearOperator, num_steps: int = 0) -> Apply:
    """complete(variables, {"image": as the model sees it, "rng": (b,)}) -> {"measured", "image"}.

    Returns the measurement of each image (b, h, w, c), mapped back to an image, and a completion
    that agrees with it, both in [0, 1] and not clipped. Uses the model's predictor and corrector in
    `num_steps` steps, 0 for the number in its options. A completion depends on its own
    key only, unless the corrector is batch_langevin.

    Raises: ValueError if the SDE has no such chain, or num_steps is too small.
    """
    if num_steps:
        chain = dataclasses.replace(model.chain, num_sampling_steps=num_steps)
        model = dataclasses.replace(model, chain=chain)
    arguments = sampling.chain_arguments(model)

    def complete(variables: Variables, rows: dict[str, Array]) -> dict[str, Array]:
        x, score_fn = rows[model.data.field], model.chain_score(variables)
        y = operator.forward(x)
        drawn = inverse.sample_given(
            rows["rng"], score_fn, x.shape, operator=operator, y=y, **arguments
        )
        return completed(model.data, operator, y, drawn.x)

    return complete


def completed(data: DataView, operator: LinearOperator, y: Array, x: Array) -> dict[str, Array]:
    """Packs measurements y and completions x, in the model's units, as completions return them."""
    return {
        "measured": data.to_data(operator.pinv(y)),
        data.field: data.to_data(x),
    }


def interpolation(model: "ScoreModel", num: int) -> Apply:
    """path(variables, {"start", "end": (b, h, w, c)}) -> {"image": (b, num, h, w, c) in [0, 1]}."""
    solver = model.solver_options()

    def path(variables: Variables, rows: dict[str, Array]) -> dict[str, Array]:
        ends = rows["start"], rows["end"]
        x = latent.interpolate(model.score(variables), *ends, num, sde=model.sde, **solver)
        return {model.data.field: model.data.to_data(jnp.moveaxis(x, 0, 1))}

    return path


def class_condition(
    model: "ScoreModel", guide: "Guides", label: int, guidance: float = 1.0
) -> sampling.Condition:
    """The condition of `sampling.sampler` that guides to a class; its argument is the variables.

    `guidance` 1 is Bayes' rule.
    Raises: ValueError unless the classifier sees the model's images and knows the label.
    """
    for key in ("dataset", "image_size", "centered"):
        ours, theirs = getattr(model.data, key), getattr(guide.data, key)
        if theirs != ours:
            raise ValueError(f"the classifier has {key}={theirs!r}, the model has {ours!r}")
    logits, num_classes = guide.classifier(), guide.num_classes
    if not 0 <= label < num_classes:
        raise ValueError(f"label needs to be below {num_classes}; got {label}")

    def condition(score_fn: ScoreFn, sde: SDE, num: int, variables: Variables) -> ScoreFn:
        classify = lambda x, t: logits(variables, sde, x, t)
        return guidance_by.class_guided(score_fn, classify, jnp.full(num, label), guidance=guidance)

    return condition


def _inpaint(shape: Shape, *, mask: np.ndarray | None, **_: int) -> LinearOperator:
    if mask is None:
        mask = np.arange(shape[0])[:, None] < shape[0] // 2 + np.zeros(shape[1])
    if mask.shape != shape[:2]:
        raise ValueError(f"mask needs the images' {shape[:2]} pixels; got {mask.shape}")
    values = np.unique(mask)
    if not np.isin(values, (0, 1)).all():
        raise ValueError(f"mask needs values of 0 and 1; got {', '.join(map(str, values[:4]))}")
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
