# SPDX-License-Identifier: Apache-2.0
"""Metrics of a ladder of energies: the gap between data and negatives, samples, densities."""

import functools
import warnings
from typing import TYPE_CHECKING

from scorejax.data.view import ImageView
from scorejax.evaluate import progress
from scorejax.evaluate.progress import Metric, Metrics
from scorejax.report import Evaluation
from scorejax.score_model.evaluation import frechet_distance
from scorejax.systems.recovery_ebm.density import data_log_prob, noised_truth
from scorejax.systems.recovery_ebm.long_chains import long_chains
from scorejax.typing import PRNGKeyArray, Variables

if TYPE_CHECKING:
    from scorejax.systems.recovery_ebm.model import RecoveryModel

LIMIT = 2.0
"""Half the side of the window of the plane in which densities are compared."""


def metrics(model: "RecoveryModel") -> Metrics:
    """By name: "loss", "samples" and "frechet" of images, "divergence" of points of the plane, and
    "long_chains".

    "loss" is the objective of held-out examples, which hovers about 0 for the objective "recovery"
    and does not rank models. Those whose number of examples in `model.eval_options` is 0 are left
    out.
    """
    options, data = model.eval_options, model.data
    at_once = {"batch_size": options.examples_at_once}

    numbers = options.eval_examples, 0, options.batch_size
    held_out = functools.cache(lambda: progress.held_out_examples(data, *numbers)[0])

    def loss() -> Metric:
        losses = lambda variables, rngs, x: model.losses(variables, rngs, x)[0]
        return progress.held_out_loss(losses, held_out(), field=data.field, **at_once)

    def samples() -> Metric:
        shown = {"caption": model.sampler_names[0], **at_once}
        return progress.chain_pictures(model.trajectory(), options.eval_samples, **shown)

    builders: Metrics = {"loss": loss}
    if isinstance(data, ImageView):
        if options.eval_samples:
            builders["samples"] = samples
        if options.eval_frechet_samples:
            builders["frechet"] = lambda: frechet_distance(model.sampler(), data, options)
    if model.long_chains.num_steps:
        builders["long_chains"] = lambda: long_chains(model, **model.long_chains._asdict())
    if model.truth is not None:
        builders["divergence"] = lambda: plane_divergence(model)
    return builders


def plane_divergence(model: "RecoveryModel") -> Metric:
    """KL(truth || model) in nats at `data_level`, by quadrature, with a picture of both."""
    from scorejax.evaluate import plane

    truth = noised_truth(model)

    def metric(rng: PRNGKeyArray, variables: Variables) -> Evaluation:
        log_prob = data_log_prob(model, variables)
        with warnings.catch_warnings():  # Mass outside the window is a number below.
            warnings.simplefilter("ignore", UserWarning)
            compared = plane.compare(truth.log_prob, log_prob, limit=LIMIT)
        scalars = {
            "divergence": compared.divergence.value,
            "total_variation": compared.total_variation.value,
            "log_normalizer": compared.log_normalizer.value,
            "mass_outside": compared.model_outside,
        }
        densities = {"truth": compared.true_grid, "model": compared.model_grid}
        picture = plane.plane_picture(densities, limit=LIMIT)
        return Evaluation(scalars, {"density": picture})

    return metric
