# SPDX-License-Identifier: Apache-2.0
"""Autoencoders with an implicit encoder: a VAE and a WAE, whose entropy a learned score maximises.

The gradient of the entropy of z = h(x, noise) is -E[S(z)^T dh], S the score of z. A network learns
S by FD-SSM-VR from the codes alone, and the encoder sees it as constant: the VAE's is the score
given x, the WAE's that of all codes together. Both players learn from one loss, each from its part.

Source: Pang et al. 2020, arXiv:2007.03317, Section 5.4, after Song et al. 2019, arXiv:1905.07088.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from scorejax import systems
from scorejax.choices import require
from scorejax.data.view import ImageView
from scorejax.evaluate import progress
from scorejax.models.implicit_autoencoder import ImplicitAutoencoder
from scorejax.numerics import gaussian_log_prob, sum_except_batch
from scorejax.objectives.directions import Score
from scorejax.objectives.finite_difference import repeat_rows
from scorejax.random import Rng, draw_rows, example_keys, split
from scorejax.report import Evaluation
from scorejax.systems.fd_score_matching import training
from scorejax.train.state import TrainState
from scorejax.typing import (
    Array,
    Aux,
    Batch,
    LossFn,
    OfflineSource,
    Params,
    PRNGKeyArray,
    PyTree,
    Variables,
)

NETWORK_OPTIONS = ("latent", "hidden", "num_hidden", "noise_dim")
KEYS = (
    *(field.name for field in dataclasses.fields(ImageView)), "model", *NETWORK_OPTIONS,
    "objective", "eps", "direction", "prior_weight", "learning_rate", "eval_examples",
    "eval_samples",
)  # fmt: skip
"""What is read of a config, beside `system` and what the training loop reads."""


def image_view(config: ConfigDict) -> ImageView:
    """The data of a config. Raises: ValueError unless images are in [0, 1]."""
    require(config, ("centered",), lambda v: v is False, "to be False: pixels are probabilities")
    return ImageView.from_options(config)


def make_network(config: ConfigDict) -> ImplicitAutoencoder:
    """Raises: ValueError for sizes below 1."""
    require(config, NETWORK_OPTIONS, lambda v: v >= 1, "to be at least 1")
    sizes = (config.latent, config.hidden, config.num_hidden)
    return ImplicitAutoencoder(
        image_view(config).shape, *sizes, conditional=config.model == "implicit_vae"
    )


def make_init(config: ConfigDict) -> Callable[[PRNGKeyArray], tuple[Params, PyTree]]:
    """rng -> (params, model_state). Raises: as the network."""
    return systems.make_init(make_network(config), image_view(config).shape, (config.noise_dim,))


def make_source(config: ConfigDict) -> OfflineSource:
    """Training batches. Raises: as the data set."""
    return image_view(config).training_source(config.batch_size)


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """RMSProp. Raises: ValueError unless its rate is positive."""
    require(config, ("learning_rate",), lambda v: 0 < v < math.inf, "to be a positive number")
    return optax.rmsprop(config.learning_rate)


def negative_entropy(score: Score, z: Array) -> Array:
    """S(z) . z with S held constant, (b,): its gradient is that of E[log q(z)] on average."""
    return sum_except_batch(jax.lax.stop_gradient(score(z)) * z)


def cross_entropy(logits: Array, x: Array) -> Array:
    """-log p(x | z) in nats of grey pixels in [0, 1], taken as probabilities of white: (b,)."""
    return sum_except_batch(optax.sigmoid_binary_cross_entropy(logits, x))


def squared_error(logits: Array, x: Array) -> Array:
    """|x - x'|^2 of the decoded image x', (b,)."""
    return sum_except_batch((jax.nn.sigmoid(logits) - x) ** 2)


RECONSTRUCTIONS = {"implicit_vae": cross_entropy, "implicit_wae": squared_error}


def make_losses(config: ConfigDict) -> Callable[[Params, Rng, Array], dict[str, Array]]:
    """(params, rng, images) -> the parts of the loss by name, (b,) each.

    Raises: ValueError for an unknown objective, or an impossible option.
    """
    model, distance = make_network(config), RECONSTRUCTIONS[config.model]
    matching = training.make_score_objective(config, (config.latent,))

    def losses(params: Params, rng: Rng, x: Array) -> dict[str, Array]:
        noise_rng, rng = split(rng)
        noise = draw_rows(jax.random.normal, noise_rng, (len(x), config.noise_dim))
        apply = functools.partial(model.apply, {"params": params})
        score = lambda z: apply(z, repeat_rows(x, len(z)), method="score")
        z = apply(x, noise, method="encode")
        return {
            "reconstruction": distance(apply(z, method="decode"), x),
            "prior": -gaussian_log_prob(z, 1.0),
            "negative_entropy": negative_entropy(score, z),
            "score": matching(score, rng, jax.lax.stop_gradient(z)),
        }

    return losses


def make_loss(config: ConfigDict) -> LossFn:
    """reconstruction + prior_weight (prior + negative entropy), and the loss of the score."""
    require(config, ("prior_weight",), lambda v: 0 < v < math.inf, "to be a positive number")
    losses = make_losses(config)

    def loss(
        params: Params, state: TrainState, rng: PRNGKeyArray, batch: Batch
    ) -> tuple[Array, Aux]:
        parts = jax.tree.map(jnp.mean, losses(params, example_keys(rng, batch), batch["image"]))
        latent = config.prior_weight * (parts["prior"] + parts["negative_entropy"])
        metrics = {name: parts[name] for name in ("reconstruction", "prior", "score")}
        return parts["reconstruction"] + latent + parts["score"], Aux(metrics, state.model_state)

    return loss


def sampler(config: ConfigDict, name: str, *, num_steps: int = 0, nfe: int = 0) -> Callable:
    """draw(variables, rngs) -> {"image": in [0, 1], "nfe"}: the decoder at codes of the prior.

    Raises: ValueError for any sampler but "decoder", or another number of evaluations.
    """
    training.require_one_step(name, "decoder", num_steps, nfe)
    model = make_network(config)

    def draw(variables: Variables, rngs: PRNGKeyArray) -> dict[str, Array]:
        z = draw_rows(jax.random.normal, rngs, (len(rngs), config.latent))
        image = jax.nn.sigmoid(model.apply({"params": variables[0]}, z, method="decode"))
        return {"image": image, "nfe": jnp.ones(len(rngs), jnp.int32)}

    return draw


def metrics(config: ConfigDict) -> dict[str, progress.Metric]:
    """By name: parts of the loss on test images; moments of their codes; samples beside them."""
    require(config, ("eval_examples", "eval_samples"), lambda v: v >= 1, "to be at least 1")
    batches = training.held_out_batches(config, image_view(config))
    x = training.first_images(batches)
    losses, draw = jax.jit(make_losses(config)), jax.jit(sampler(config, ""))
    reconstruct = jax.jit(_reconstruction(config))

    def held_out(rng: PRNGKeyArray, variables: Variables) -> Evaluation:
        parts = losses(variables[0], jax.random.key(0), x)
        del parts["negative_entropy"]  # Its gradient means something, its value nothing.
        return Evaluation({name: float(jnp.mean(rows)) for name, rows in parts.items()}, {})

    def codes(rng: PRNGKeyArray, variables: Variables) -> Evaluation:
        z, again = reconstruct(variables, jax.random.key(0), x)
        # Of the prior, to which the codes of all images together should come: 0 and 1.
        spread = np.linalg.eigvalsh(np.cov(np.asarray(z), rowvar=False).reshape(2 * z.shape[1:]))
        scalars = {
            "code_mean": float(jnp.abs(z.mean(axis=0)).max()),
            "code_variance_smallest": float(spread[0]),
            "code_variance_largest": float(spread[-1]),
        }
        from scorejax.evaluate import pictures  # A second of matplotlib, once training runs.

        pairs = jnp.stack([x, again], 1)[: config.eval_samples].reshape(-1, *x.shape[1:])
        drawn = draw(variables, jax.random.split(rng, config.eval_samples))["image"]
        shown = {
            "reconstructions": pictures.image_grid(pairs),
            "samples": pictures.image_grid(drawn),
        }
        return Evaluation(scalars, shown)

    return {"reconstruction": held_out, "codes": codes}


def _reconstruction(config: ConfigDict) -> Callable:
    model = make_network(config)

    def reconstruct(variables: Variables, rng: PRNGKeyArray, x: Array) -> tuple[Array, Array]:
        apply = functools.partial(model.apply, {"params": variables[0]})
        z = apply(x, jax.random.normal(rng, (len(x), config.noise_dim)), method="encode")
        return z, jax.nn.sigmoid(apply(z, method="decode"))

    return reconstruct
