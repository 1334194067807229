# SPDX-License-Identifier: Apache-2.0
"""A classifier of noisy images, whose gradient turns a score model into a class-conditional one.

It sees x_t / scale and the noise level std / scale, and is trained by cross-entropy at uniform
times of an SDE. Since the picture is that of every SDE, so is its use: a classifier of images in
[0, 1] serves VE models, one of images in [-1, 1] VP and sub-VP models, up to its noise levels.

Source: Song et al. 2021, arXiv:2011.13456, Appendix I.1.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from scorejax.choices import require, require_keys, unknown
from scorejax.data.view import ImageView
from scorejax.models.wide_resnet import WideResNet
from scorejax.numerics import expand
from scorejax.objectives.denoising import perturb, uniform_times
from scorejax.preconditioning import noise_level
from scorejax.random import draw_rows, example_keys, split
from scorejax.report import Evaluation
from scorejax.sdes import SDE, get_sde
from scorejax.systems import System, make_init
from scorejax.train.optimizer import adam
from scorejax.train.state import TrainState
from scorejax.typing import Array, Aux, Batch, Params, PRNGKeyArray, PyTree

NETWORK_OPTIONS = ("num_classes", "width", "widen_factor", "num_blocks", "num_stages")
KEYS = (
    *(field.name for field in dataclasses.fields(ImageView)), *NETWORK_OPTIONS,
    "sde", "beta_min", "beta_max", "sigma_min", "sigma_max", "learning_rate", "warmup",
    "grad_clip", "eval_examples", "num_noise_bins",
)  # fmt: skip
"""What is read of a config, beside `system` and what the training loop reads."""


def build(config: ConfigDict) -> System:
    """Binds a config. Raises: ValueError for impossible values, FileNotFoundError without data."""
    require_keys(config, KEYS)
    images, model = image_view(config), make_network(config)
    make_sde(config)
    return System(
        init=make_init(model, images.shape, ()),
        loss=make_loss(config),
        tx=make_optimizer(config),
        source=images.training_source(config.batch_size),
        evaluate=make_evaluate(config),
    )


def classifier(config: ConfigDict) -> Callable:
    """logits(variables, sde, x_t, t) -> (b, k), for the images and times of any SDE."""
    model = make_network(config)

    def logits(variables: tuple[Params, PyTree], sde: SDE, x: Array, t: Array) -> Array:
        params, model_state = variables
        scale, _ = sde.marginal(t)
        return model.apply(
            {"params": params, **model_state}, x / expand(scale, x), noise_level(sde, t)
        )

    return logits


def image_view(config: ConfigDict) -> ImageView:
    """The data of a config. Raises: ValueError for an unknown set or an impossible size."""
    return ImageView.from_options(config)


def make_sde(config: ConfigDict) -> SDE:
    """Raises: ValueError unless it exists and has positive noise."""
    return get_sde(config.sde, config.to_dict())


def make_network(config: ConfigDict) -> WideResNet:
    """Raises: ValueError for sizes below 1, or images that cannot be halved for each stage."""
    require(config, NETWORK_OPTIONS, lambda v: v >= 1, "to be at least 1")
    factor = 2 ** (config.num_stages - 1)
    if config.image_size % factor:
        raise ValueError(
            f"num_stages={config.num_stages} needs image_size to be a multiple of {factor}; "
            f"got {config.image_size}"
        )
    return WideResNet(**{option: config[option] for option in NETWORK_OPTIONS})


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Adam behind warm-up and clipping, with a rate that falls to zero like a cosine."""
    require(config, ("grad_clip",), lambda v: v >= 0, "to be positive, or 0 for none")
    fall = optax.cosine_decay_schedule(1.0, config.num_train_steps)
    tx = adam(config.learning_rate, warmup=config.warmup, clip_norm=config.grad_clip or None)
    return optax.chain(tx, optax.scale_by_schedule(fall))


def make_loss(config: ConfigDict) -> Callable:
    """Cross-entropy of x_t at uniform times, as a training loss."""
    sde, logits = make_sde(config), classifier(config)

    def loss(
        params: Params, state: TrainState, rng: PRNGKeyArray, batch: Batch
    ) -> tuple[Array, Aux]:
        time_rng, noise_rng = split(example_keys(rng, batch))
        t = uniform_times(time_rng, sde, len(batch["label"])).t
        noise = draw_rows(jax.random.normal, noise_rng, batch["image"].shape)
        x = perturb(sde, t, noise, batch["image"])
        found = logits((params, state.model_state), sde, x, t)
        right = jnp.mean(jnp.argmax(found, axis=1) == batch["label"])
        entropy = optax.softmax_cross_entropy_with_integer_labels(found, batch["label"])
        return jnp.mean(entropy), Aux({"accuracy": right}, state.model_state)

    return loss


def make_evaluate(config: ConfigDict) -> Callable[[PRNGKeyArray, TrainState], Evaluation]:
    """Accuracy on held-out images at noise levels from low to high, and its mean over them.

    Raises: ValueError for a best metric other than accuracy.
    """
    require(config, ("eval_examples", "num_noise_bins"), lambda v: v >= 1, "to be at least 1")
    if config.best_metric not in ("", "accuracy"):
        raise unknown("best_metric", config.best_metric, {"accuracy"})
    sde, images, logits = make_sde(config), image_view(config), classifier(config)
    held_out = images.stored("test", config.eval_examples)
    x = images.as_trained(np.random.default_rng(0), held_out.image)
    times = sde.t_min + (sde.t_max - sde.t_min) * (np.arange(config.num_noise_bins) + 0.5) / (
        config.num_noise_bins
    )

    @jax.jit
    def accuracy(variables: tuple[Params, PyTree], time: Array) -> Array:
        t = jnp.full(len(x), time)
        noise = jax.random.normal(jax.random.key(0), x.shape)
        found = logits(variables, sde, perturb(sde, t, noise, jnp.asarray(x)), t)
        return jnp.mean(jnp.argmax(found, axis=1) == held_out.label)

    def evaluate(rng: PRNGKeyArray, state: TrainState) -> Evaluation:
        from scorejax.evaluate import pictures  # A second of matplotlib, once training runs.

        variables = state.ema_params, state.model_state
        right = [float(accuracy(variables, jnp.float32(time))) for time in times]
        sigmas = np.asarray(noise_level(sde, jnp.asarray(times, jnp.float32)))
        scalars = {"accuracy": float(np.mean(right))}
        scalars |= {f"accuracy_sigma_{s:.2g}": a for s, a in zip(sigmas, right, strict=True)}
        picture = pictures.curve_picture(times, {"accuracy": right}, xlabel="time")
        return Evaluation(scalars, {"accuracy": picture})

    return evaluate
