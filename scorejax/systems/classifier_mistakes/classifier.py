# SPDX-License-Identifier: Apache-2.0
"""The first stage: a classifier, trained on few labels, and on images without labels if asked."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from scorejax.data.five_sets import FiveSets, of_classes
from scorejax.data.images import Images
from scorejax.data.view import ImageView
from scorejax.evaluate.chunks import joined, make_stream
from scorejax.evaluate.progress import Metric, Metrics
from scorejax.models.classifier import Classified
from scorejax.objectives import semi_supervised
from scorejax.random import Rng, draw_rows, example_keys, normal, split
from scorejax.report import Evaluation
from scorejax.train.state import TrainState
from scorejax.typing import Array, Aux, Batch, OfflineSource, Params, PRNGKeyArray, Variables

Unlabelled = Callable[[Callable, Callable, Rng, Array], Array]
"""(logits of the parameters, of their averages, rng, images) -> losses (b,)."""


@dataclasses.dataclass(frozen=True, eq=False)
class Classifier:
    """A classifier of images in [0, 1], and its training."""

    data: ImageView
    network: nn.Module
    tx: optax.GradientTransformation
    unlabelled: Unlabelled | None
    """None: training by labels alone."""
    weight: float
    """Of the loss without labels, at the end of its ramp."""
    num_ramp_steps: int
    batch_size: int
    draw_sets: Callable[[], FiveSets]
    held_out_classes: Sequence[int] = ()
    """Classes of the data set that are in none of the five sets."""

    @functools.cached_property
    def sets(self) -> FiveSets:
        """The five sets of the config. Raises: as `five_sets`."""
        return self.draw_sets()

    @property
    def unseen(self) -> Images:
        """Test images of the classes held out. Raises: as `images.load`."""
        return of_classes(self.data.stored("test"), self.held_out_classes)

    @property
    def classes(self) -> np.ndarray:
        """The data set's own number of each class that the classifier knows."""
        num = self.network.num_classes + len(self.held_out_classes)
        return np.setdiff1d(np.arange(num), self.held_out_classes)

    def classify(self, variables: Variables, x: Array) -> Classified:
        """Logits and features of images (b, h, w, c) in [0, 1]."""
        params, state = variables
        return self.network.apply({"params": params, **state}, x)

    def loss(
        self, params: Params, state: TrainState, rng: PRNGKeyArray, batch: Batch
    ) -> tuple[Array, Aux]:
        """Mean cross-entropy in nats, and the loss without labels by its weight."""
        logits_of = lambda params: lambda x: self.classify((params, state.model_state), x).logits
        logits, label = logits_of(params)(batch["image"]), batch["label"]
        loss = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, label))
        scalars = {"accuracy": jnp.mean(jnp.argmax(logits, axis=1) == label)}
        if self.unlabelled is not None:
            rng = example_keys(rng, batch)
            functions = logits_of(params), logits_of(state.ema_params)
            consistency = jnp.mean(self.unlabelled(*functions, rng, batch["unlabelled"]))
            ramp = semi_supervised.ramp(state.step / self.num_ramp_steps)
            loss, scalars["consistency"] = loss + self.weight * ramp * consistency, consistency
        return loss, Aux(scalars, state.model_state)

    def source(self) -> OfflineSource:
        """Batches of labelled images, with as many others under "unlabelled" if they are used."""
        labelled = self.data.batches_of(self.sets.labelled, self.batch_size)
        if self.unlabelled is None:
            return labelled
        return beside(labelled, self.data.batches_of(self.sets.density, self.batch_size))

    def metrics(self) -> Metrics:
        """By name: "accuracy" on the validation images."""
        return {"accuracy": self._accuracy}

    def _accuracy(self) -> Metric:
        images = self.sets.valid
        x = self.as_input(images)

        def metric(rng: PRNGKeyArray, variables: Variables) -> Evaluation:
            logits = self.outputs(variables, x)["logits"]
            accuracy = np.mean(logits.argmax(axis=1) == images.label, dtype=float)
            return Evaluation({"accuracy": float(accuracy)}, {})

        return metric

    @functools.cached_property
    def _stream(self) -> Callable[..., Iterator]:
        """Compiled once for all images."""
        return make_stream(lambda variables, rows: self.classify(variables, **rows)._asdict())

    def outputs(self, variables: Variables, images: Array) -> dict[str, np.ndarray]:
        """Logits, features and pre-activations of images in [0, 1], computed in chunks."""
        return joined(self._stream(variables, {"x": images}, self.batch_size))

    def as_input(self, images: Images) -> np.ndarray:
        """Stored images as the classifier sees them, in [0, 1]."""
        return self.data.as_trained(np.random.default_rng(0), images.image)


def beside(labelled: OfflineSource, unlabelled: OfflineSource) -> OfflineSource:
    """Batches of the first source, with the images of the second under "unlabelled"."""

    def init(start_step: int, rng: PRNGKeyArray) -> tuple:
        rngs = jax.random.split(rng)
        return labelled.init(start_step, rngs[0]), unlabelled.init(start_step, rngs[1])

    def next_batch(carry: tuple, state: TrainState, rng: PRNGKeyArray) -> tuple[tuple, Batch]:
        first, batch = labelled.next(carry[0], state, rng)
        second, others = unlabelled.next(carry[1], state, rng)
        return (first, second), batch | {"unlabelled": others["image"]}

    return OfflineSource(init, next_batch, labelled.num_examples)


def make_augment(*, noise: float, shift: int) -> semi_supervised.AugmentFn:
    """Builds random shifts of up to `shift` pixels each way, edges repeated, and N(0, noise^2)."""

    def augment(rng: Rng, x: Array) -> Array:
        shift_rng, noise_rng = split(rng)
        draw = lambda key, shape: jax.random.randint(key, shape, 0, 2 * shift + 1)
        corners = draw_rows(draw, shift_rng, (len(x), 2))
        padded = jnp.pad(x, ((0, 0), (shift, shift), (shift, shift), (0, 0)), mode="edge")
        cut = lambda image, corner: jax.lax.dynamic_slice(image, (*corner, 0), x.shape[1:])
        return jax.vmap(cut)(padded, corners) + noise * normal(noise_rng, x.shape, x.dtype)

    return augment


def unlabelled_loss(name: str, augment: semi_supervised.AugmentFn, *, eps: float) -> Unlabelled:
    """The loss "pi_model", "mean_teacher" or "virtual_adversarial", of step `eps`."""
    losses = {
        "pi_model": lambda student, teacher, rng, x: semi_supervised.pi_model(
            student, rng, x, augment_fn=augment
        ),
        "mean_teacher": lambda student, teacher, rng, x: semi_supervised.mean_teacher(
            student, teacher, rng, x, augment_fn=augment
        ),
        "virtual_adversarial": lambda student, teacher, rng, x: semi_supervised.virtual_adversarial(
            student, rng, x, eps=eps
        ),
    }
    return losses[name]
