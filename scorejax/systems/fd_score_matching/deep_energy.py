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

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from scorejax import systems
from scorejax.choices import require, require_known
from scorejax.data.view import ImageView
from scorejax.evaluate import progress
from scorejax.models.energy_resnet import EnergyResNet
from scorejax.random import Rng, draw_rows, split
from scorejax.samplers.tempered_langevin import temperatures, tempered_langevin
from scorejax.systems.fd_score_matching import training
from scorejax.typing import Array, LossFn, OfflineSource, Params, PRNGKeyArray, Shape, Variables

make_optimizer = training.make_optimizer

NETWORK_OPTIONS = ("features", "multipliers", "num_blocks", "activation")
CHAIN = ("num_hot", "num_cooling", "num_freezing")
KEYS = (
    *(field.name for field in dataclasses.fields(ImageView)), "model", "padding", "data_noise",
    *NETWORK_OPTIONS, *training.OPTIONS, *training.MULTI_SCALE, *training.OPTIMIZER_OPTIONS,
    *CHAIN, "hottest", "step_size", "denoise_sigma",
    "eval_examples", "eval_exact_examples", "eval_samples",
)  # fmt: skip
"""What is read of a config, beside `system` and what the training loop reads."""
NUM_FRAMES = 10


def image_view(config: ConfigDict) -> ImageView:
    """The data of a config. Raises: ValueError unless images are in [0, 1]."""
    require(config, ("centered",), lambda v: v is False, "to be False: the noise is for [0, 1]")
    return ImageView.from_options(config)


def padded_shape(config: ConfigDict) -> Shape:
    """Of the images that the network sees. Raises: ValueError for a padding below zero."""
    require(config, ("padding",), lambda v: v >= 0, "to be at least 0")
    height, width, channels = image_view(config).shape
    return height + 2 * config.padding, width + 2 * config.padding, channels


def make_network(config: ConfigDict) -> EnergyResNet:
    """Raises: ValueError for what is no network, or none for these images."""
    require(config, ("features", "num_blocks"), lambda v: v >= 1, "to be at least 1")
    whole = lambda values: values and all(type(v) is int and v >= 1 for v in values)
    require(config, ("multipliers",), whole, "a whole number >= 1 for each stage")
    options = {option: config[option] for option in NETWORK_OPTIONS}
    return EnergyResNet(**options | {"multipliers": tuple(config.multipliers)})


def make_init(config: ConfigDict) -> Callable:
    """rng -> (params, model_state). Raises: as the network."""
    return systems.make_init(make_network(config), padded_shape(config))


def make_source(config: ConfigDict) -> OfflineSource:
    """Training batches. Raises: as the data set."""
    return image_view(config).training_source(config.batch_size)


def make_loss(config: ConfigDict) -> LossFn:
    """The config's objective of framed images, as a training loss."""
    return training.make_loss(row_losses(config))


def row_losses(config: ConfigDict) -> training.RowLosses:
    """The config's objective of each image. Raises: ValueError for an impossible one."""
    require(config, ("data_noise",), lambda v: 0 <= v < math.inf, "to be 0 or a positive number")
    model, shape = make_network(config), padded_shape(config)
    objective = training.make_objective(config, shape, normalised=False)

    def losses(params: Params, rng: Rng, images: Array) -> Array:
        noise_rng, rng = split(rng)
        x = framed(images, config.padding)
        x = x + config.data_noise * draw_rows(jax.random.normal, noise_rng, x.shape)
        return objective(lambda x: model.apply({"params": params}, x), rng, x)

    return losses


def framed(images: Array, padding: int) -> Array:
    """Images with so many pixels of black around them."""
    return jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))


def sampler(config: ConfigDict, name: str, *, num_steps: int = 0, nfe: int = 0) -> Callable:
    """draw(variables, rngs) -> {"image": without the frame, "nfe"}, by tempered Langevin dynamics.

    The first of the keys decides. Raises: ValueError for any sampler but "langevin", or steps.
    """
    require_known("sampler", name or "langevin", ("langevin",))
    if num_steps or nfe:
        raise ValueError(
            "the chain of temperatures has its own number of steps, num_hot + num_cooling + "
            f"num_freezing; got {num_steps or nfe}"
        )
    trajectory = make_trajectory(config, 1)
    cost = sum(config[part] for part in CHAIN) + (config.denoise_sigma > 0)

    def draw(variables: Variables, rngs: PRNGKeyArray) -> dict[str, Array]:
        images = trajectory(variables, rngs[0], len(rngs))[-1]
        return {"image": images, "nfe": jnp.full(len(rngs), cost)}

    return draw


def make_trajectory(config: ConfigDict, num_frames: int) -> Callable:
    """(variables, rng, num) -> frames (num_frames, num, h, w, c) of a chain from noise."""
    require(config, CHAIN, lambda v: v >= 0, "to be at least 0")
    require(config, ("hottest", "step_size"), lambda v: 0 < v < math.inf, "to be positive")
    require(config, ("denoise_sigma",), lambda v: 0 <= v < math.inf, "to be positive, or 0")
    table = temperatures(*(config[part] for part in CHAIN), hottest=config.hottest)
    model, shape, edge = make_network(config), padded_shape(config), config.padding
    run = functools.partial(
        tempered_langevin, step_size=config.step_size, temperatures=table,
        sigma=config.denoise_sigma, num_frames=min(num_frames, len(table)),
    )  # fmt: skip

    def trajectory(variables: Variables, rng: PRNGKeyArray, num: int) -> Array:
        start_rng, rng = jax.random.split(rng)
        x = 0.5 + jax.random.normal(start_rng, (num, *shape))
        frames = run(rng, lambda x: model.apply({"params": variables[0]}, x), x)
        return frames[:, :, edge : shape[0] - edge, edge : shape[1] - edge]

    return trajectory


def metrics(config: ConfigDict) -> dict[str, progress.Metric]:
    """By name: held-out loss, exact score-matching loss of a few, samples and their way."""
    require(config, ("eval_examples",), lambda v: v >= 1, "to be at least 1")
    counts = ("eval_exact_examples", "eval_samples")
    require(config, counts, lambda v: v >= 0, "to be at least 0")
    batches = training.held_out_batches(config, image_view(config))
    model = make_network(config)
    found = {"loss": training.held_out_loss(row_losses(config), batches)}
    if config.eval_exact_examples:
        x = framed(training.first_images(batches, config.eval_exact_examples), config.padding)
        x = x + config.data_noise * jax.random.normal(jax.random.key(0), x.shape)
        energy = lambda params, x: model.apply({"params": params}, x)
        found["score_matching"] = training.exact_metric(energy, x)
    if config.eval_samples:
        frames = jax.jit(make_trajectory(config, NUM_FRAMES), static_argnums=2)
        shown = lambda variables, rng: frames(variables, rng, config.eval_samples)
        found["samples"] = progress.chain_pictures(shown)
    return found
