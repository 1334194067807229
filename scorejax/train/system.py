# SPDX-License-Identifier: Apache-2.0
"""A system: all that the training loop needs to know of a paper."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np
import optax

from scorejax.report import Evaluation
from scorejax.train.state import TrainState, averaged
from scorejax.typing import (
    LossFn,
    OfflineSource,
    OnlineSource,
    Params,
    PRNGKeyArray,
    PyTree,
    Variables,
)


class System(NamedTuple):
    """A model, its loss and optimiser, its data and its evaluation."""

    init: Callable[[PRNGKeyArray], tuple[Params, PyTree]]
    """rng -> (params, model_state). It is traced for shapes, and may return arrays of the host."""
    loss: LossFn
    tx: optax.GradientTransformation
    source: OfflineSource | OnlineSource
    evaluate: Callable[..., Evaluation]
    """(rng, variables) -> Evaluation of the published variables; (rng, variables, frozen) if there
    are frozen arrays.

    The variables are copied to every local device, see `parallel.share`. With several processes all
    of them evaluate, with the same arguments; `parallel.map_over_devices` shares the work.
    """
    frozen: PyTree = ()
    """Arrays that training reads and does not change: another run's weights, an encoder's, a graph.

    The compiled step takes them as an argument, copied to every device once for training. They are
    neither optimised, averaged nor checkpointed; config.json has their checksums, which a resumed
    run must match.
    """
    published: Callable[[TrainState], Variables] = averaged
    """state -> (params, model_state), the variables that sampling, evaluation and a second stage
    use. It is traced for evaluations, and called with arrays of the host for checkpoints."""
    paths: tuple[str, ...] = ()
    """Keys of the config that are paths of data or of other runs, which may be moved."""
    kept: Callable[[], Mapping[str, np.ndarray]] | None = None
    """Returns arrays by name that a run keeps for commands after training, in kept.npz: documents
    by which others are ranked, say, whose files may then be gone. See `runs.kept`."""
    phases: tuple[tuple[int, LossFn], ...] = ()
    """(step, loss), in order: from so many updates on the loss is this one. Each is compiled once.

    The steps are multiples of `num_steps_per_call`, above 0."""
    divergence: str = ""
    """Why the run ends at the first step whose metric "diverged" is not 0, and what to change, in
    one line; for losses that report this metric."""


def frozen_arguments(system: System) -> tuple[PyTree, ...]:
    """The frozen arrays as further arguments of the loss and of `evaluate`: one, or none."""
    return (system.frozen,) if jax.tree.leaves(system.frozen) else ()
