# SPDX-License-Identifier: Apache-2.0
"""The training of a score model: its loss on batches of its data, its metrics as evaluation."""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from scorejax.evaluate.progress import make_evaluate
from scorejax.objectives.training_loss import make_loss_fn
from scorejax.train.initial import make_init
from scorejax.train.system import System

if TYPE_CHECKING:
    from scorejax.score_model import ScoreModel

WATCHED = ("loss", "bits_per_dim", "log_prob", "samples", "frechet")
"""Metrics that training evaluates; further ones take too long for that."""


def training_system(
    model: "ScoreModel", config: Mapping[str, Any], *, watched: Collection[str] = WATCHED
) -> System:
    """Binds a score model to its data; reads `batch_size` and `best_metric` of the config.

    `watched` are the metrics that training evaluates, where the model has them.
    Raises: ValueError for an impossible value, FileNotFoundError without data.
    """
    metrics = {name: build for name, build in model.metrics().items() if name in watched}
    example = np.ones((1, *model.data.shape), np.float32)  # NumPy's: compiles nothing.
    label = np.ones(1, np.float32)
    return System(
        init=make_init(model.network, example, label),
        loss=make_loss_fn(model.example_loss, model.network.apply, field=model.data.field),
        tx=model.tx,
        source=model.data.training_source(config["batch_size"]),
        evaluate=make_evaluate(metrics, config["best_metric"]),
        paths=model.data.paths,
    )
