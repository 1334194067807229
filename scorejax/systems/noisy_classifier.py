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

from scorejax.choices import require, require_keys
from scorejax.data.view import VIEW_DEFAULTS, VIEW_OPTIONS, ImageView
from scorejax.evaluate.chunks import examples_at_once, joined, make_stream
from scorejax.evaluate.progress import Metric, Metrics, make_evaluate
from scorejax.models.wide_resnet import WideResNet
from scorejax.numerics import expand
from scorejax.objectives.denoising import perturb, uniform_times
from scorejax.preconditioning import noise_level
from scorejax.random import draw_rows, example_keys, row_keys, split
from scorejax.report import Evaluation
from scorejax.sdes import SDE, get_sde
from scorejax.train.initial import make_init
from scorejax.train.optimizer import adam_from_config
from scorejax.train.state import TrainState
from scorejax.train.system import System
from scorejax.typing import Array, Aux, Batch, Params, PRNGKeyArray, Variables

NETWORK_OPTIONS = ("num_classes", "width", "widen_factor", "num_blocks", "num_stages")
KEYS = (
    *VIEW_OPTIONS, *NETWORK_OPTIONS, "sde", "beta_min", "beta_max", "sigma_min", "sigma_max",
    "learning_rate", "warmup", "grad_clip", "eval_examples", "num_noise_bins",
)  # fmt: skip
"""Keys that a config needs, beside `system` and those of the training loop."""
OPTIONS = VIEW_DEFAULTS
"""Keys that it may have."""


def build(config: ConfigDict) -> System:
    """The training of a config. Raises: ValueError, or FileNotFoundError without its data."""
    model = make_model(config)
    return System(
        init=make_init(
            model.network, np.ones((1, *model.data.shape), np.float32), np.ones(1, np.float32)
        ),
        loss=model.loss,
        tx=model.tx,
        source=model.data.training_source(config.batch_size),
        evaluate=make_evaluate(model.metrics(), config.best_metric),
        paths=model.data.paths,
    )


def make_model(config: ConfigDict) -> "NoisyClassifier":
    """The model of a config. Raises: ValueError for an impossible value."""
    require_keys(config, KEYS)
    counts = (*NETWORK_OPTIONS, "eval_examples", "num_noise_bins")
    require(config, counts, lambda v: v >= 1, "to be at least 1")
    factor = 2 ** (config.num_stages - 1)
    if config.image_size % factor:
        raise ValueError(
            f"num_stages={config.num_stages} needs image_size to be a multiple of {factor}; "
            f"got {config.image_size}"
        )
    fall = optax.cosine_decay_schedule(1.0, config.num_train_steps)
    return NoisyClassifier(
        sde=get_sde(config.sde, config.to_dict()),
        data=ImageView.from_options(config),
        network=WideResNet(**{option: config[option] for option in NETWORK_OPTIONS}),
        tx=optax.chain(adam_from_config(config), optax.scale_by_schedule(fall)),
        eval_examples=config.eval_examples,
        num_noise_bins=config.num_noise_bins,
        batch_size=examples_at_once(config.batch_size, config.get("accumulation", 1)),
    )


@dataclasses.dataclass(frozen=True)
class NoisyClassifier:
    """A classifier of images along any SDE, and its training along one."""

    sde: SDE
    data: ImageView
    network: WideResNet
    tx: optax.GradientTransformation
    eval_examples: int
    num_noise_bins: int
    batch_size: int
    """Test images that are classified at a time, on all devices."""

    @property
    def num_classes(self) -> int:
        """Number of classes, the labels 0 .. num_classes - 1."""
        return self.network.num_classes

    def classifier(self) -> Callable[[Variables, SDE, Array, Array], Array]:
        """logits(variables, sde, x_t (b, h, w, c), t (b,)) -> (b, num_classes), for any SDE."""

        def logits(variables: Variables, sde: SDE, x: Array, t: Array) -> Array:
            (params, model_state), (scale, _) = variables, sde.marginal(t)
            bound = {"params": params, **model_state}
            return self.network.apply(bound, x / expand(scale, x), noise_level(sde, t))

        return logits

    def loss(
        self, params: Params, state: TrainState, rng: PRNGKeyArray, batch: Batch
    ) -> tuple[Array, Aux]:
        """Mean cross-entropy of x_t at uniform times, in nats."""
        time_rng, noise_rng = split(example_keys(rng, batch))
        t = uniform_times(time_rng, self.sde, len(batch["label"])).t
        noise = draw_rows(jax.random.normal, noise_rng, batch["image"].shape)
        x = perturb(self.sde, t, noise, batch["image"])
        logits = self.classifier()((params, state.model_state), self.sde, x, t)
        accuracy = jnp.mean(jnp.argmax(logits, axis=1) == batch["label"])
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return jnp.mean(entropy), Aux({"accuracy": accuracy}, state.model_state)

    def metrics(self) -> Metrics:
        """By name: "accuracy" on test images, the mean over noise levels from low to high."""
        return {"accuracy": self._accuracy_metric}

    def _accuracy_metric(self) -> Metric:
        sde, num, classify = self.sde, self.num_noise_bins, self.classifier()
        held_out = self.data.stored("test", self.eval_examples)
        x = self.data.as_trained(np.random.default_rng(0), held_out.image)
        times = sde.t_min + (sde.t_max - sde.t_min) * (np.arange(num) + 0.5) / num
        rng = row_keys(jax.random.key(0), len(x))
        rows = {"image": x, "label": held_out.label, "rng": rng}

        def correct(variables: Variables, rows: Batch) -> dict[str, Array]:
            x = rows["image"]
            noise = draw_rows(jax.random.normal, rows["rng"], x.shape)

            def at(time: Array) -> Array:
                t = jnp.full(len(x), time)
                logits = classify(variables, sde, perturb(sde, t, noise, x), t)
                return jnp.argmax(logits, axis=1) == rows["label"]

            return {"correct": jax.lax.map(at, jnp.asarray(times, jnp.float32)).T}

        stream = make_stream(correct)

        def metric(rng: PRNGKeyArray, variables: Variables) -> Evaluation:
            from scorejax.evaluate import pictures  # A second of matplotlib, once training runs.

            by_time = joined(stream(variables, rows, self.batch_size))["correct"].mean(axis=0)
            sigmas = np.asarray(noise_level(sde, jnp.asarray(times, jnp.float32)))
            scalars = {"accuracy": float(np.mean(by_time))}
            of_sigma = zip(sigmas, by_time, strict=True)
            scalars |= {f"accuracy_sigma_{sigma:.2g}": float(mean) for sigma, mean in of_sigma}
            picture = pictures.curve_picture(times, {"accuracy": by_time}, xlabel="time")
            return Evaluation(scalars, {"accuracy": picture})

        return metric
