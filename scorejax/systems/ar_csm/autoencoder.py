# SPDX-License-Identifier: Apache-2.0
"""A VAE of binary images whose encoder is implicit, by any estimator of the entropy gradient.

`config.estimator` is "csm": univariate scores of the codes given the image, learned by composite
score matching, which are right for a triangular encoder and biased for a perceptron ("mlp");
"ssm_vr": a joint score, learned by sliced score matching; "stein" and "spectral": scores from
`num_particles` codes of each image; or "exact": the density that a triangular encoder has.

Pixels are drawn black or white, with their grey as probability, so that p(x) is a probability.
`log_prob` is measured by annealed importance sampling, with no use of the encoder.

Source: Meng et al. 2020, arXiv:2010.12810, Section 5 (the experiment; all sizes are ours).
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

from scorejax.autoencoder import Apply, Autoencoder, Codes, Entropy, cross_entropy, learned_score
from scorejax.choices import choose, require, require_keys, require_known
from scorejax.data.view import VIEW_DEFAULTS, VIEW_OPTIONS, ImageView
from scorejax.density.marginal_likelihood import annealed_marginal
from scorejax.evaluate import progress
from scorejax.evaluate.held_out import HeldOut
from scorejax.evaluate.progress import Metric, Metrics
from scorejax.models.implicit_autoencoder import ImplicitAutoencoder
from scorejax.numerics import gaussian_log_prob, sum_except_batch
from scorejax.objectives.composite import composite_score_matching
from scorejax.objectives.directions import rademacher
from scorejax.objectives.entropy_gradients import negative_entropy, spectral_scores, stein_scores
from scorejax.objectives.sliced import score_sliced_score_matching_vr
from scorejax.random import Rng, draw_rows, normal
from scorejax.train.system import System
from scorejax.typing import Array, Batch, Variables

NETWORK_OPTIONS = ("latent", "hidden", "num_hidden", "noise_dim")
LIKELIHOOD_OPTIONS = ("eval_likelihoods", "eval_chains", "eval_temperatures", "eval_leapfrogs")
KEYS = (
    *VIEW_OPTIONS, "model", "estimator", "encoder", *NETWORK_OPTIONS, "num_particles",
    "standardize_codes", "learning_rate", "eval_examples", "eval_samples", *LIKELIHOOD_OPTIONS,
)  # fmt: skip
"""Keys that a config needs, beside `system` and those of the training loop."""
OPTIONS = VIEW_DEFAULTS
"""Keys that it may have."""
CRITICS = {
    "csm": "univariate", "ssm_vr": "joint", "stein": "none", "spectral": "none", "exact": "none",
}  # fmt: skip
"""The critic that each estimator trains."""
NUM_PAIRS = 4
"""Pairs of a draw of the noise and its opposite that tell the mean and deviation of codes."""
MIN_DEVIATION = 1e-3


def build(config: ConfigDict) -> System:
    """The training of a config. Raises: ValueError, or FileNotFoundError without its data."""
    model = make_model(config)
    return System(
        init=model.init,
        loss=model.loss,
        tx=model.tx,
        source=model.data.training_source(config.batch_size),
        evaluate=progress.make_evaluate(model.metrics(), config.best_metric, unranked=("codes",)),
        paths=model.data.paths,
    )


def make_model(config: ConfigDict) -> "BinaryVAE":
    """The model of a config. Raises: ValueError for an impossible value."""
    require_keys(config, KEYS)
    grey = ("centered", "uniform_dequantization")
    require(config, grey, lambda v: v is False, "to be False: grey is the probability of white")
    counts = (*NETWORK_OPTIONS, "eval_samples", "eval_likelihoods", "eval_chains", "eval_leapfrogs")
    require(config, counts, lambda v: v >= 1, "to be at least 1")
    require(config, ("num_particles", "eval_temperatures"), lambda v: v >= 2, "to be at least 2")
    require(config, ("learning_rate",), lambda v: 0 < v < math.inf, "to be a positive number")
    critic = choose("estimator", config.estimator, CRITICS)
    require_known("encoder", config.encoder, ("mlp", "triangular"))
    if config.estimator == "exact" and config.encoder != "triangular":
        raise ValueError(
            "estimator 'exact' needs the density that only a triangular encoder has; got encoder "
            f"{config.encoder!r}"
        )
    if config.encoder == "triangular" or critic == "univariate":
        enough = lambda v: v >= config.latent
        require(config, ("hidden",), enough, f"a unit for each of latent={config.latent} degrees")
    data = ImageView.from_options(config)
    sizes = (config.latent, config.hidden, config.num_hidden)
    kinds = {"encoder_kind": config.encoder, "critic_kind": critic}
    return BinaryVAE(
        data=data,
        network=ImplicitAutoencoder(data.shape, *sizes, **kinds),
        noise_dim=config.latent if config.encoder == "triangular" else config.noise_dim,
        distance=cross_entropy,
        entropy=make_entropy(
            config.estimator, config.num_particles, standardize=config.standardize_codes
        ),
        prior_weight=1.0,
        tx=optax.rmsprop(config.learning_rate),
        held_out=HeldOut.from_options(config, data),
        annealing=Annealing(*(config[name] for name in LIKELIHOOD_OPTIONS)),
    )


def make_entropy(estimator: str, num_particles: int, *, standardize: bool) -> Entropy:
    """The entropy of an estimator, by name; critics may see `standardised` codes.

    Raises: ValueError if it is unknown.
    """
    learned = standardised if standardize else lambda entropy: entropy
    sliced = functools.partial(score_sliced_score_matching_vr, direction=rademacher)
    estimators = {
        "csm": learned(univariate_scores),
        "ssm_vr": learned(learned_score(sliced)),
        "stein": particle_scores(stein_scores, num_particles),
        "spectral": particle_scores(spectral_scores, num_particles),
        "exact": known_density,
    }
    return choose("estimator", estimator, estimators)


def univariate_scores(apply: Apply, rng: Rng, codes: Codes) -> dict[str, Array]:
    """The entropy by univariate scores s_d(z_d | z_<d, x), learned by composite score matching."""
    contexts = lambda z: apply(z, codes.x, method="contexts")
    head = functools.partial(apply, method="head")
    return {
        "negative_entropy": negative_entropy(lambda z: head(z, contexts(z)), codes.z),
        "score": composite_score_matching(head, contexts, jax.lax.stop_gradient(codes.z)),
    }


def particle_scores(scores: Callable[[Array], Array], num_particles: int) -> Entropy:
    """The entropy by scores that are estimated from further codes of each image, at those codes."""

    def entropy(apply: Apply, rng: Rng, codes: Codes) -> dict[str, Array]:
        num, dim = codes.noise.shape
        noise = normal(rng, (num, num_particles, dim)).reshape(-1, dim)
        z = apply(jnp.repeat(codes.x, num_particles, axis=0), noise, method="encode")
        of_images = jax.vmap(lambda z: scores(jax.lax.stop_gradient(z)))
        z = z.reshape(num, num_particles, -1)
        return {"negative_entropy": negative_entropy(of_images, z) / num_particles}

    return entropy


def standardised(entropy: Entropy) -> Entropy:
    """The same gradient, by a critic of codes in units of their own mean and deviation given x.

    Both are constants given x, of a few fixed draws of the noise. A critic that has to find them
    lags behind the encoder: it takes its own error for width, and the codes narrow without end.
    """

    def of_standardised(apply: Apply, rng: Rng, codes: Codes) -> dict[str, Array]:
        half = np.random.default_rng(0).normal(size=(NUM_PAIRS, codes.noise.shape[1]))
        noise = jnp.asarray(np.concatenate([half, -half]), codes.noise.dtype)
        encode = lambda e: apply(codes.x, jnp.broadcast_to(e, codes.noise.shape), method="encode")
        z = jax.lax.stop_gradient(jax.vmap(encode)(noise))
        mean, deviation = z.mean(axis=0), z.std(axis=0) + MIN_DEVIATION
        return entropy(apply, rng, codes._replace(z=(codes.z - mean) / deviation))

    return of_standardised


def known_density(apply: Apply, rng: Rng, codes: Codes) -> dict[str, Array]:
    """The entropy by log q(z | x) of a triangular encoder, in nats."""
    slopes = apply(codes.x, codes.noise, method="log_slopes")
    return {"negative_entropy": gaussian_log_prob(codes.noise, 1.0) - sum_except_batch(slopes)}


@dataclasses.dataclass(frozen=True)
class Annealing:
    """How many test images have their likelihood estimated, and by how long walks of how many."""

    num_examples: int
    num_chains: int
    num_temperatures: int
    num_steps: int


@dataclasses.dataclass(frozen=True)
class BinaryVAE(Autoencoder):
    """An implicit encoder and a decoder of images whose pixels are black or white."""

    annealing: Annealing

    def observed(self, rng: Rng, images: Array) -> Array:
        """Pixels of 0 and 1, with the grey of the image as the probability of 1."""
        white = draw_rows(jax.random.uniform, rng, images.shape) < images
        return white.astype(images.dtype)

    def annealed_likelihood(self, variables: Variables, rows: Batch) -> dict[str, Array]:
        """log_prob of binary images in nats and its effective number of walks, (b,) each."""
        apply, options = self.bound(variables[0]), dataclasses.asdict(self.annealing)
        del options["num_examples"]

        def of_one(rng: Array, x: Array) -> dict[str, Array]:
            given = lambda z: (
                -self.distance(apply(z, method="decode"), jnp.broadcast_to(x, (len(z), *x.shape)))
            )
            found = annealed_marginal(rng, given, self.network.latent, **options)
            return {"log_prob": found.log_z, "effective_walks": found.effective_size}

        with jax.default_matmul_precision("highest"):
            return jax.vmap(of_one)(rows["rng"], rows["image"])

    def evidence_bound(self, variables: Variables, rows: Batch) -> dict[str, Array]:
        """elbo (b,): the lower bound of log p(x), in nats, by the density of a triangular encoder.

        It uses that density whatever estimator has trained the encoder.
        """
        known = dataclasses.replace(self, entropy=known_density)
        with jax.default_matmul_precision("highest"):
            losses = known.losses(variables[0], rows["rng"], rows["image"])
        return {"elbo": -sum(losses.values())}

    def metrics(self) -> Metrics:
        """Metrics of any autoencoder, and the likelihood of test images, in nats.

        A triangular encoder has a bound of it too, so that the difference is its own divergence.
        """
        few = lambda: self.test_images()[: self.annealing.num_examples]

        def density(measure: Callable, *names: str) -> Metric:
            at_once = self.held_out.examples_at_once
            return progress.held_out_density(measure, few(), names=names, batch_size=at_once)

        found = super().metrics()
        found["log_prob"] = lambda: density(self.annealed_likelihood, "log_prob", "effective_walks")
        if self.network.encoder_kind == "triangular":
            found["elbo"] = lambda: density(self.evidence_bound, "elbo")
        return found
