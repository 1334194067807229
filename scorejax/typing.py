# SPDX-License-Identifier: Apache-2.0
"""Type aliases and contracts that several modules share.

Shapes: `b` is the batch axis, `*d` the axes of one example. A score is always grad_x log p_t(x),
never the noise; an energy is -log p up to a constant, in nats.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

from jaxtyping import Array, Float, Int, PRNGKeyArray

__all__ = [
    "Array", "Aux", "Batch", "ContextsFn", "EnergyFn", "Float", "HeadFn", "Int", "LossFn",
    "NetworkFn", "NoisyHeadFn", "OfflineSource", "OnlineSource", "PRNGKeyArray", "Params", "PyTree",
    "Sampled", "ScoreFn", "Shape", "Variables",
]  # fmt: skip

PyTree: TypeAlias = Any
Params: TypeAlias = PyTree
Shape: TypeAlias = tuple[int, ...]
Batch: TypeAlias = dict[str, Array]
Variables: TypeAlias = tuple[Params, PyTree]
"""(averaged parameters, model state), as evaluation uses them."""

ScoreFn: TypeAlias = Callable[[Float[Array, "b *d"], Float[Array, "b"]], Float[Array, "b *d"]]
EnergyFn: TypeAlias = Callable[[Float[Array, "b *d"], Float[Array, "b"]], Float[Array, "b"]]
HeadFn: TypeAlias = Callable[[Float[Array, "*n"], Float[Array, "*m h"]], Float[Array, "*n"]]
"""(u, c) -> the score at u of a univariate conditional in the context c, elementwise over their
leading axes, which broadcast."""
NoisyHeadFn: TypeAlias = Callable[
    [Float[Array, "*n"], Float[Array, "*m h"], Array], Float[Array, "*n"]
]
"""(u, c, sigma) -> the score of the conditional with noise of standard deviation sigma, which
broadcasts against u."""
ContextsFn: TypeAlias = Callable[[Float[Array, "b *d"]], Float[Array, "b *d h"]]
"""x -> a context for each dimension, computed from earlier dimensions alone."""
NetworkFn: TypeAlias = Callable[[Float[Array, "b *d"], Array], Float[Array, "b *d"]]
"""A network with its parameters bound: (x, label) -> output, in the convention of its training."""


class Aux(NamedTuple):
    """Scalar metrics and the new model state, which a loss returns beside its value."""

    metrics: dict[str, Array]
    model_state: PyTree


@runtime_checkable
class LossFn(Protocol):
    """A training loss: (params, state, rng, batch) -> (scalar, Aux).

    The training step adds batch["rng"], a key for each example; `rng` is the shard's own. See
    `train/step.py`. The loss of a system with frozen arrays takes them as a fifth argument.
    """

    def __call__(
        self, params: Params, state: Any, rng: PRNGKeyArray, batch: Batch, *frozen: PyTree
    ) -> tuple[Array, Aux]: ...


class OfflineSource(NamedTuple):
    """Batches that the host draws, such as those of a data set.

    Batch number s is a function of the key that `init` gets and of s alone, so that a resumed run
    sees the batches that a run never stopped would have seen. A batch holds this process's share
    of the examples.
    """

    init: Callable[[int, PRNGKeyArray], PyTree]
    """(start_step, rng) -> carry. May read files."""
    next: Callable[[PyTree, Any, PRNGKeyArray], tuple[PyTree, Batch]]
    """(carry, state, rng) -> (carry, batch), called once a step; `state` lives for the call."""
    num_examples: int | None = None
    """Number of examples that an epoch visits, if it is known."""
    notes: tuple[str, ...] = ()
    """Lines for whoever starts a run, such as files that are left out."""


class OnlineSource(NamedTuple):
    """Batches that the training state makes, such as an agent's transitions.

    Both functions are pure and run on the devices. Arrays of the carry have a leading axis of
    independent rows, such as environments, over which devices share them; scalars of the carry,
    such as the position in a ring buffer, are equal on all devices. The carry holds no random keys.
    Checkpoints keep it.
    """

    init: Callable[[PRNGKeyArray, Any], PyTree]
    """(rng, state) -> the carry with the rows of all devices."""
    step: Callable[[PyTree, Any, PRNGKeyArray], tuple[PyTree, Batch]]
    """(carry, state, rng) -> (carry, batch) of one device's rows; `rng` differs by device."""


class Sampled(NamedTuple):
    """Samples x (b, *d) and the number of score evaluations: an int, or (b,) per example."""

    x: Array
    nfe: Any
