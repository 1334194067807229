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
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from scorejax.choices import require
from scorejax.data.view import VIEW_OPTIONS, ImageView
from scorejax.energies import Score
from scorejax.evaluate.chunks import joined, make_stream
from scorejax.evaluate.progress import Metric, Metrics
from scorejax.models.implicit_autoencoder import ImplicitAutoencoder
from scorejax.numerics import gaussian_log_prob, sum_except_batch
from scorejax.objectives.finite_difference import repeat_rows
from scorejax.random import Rng, draw_rows, example_keys, row_keys, split
from scorejax.report import Evaluation
from scorejax.systems.fd_score_matching import training
from scorejax.train.initial import make_init
from scorejax.train.state import TrainState
from scorejax.train.system import System
from scorejax.typing import Array, Aux, Batch, Params, PRNGKeyArray, PyTree, Variables

NETWORK_OPTIONS = ("latent", "hidden", "num_hidden", "noise_dim")
KEYS = (
    *VIEW_OPTIONS, "model", *NETWORK_OPTIONS, "objective", "eps", "direction", "prior_weight",
    "learning_rate", "eval_examples", "eval_samples",
)  # fmt: skip
"""Keys that a config needs, beside `system` and those of the training loop."""


def build(config: ConfigDict) -> System:
    """The training of a config. Raises: ValueError, or FileNotFoundError without its data."""
    return training.image_system(make_model(config), config)


def make_model(config: ConfigDict) -> "Autoencoder":
    """The model of a config. Raises: ValueError for an impossible value."""
    require(config, ("centered",), lambda v: v is False, "to be False: pixels are probabilities")
    require(config, (*NETWORK_OPTIONS, "eval_samples"), lambda v: v >= 1, "to be at least 1")
    positive = ("prior_weight", "learning_rate")
    require(config, positive, lambda v: 0 < v < math.inf, "to be a positive number")
    data = ImageView.from_options(config)
    sizes = (config.latent, config.hidden, config.num_hidden)
    conditional = config.model == "implicit_vae"
    return Autoencoder(
        data=data,
        network=ImplicitAutoencoder(data.shape, *sizes, conditional=conditional),
        noise_dim=config.noise_dim,
        distance=RECONSTRUCTIONS[config.model],
        matching=training.make_score_objective(config, (config.latent,)),
        prior_weight=config.prior_weight,
        tx=optax.rmsprop(config.learning_rate),
        held_out=training.HeldOut.from_config(config, data),
    )


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


@dataclasses.dataclass(frozen=True)
class Autoencoder:
    """An implicit encoder, a decoder of images in [0, 1], and the score of the codes."""

    data: ImageView
    network: ImplicitAutoencoder
    noise_dim: int
    distance: Callable[[Array, Array], Array]
    """(logits, x) -> (b,), the reconstruction error."""
    matching: training.ScoreObjective
    prior_weight: float
    tx: optax.GradientTransformation
    held_out: training.HeldOut

    @property
    def init(self) -> Callable[[PRNGKeyArray], tuple[Params, PyTree]]:
        """rng -> (params, model_state)."""
        image = np.ones((1, *self.data.shape), np.float32)
        noise = np.ones((1, self.noise_dim), np.float32)
        return make_init(self.network, image, noise)

    def losses(self, params: Params, rng: Rng, x: Array) -> dict[str, Array]:
        """The parts of the loss by name, (b,) each."""
        noise_rng, rng = split(rng)
        noise = draw_rows(jax.random.normal, noise_rng, (len(x), self.noise_dim))
        apply = functools.partial(self.network.apply, {"params": params})
        score = lambda z: apply(z, repeat_rows(x, len(z)), method="score")
        z = apply(x, noise, method="encode")
        return {
            "reconstruction": self.distance(apply(z, method="decode"), x),
            "prior": -gaussian_log_prob(z, 1.0),
            "negative_entropy": negative_entropy(score, z),
            "score": self.matching(score, rng, jax.lax.stop_gradient(z)),
        }

    def loss(
        self, params: Params, state: TrainState, rng: PRNGKeyArray, batch: Batch
    ) -> tuple[Array, Aux]:
        """reconstruction + prior_weight (prior + negative entropy), and the loss of the score."""
        losses = self.losses(params, example_keys(rng, batch), batch["image"])
        parts = jax.tree.map(jnp.mean, losses)
        latent = self.prior_weight * (parts["prior"] + parts["negative_entropy"])
        metrics = {name: parts[name] for name in ("reconstruction", "prior", "score")}
        return parts["reconstruction"] + latent + parts["score"], Aux(metrics, state.model_state)

    def sampler(self, name: str = "", **options: Any) -> training.Draw:
        """Decoded draws of the prior.

        Raises: ValueError for any sampler but "decoder", more than one step, or a condition.
        """
        training.require_one_step("decoder", name, **options)

        def draw(variables: Variables, rngs: PRNGKeyArray) -> dict[str, Array]:
            z = draw_rows(jax.random.normal, rngs, (len(rngs), self.network.latent))
            logits = self.network.apply({"params": variables[0]}, z, method="decode")
            return {"image": jax.nn.sigmoid(logits), "nfe": jnp.ones(len(rngs), jnp.int32)}

        return draw

    def metrics(self) -> Metrics:
        """By name: parts of the loss on test images; moments of their codes, with samples."""
        return {"reconstruction": self._parts_metric, "codes": self._codes_metric}

    def _parts_metric(self) -> Metric:
        x, at_once = self.held_out.images(), self.held_out.examples_at_once
        stream = make_stream(lambda v, rows: self.losses(v[0], rows["rng"], rows["image"]))

        def metric(rng: PRNGKeyArray, variables: Variables) -> Evaluation:
            rows = {"image": x, "rng": row_keys(jax.random.key(0), len(x))}
            parts = joined(stream(variables, rows, at_once))
            del parts["negative_entropy"]  # Its gradient means something, its value nothing.
            means = {name: float(losses.mean(dtype=float)) for name, losses in parts.items()}
            return Evaluation(means, {})

        return metric

    def _codes_metric(self) -> Metric:
        x, held_out, draw = self.held_out.images(), self.held_out, self.sampler()

        def reconstruct(variables: Variables, rows: Batch) -> dict[str, Array]:
            apply = functools.partial(self.network.apply, {"params": variables[0]})
            noise = draw_rows(jax.random.normal, rows["rng"], (len(rows["image"]), self.noise_dim))
            z = apply(rows["image"], noise, method="encode")
            return {"code": z, "image": jax.nn.sigmoid(apply(z, method="decode"))}

        reconstructed = make_stream(reconstruct)
        drawn = make_stream(lambda variables, rows: draw(variables, rows["rng"]))

        def metric(rng: PRNGKeyArray, variables: Variables) -> Evaluation:
            from scorejax.evaluate import pictures  # A second of matplotlib, once training runs.

            at_once, num = held_out.examples_at_once, held_out.eval_samples
            rows = {"image": x, "rng": row_keys(jax.random.key(0), len(x))}
            found = joined(reconstructed(variables, rows, at_once))
            z, decoded = found["code"], found["image"]
            # The codes of all images together should come to the prior, mean 0 and variances 1.
            spread = np.linalg.eigvalsh(np.cov(z, rowvar=False).reshape(2 * z.shape[1:]))
            scalars = {
                "code_mean": float(np.abs(z.mean(axis=0)).max()),
                "code_variance_smallest": float(spread[0]),
                "code_variance_largest": float(spread[-1]),
            }
            pairs = np.stack([x, decoded], 1)[:num].reshape(-1, *x.shape[1:])
            samples = joined(drawn(variables, {"rng": row_keys(rng, num)}, at_once))["image"]
            shown = {"reconstructions": pairs, "samples": samples}
            return Evaluation(
                scalars, {name: pictures.image_grid(images) for name, images in shown.items()}
            )

        return metric
