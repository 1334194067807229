# SPDX-License-Identifier: Apache-2.0
"""Capabilities of a model, one protocol each: the commands ask a model for what they need.

A system's `make_model(config)` returns an object with the methods of those that it has.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import flax.linen as nn
import numpy as np
import optax

from scorejax.choices import require_known
from scorejax.evaluate.progress import Metrics
from scorejax.linear_operators import LinearOperator
from scorejax.typing import Array, PRNGKeyArray, Variables

Draw = Callable[[Variables, PRNGKeyArray], dict[str, Array]]
"""(variables, keys (b,)) -> {"image": (b, h, w, c) in [0, 1], not clipped, "nfe": (b,)}."""


@runtime_checkable
class DrawsSamples(Protocol):
    """launch.sample: draw(variables, keys (b,)) -> {"image" in [0, 1], or "x", and "nfe"}."""

    def sampler(self, name: str = "", *, num_steps: int = 0, nfe: int = 0) -> Callable: ...


@runtime_checkable
class HasInputs(Protocol):
    """Training and launch.evaluate: the arrays of files that a model needs, to be those of a run.

    `inputs()` are arrays by name, and `origins()` the config keys of the files and their paths.
    """

    def inputs(self) -> dict[str, Array]: ...

    def origins(self) -> dict[str, str]: ...


@runtime_checkable
class MeasuresDensity(Protocol):
    """launch.likelihood: measure(variables, {"image" or "x", "rng"}) -> {"log_prob" (b,), ...}."""

    def likelihood(self, *, exact: bool = False) -> Callable: ...


@runtime_checkable
class Normalizes(Protocol):
    """launch.likelihood of an energy: (variables, rng) -> bounds of log Z, a `Sandwich`.

    The log_prob of `likelihood` lacks -log Z. `caveats` are sentences for its readers.
    """

    def normalizer(
        self, *, num_walks: int, num_temperatures: int, num_chain_steps: int, chunk: int | None
    ) -> Callable: ...

    def caveats(self) -> list[str]: ...


@runtime_checkable
class Completes(Protocol):
    """launch.complete: complete(variables, {"image", "rng"}) -> {"measured", "image"}."""

    def completion(self, operator: LinearOperator, *, num_steps: int = 0) -> Callable: ...


@runtime_checkable
class Interpolates(Protocol):
    """launch.interpolate: path(variables, {"start", "end"}) -> {"image": (b, num, h, w, c)}."""

    def interpolation(self, num: int) -> Callable: ...


@runtime_checkable
class InterpolatesNoise(Protocol):
    """launch.interpolate without images: draw(variables, {"rng": (b,)}) -> {"image": as above}."""

    def noise_interpolation(self, num: int) -> Callable: ...


@runtime_checkable
class Guides(Protocol):
    """launch.sample --classifier: logits(variables, sde, x_t, t) -> (b, num_classes).

    The model also has `data`, the images that it was trained on, and `num_classes`.
    """

    def classifier(self) -> Callable: ...


@runtime_checkable
class Segments(Protocol):
    """launch.segment: segment(variables, image (h, w, c)) -> probability, instances and classes.

    `load_picture(path, max_pixels=)` reads an image as `segment` takes it. Classes are None where
    there is one.
    """

    def segmenter(self) -> Callable: ...

    def load_picture(self, path: str | os.PathLike, *, max_pixels: int = ...) -> np.ndarray: ...


@runtime_checkable
class RanksDocuments(Protocol):
    """launch.match: rank(variables, resumes, jobs) -> a table of the best for each, by side.

    `of_kept` is the model with what a run keeps, see `runs.kept`, in the place of its data.
    """

    def of_kept(self, arrays: Mapping[str, Array]) -> "RanksDocuments": ...

    def ranker(self, *, top: int, num_candidates: int) -> Callable: ...


@runtime_checkable
class IsEvaluated(Protocol):
    """launch.evaluate --workdir: metrics by name."""

    def metrics(self) -> Metrics: ...


@runtime_checkable
class DrawsTraining(Protocol):
    """launch.evaluate --workdir: pictures by name of a run's records, its metrics by step."""

    def training_pictures(self, records: Sequence[Mapping]) -> dict[str, Any]: ...


@runtime_checkable
class DescribesData(Protocol):
    """launch.evaluate --config: metrics of the data set alone, by name."""

    def data_metrics(self) -> Metrics: ...


@runtime_checkable
class TakesWeights(Protocol):
    """launch.import_weights: the network, its optimiser, and its number of input channels."""

    def import_target(self) -> tuple[nn.Module, optax.GradientTransformation, int]: ...


ACTIONS: dict[type, str] = {
    DrawsSamples: "draw samples",
    MeasuresDensity: "measure likelihoods",
    Normalizes: "bound a normaliser",
    Completes: "complete partly measured images",
    Interpolates: "interpolate between images",
    InterpolatesNoise: "interpolate between samples",
    Guides: "guide samples to a class",
    Segments: "segment pictures",
    RanksDocuments: "rank documents",
    IsEvaluated: "be evaluated",
    DescribesData: "describe data before training",
    TakesWeights: "take published weights",
}


COMMANDS: dict[type, str] = {
    DrawsSamples: "sample --workdir={workdir} --num=64",
    Segments: "segment --workdir={workdir} --images=FOLDER",
    RanksDocuments: "match --workdir={workdir} --resumes=FILE --jobs=FILE",
    Guides: "sample --workdir=OTHER --classifier={workdir} --label=0",
    MeasuresDensity: "likelihood --workdir={workdir}",
    IsEvaluated: "evaluate --workdir={workdir}",
    Completes: "complete --workdir={workdir}",
    Interpolates: "interpolate --workdir={workdir}",
    InterpolatesNoise: "interpolate --workdir={workdir}",
}
"""Command of each capability of a trained model, the most telling one first."""


def commands(model: Any, workdir: str) -> list[str]:
    """The commands that take a run of a model in `workdir`, without the path of Python."""
    offered = [line for kind, line in COMMANDS.items() if isinstance(model, kind)]
    return [f"launch.{line.format(workdir=workdir)}" for line in dict.fromkeys(offered)]


def cannot(name: str, capability: type, able: Iterable[str], model: Any = None) -> ValueError:
    """The error for a model `name` without a capability; `able` are the systems that have it.

    It names the first commands that a run of `model` is for.
    """
    offered = commands(model, "RUN")[:2]
    instead = f". Its runs are for {' or '.join(offered)}" if offered else ""
    return ValueError(f"{name} cannot {ACTIONS[capability]}; {', '.join(able)} can{instead}")


def sampler_name(model: Any, name: str = "") -> str:
    """The name of a sampler, of the model's own for ""; that is "" if the model does not say it."""
    return name or next(iter(getattr(model, "sampler_names", ())), "")


def require_sampler(own: str, name: str, condition: Any = None) -> None:
    """Raises ValueError for another sampler than a model's own, or a condition to guide it."""
    require_known("sampler", name or own, (own,))
    if condition is not None:
        raise ValueError(f"samples by {own!r} cannot be guided by a classifier")


def require_one_step(
    own: str, name: str, *, num_steps: int = 0, nfe: int = 0, condition: Any = None
) -> None:
    """Raises ValueError as `require_sampler`, or for more than the one step of the sampler."""
    require_sampler(own, name, condition)
    if max(num_steps, nfe) > 1:
        raise ValueError(f"the sampler {own!r} draws in one step; got {max(num_steps, nfe)}")
