# SPDX-License-Identifier: Apache-2.0
"""Autoencoders with an implicit encoder: what trains and judges them, whoever learns the entropy.

The loss is reconstruction + prior_weight (cross entropy to the prior - entropy of the codes). The
codes z = h(x, noise) have no density, and the last term is one whose gradient alone is right; see
`objectives.entropy_gradients`. Where a network learns it, both players learn from one loss, each
from its part.

Source: Pang et al. 2020, arXiv:2007.03317, Section 5.4, after Song et al. 2019, arXiv:1905.07088.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from scorejax.capabilities import Draw, require_one_step
from scorejax.data.view import ImageView
from scorejax.energies import Score
from scorejax.evaluate.chunks import joined, make_stream
from scorejax.evaluate.held_out import HeldOut
from scorejax.evaluate.progress import Metric, Metrics, sample_caption
from scorejax.models.implicit_autoencoder import ImplicitAutoencoder
from scorejax.numerics import gaussian_log_prob, sum_except_batch
from scorejax.objectives.entropy_gradients import negative_entropy
from scorejax.objectives.finite_difference import repeat_rows
from scorejax.random import Rng, draw_rows, example_keys, fold_in, normal, row_keys, split
from scorejax.report import Evaluation
from scorejax.train.initial import make_init
from scorejax.train.state import TrainState
from scorejax.typing import Array, Aux, Batch, Params, PRNGKeyArray, PyTree, Variables


class Codes(NamedTuple):
    """Codes of images, and the noise that they were made from."""

    x: Array
    """Images (b, h, w, c)."""
    noise: Array
    """(b, n)."""
    z: Array
    """(b, k)."""


Apply = Callable[..., Array]
"""The network with its parameters: apply(*args, method=name)."""
Entropy = Callable[[Apply, Rng, Codes], dict[str, Array]]
"""(apply, rng, codes) -> "negative_entropy" (b,), of which only the gradient need mean something,
and, if a network learns it, the loss "score" (b,) of that network alone."""


def learned_score(matching: Callable[[Score, Rng, Array], Array]) -> Entropy:
    """The entropy by a network for the score of the codes, trained by `matching`."""

    def entropy(apply: Apply, rng: Rng, codes: Codes) -> dict[str, Array]:
        score = lambda z: apply(z, repeat_rows(codes.x, len(z)), method="score")
        return {
            "negative_entropy": negative_entropy(score, codes.z),
            "score": matching(score, rng, jax.lax.stop_gradient(codes.z)),
        }

    return entropy


def cross_entropy(logits: Array, x: Array) -> Array:
    """-log p(x | z) in nats of pixels in [0, 1], probabilities of white if they are grey: (b,)."""
    return sum_except_batch(optax.sigmoid_binary_cross_entropy(logits, x))


def squared_error(logits: Array, x: Array) -> Array:
    """|x - x'|^2 of the decoded image x', (b,)."""
    return sum_except_batch((jax.nn.sigmoid(logits) - x) ** 2)


@dataclasses.dataclass(frozen=True)
class Autoencoder:
    """An implicit encoder, a decoder of images in [0, 1], and the entropy of the codes."""

    data: ImageView
    network: ImplicitAutoencoder
    noise_dim: int
    distance: Callable[[Array, Array], Array]
    """(logits, x) -> (b,), the reconstruction error."""
    entropy: Entropy
    prior_weight: float
    tx: optax.GradientTransformation
    held_out: HeldOut
    sampler_names: ClassVar[tuple[str, ...]] = ("decoder",)

    @property
    def init(self) -> Callable[[PRNGKeyArray], tuple[Params, PyTree]]:
        """rng -> (params, model_state)."""
        image = np.ones((1, *self.data.shape), np.float32)
        noise = np.ones((1, self.noise_dim), np.float32)
        return make_init(self.network, image, noise)

    def bound(self, params: Params) -> Apply:
        """The network with these parameters."""
        return functools.partial(self.network.apply, {"params": params})

    def observed(self, rng: Rng, images: Array) -> Array:
        """Images in [0, 1] as the network sees them; observed again they stay the same."""
        return images

    def losses(self, params: Params, rng: Rng, images: Array) -> dict[str, Array]:
        """The parts of the loss by name, (b,) each."""
        x = self.observed(fold_in(rng, 2), images)  # `split` below is 0 and 1
        noise_rng, rng = split(rng)
        noise, apply = normal(noise_rng, (len(x), self.noise_dim)), self.bound(params)
        z = apply(x, noise, method="encode")
        return {
            "reconstruction": self.distance(apply(z, method="decode"), x),
            "prior": -gaussian_log_prob(z, 1.0),
            **self.entropy(apply, rng, Codes(x, noise, z)),
        }

    def loss(
        self, params: Params, state: TrainState, rng: PRNGKeyArray, batch: Batch
    ) -> tuple[Array, Aux]:
        """reconstruction + prior_weight (prior + negative entropy), and the loss of a score."""
        losses = self.losses(params, example_keys(rng, batch), batch["image"])
        parts = jax.tree.map(jnp.mean, losses)
        latent = self.prior_weight * (parts["prior"] + parts.pop("negative_entropy"))
        total = parts["reconstruction"] + latent + parts.get("score", 0.0)
        return total, Aux(parts, state.model_state)

    def sampler(self, name: str = "", **options: Any) -> Draw:
        """Decoded draws of the prior.

        Raises: ValueError for any sampler but "decoder", more than one step, or a condition.
        """
        require_one_step("decoder", name, **options)

        def draw(variables: Variables, rngs: PRNGKeyArray) -> dict[str, Array]:
            z = draw_rows(jax.random.normal, rngs, (len(rngs), self.network.latent))
            logits = self.bound(variables[0])(z, method="decode")
            return {"image": jax.nn.sigmoid(logits), "nfe": jnp.ones(len(rngs), jnp.int32)}

        return draw

    def metrics(self) -> Metrics:
        """By name: parts of the loss on test images; moments of their codes, with samples."""
        return {"reconstruction": self._parts_metric, "codes": self._codes_metric}

    def test_images(self) -> np.ndarray:
        """Test images (n, h, w, c) as the network sees them, the same for all metrics."""
        images = self.held_out.images()
        return np.asarray(self.observed(row_keys(jax.random.key(1), len(images)), images))

    def _parts_metric(self) -> Metric:
        x, at_once = self.test_images(), self.held_out.examples_at_once
        stream = make_stream(lambda v, rows: self.losses(v[0], rows["rng"], rows["image"]))

        def metric(rng: PRNGKeyArray, variables: Variables) -> Evaluation:
            rows = {"image": x, "rng": row_keys(jax.random.key(0), len(x))}
            parts = joined(stream(variables, rows, at_once))
            del parts["negative_entropy"]  # Its gradient means something, its value nothing.
            means = {name: float(losses.mean(dtype=float)) for name, losses in parts.items()}
            return Evaluation(means, {})

        return metric

    def _codes_metric(self) -> Metric:
        x, held_out, draw = self.test_images(), self.held_out, self.sampler()

        def reconstruct(variables: Variables, rows: Batch) -> dict[str, Array]:
            apply = self.bound(variables[0])
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
            samples = joined(drawn(variables, {"rng": row_keys(rng, num)}, at_once))
            shown = {"reconstructions": pairs, "samples": samples["image"]}
            grids = {name: pictures.image_grid(images) for name, images in shown.items()}
            caption = sample_caption(self.sampler_names[0], samples["nfe"])
            return Evaluation(scalars, grids, captions={"samples": caption})

        return metric
