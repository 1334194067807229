# SPDX-License-Identifier: Apache-2.0
"""A deep energy model of images, by FD-SSM, FD-DSM at one noise level or at many, or their limits.

Images are in [0, 1], framed by `padding` pixels of black. Sliced objectives see them with a little
noise, `data_noise`: the density of images with a common background has none without.

Source: Pang et al. 2020, arXiv:2007.03317, Section 5.1; multi-scale: Li et al. 2019,
arXiv:1910.07762.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from scorejax.capabilities import Draw, require_sampler
from scorejax.choices import require
from scorejax.data.view import VIEW_DEFAULTS, VIEW_OPTIONS, ImageView
from scorejax.evaluate import progress
from scorejax.evaluate.held_out import HeldOut
from scorejax.evaluate.progress import Metric, Metrics
from scorejax.models.energy_resnet import EnergyResNet
from scorejax.random import Rng, draw_rows, split
from scorejax.samplers.tempered_langevin import temperatures, tempered_langevin
from scorejax.systems.fd_score_matching import training
from scorejax.train.initial import make_init
from scorejax.train.system import System
from scorejax.typing import Array, LossFn, Params, PRNGKeyArray, PyTree, Shape, Variables

NETWORK_OPTIONS = ("features", "multipliers", "num_blocks", "activation")
CHAIN_LENGTHS = ("num_hot", "num_cooling", "num_freezing")
KEYS = (
    *VIEW_OPTIONS, "model", "padding", "data_noise", *NETWORK_OPTIONS, *training.OPTIONS,
    *training.MULTI_SCALE, *training.OPTIMIZER_OPTIONS, *CHAIN_LENGTHS, "hottest", "step_size",
    "denoise_sigma", "eval_examples", "eval_exact_examples", "eval_samples",
)  # fmt: skip
"""Keys that a config needs, beside `system` and those of the training loop."""
OPTIONS = VIEW_DEFAULTS
"""Keys that it may have."""
NUM_FRAMES = 10


def build(config: ConfigDict) -> System:
    """The training of a config. Raises: ValueError, or FileNotFoundError without its data."""
    return training.image_system(make_model(config), config)


def make_model(config: ConfigDict) -> "DeepEnergy":
    """The model of a config. Raises: ValueError for an impossible value."""
    require(config, ("centered",), lambda v: v is False, "to be False: the noise is for [0, 1]")
    require(config, ("padding", *CHAIN_LENGTHS), lambda v: v >= 0, "to be at least 0")
    require(config, ("data_noise",), lambda v: 0 <= v < math.inf, "to be 0 or a positive number")
    require(config, ("features", "num_blocks"), lambda v: v >= 1, "to be at least 1")
    whole = lambda values: values and all(type(v) is int and v >= 1 for v in values)
    require(config, ("multipliers",), whole, "a whole number >= 1 for each stage")
    require(config, ("hottest", "step_size"), lambda v: 0 < v < math.inf, "to be positive")
    require(config, ("denoise_sigma",), lambda v: 0 <= v < math.inf, "to be positive, or 0")
    data = ImageView.from_options(config)
    height, width, channels = data.shape
    shape = height + 2 * config.padding, width + 2 * config.padding, channels
    options = {option: config[option] for option in NETWORK_OPTIONS}
    table = temperatures(*(config[name] for name in CHAIN_LENGTHS), hottest=config.hottest)
    return DeepEnergy(
        data=data,
        network=EnergyResNet(**options | {"multipliers": tuple(config.multipliers)}),
        padding=config.padding,
        padded_shape=shape,
        data_noise=config.data_noise,
        objective=training.make_objective(config, shape, normalised=False),
        tx=training.optimizer(config),
        chain=Chain(config.step_size, table, config.denoise_sigma),
        held_out=HeldOut.from_options(config, data),
    )


class Chain(NamedTuple):
    """Options of `tempered_langevin`."""

    step_size: float
    temperatures: np.ndarray
    sigma: float


@dataclasses.dataclass(frozen=True)
class DeepEnergy:
    """An energy of images in [0, 1], and tempered Langevin dynamics on it."""

    data: ImageView
    network: EnergyResNet
    padding: int
    padded_shape: Shape
    """Shape of an image as the network sees it."""
    data_noise: float
    objective: training.EnergyObjective
    tx: optax.GradientTransformation
    chain: Chain
    held_out: HeldOut
    sampler_names: ClassVar[tuple[str, ...]] = ("langevin",)

    @property
    def init(self) -> Callable[[PRNGKeyArray], tuple[Params, PyTree]]:
        """rng -> (params, model_state)."""
        return make_init(self.network, np.ones((1, *self.padded_shape), np.float32))

    @property
    def loss(self) -> LossFn:
        """The objective on a batch of framed images."""
        return training.make_loss(self.losses)

    def energy(self, params: Params, x: Array) -> Array:
        """The energy of framed images (b, h, w, c): (b,)."""
        return self.network.apply({"params": params}, x)

    def losses(self, params: Params, rng: Rng, images: Array) -> Array:
        """The objective of each image, framed and noised: (b,)."""
        noise_rng, rng = split(rng)
        x = self.noised(noise_rng, images)
        return self.objective(functools.partial(self.energy, params), rng, x)

    def noised(self, rng: Rng, images: Array) -> Array:
        """Images as in training: framed, and with `data_noise`."""
        x = framed(images, self.padding)
        return x + self.data_noise * draw_rows(jax.random.normal, rng, x.shape)

    def trajectory(self, variables: Variables, rng: Rng, num: int, num_frames: int) -> Array:
        """Frames (num_frames, num, h, w, c) of chains from noise; with keys (num,) one for each."""
        start_rng, rng = split(rng)
        x = 0.5 + draw_rows(jax.random.normal, start_rng, (num, *self.padded_shape))
        energy = functools.partial(self.energy, variables[0])
        frames = tempered_langevin(rng, energy, x, num_frames=num_frames, **self.chain._asdict())
        (height, width, _), edge = self.padded_shape, self.padding
        return frames[:, :, edge : height - edge, edge : width - edge]

    def sampler(
        self, name: str = "", *, num_steps: int = 0, nfe: int = 0, condition: Any = None
    ) -> Draw:
        """Tempered Langevin dynamics from noise; each sample is a function of its own key.

        Raises: ValueError for any sampler but "langevin", a number of steps, or a condition.
        """
        require_sampler("langevin", name, condition)
        if num_steps or nfe:
            raise ValueError(
                "the chain of temperatures has its own number of steps, num_hot + num_cooling + "
                f"num_freezing; got {num_steps or nfe}"
            )
        cost = len(self.chain.temperatures) + (self.chain.sigma > 0)

        def draw(variables: Variables, rngs: PRNGKeyArray) -> dict[str, Array]:
            images = self.trajectory(variables, rngs, len(rngs), 1)[-1]
            return {"image": images, "nfe": jnp.full(len(rngs), cost)}

        return draw

    def metrics(self) -> Metrics:
        """By name: held-out loss, exact score-matching loss of a few, samples and their way."""
        held_out = self.held_out

        def exact() -> Metric:
            few = held_out.images(held_out.eval_exact_examples)
            return training.exact_metric(self.energy, self.noised(jax.random.key(0), few))

        def samples() -> Metric:
            num_frames = min(NUM_FRAMES, len(self.chain.temperatures))
            frames = lambda variables, rngs: self.trajectory(variables, rngs, len(rngs), num_frames)
            shown = {"batch_size": held_out.examples_at_once, "caption": self.sampler_names[0]}
            return progress.chain_pictures(frames, held_out.eval_samples, **shown)

        builders: Metrics = {"loss": lambda: training.held_out_loss(self.losses, held_out)}
        if held_out.eval_exact_examples:
            builders["score_matching"] = exact
        if held_out.eval_samples:
            builders["samples"] = samples
        return builders


def framed(images: Array, padding: int) -> Array:
    """Images (b, h, w, c) with a frame of `padding` black pixels."""
    return jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
