# SPDX-License-Identifier: Apache-2.0
"""Networks fitted to rows by minibatches, with early stopping on a held-out share of the rows.

An epoch is one compiled scan over shuffled minibatches. Networks of equal options share its
compilation, so that several seeds or data sets of one shape compile once.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from scorejax.choices import require
from scorejax.density.rows import held_out_split
from scorejax.models import spectral_norm
from scorejax.random import normal
from scorejax.typing import PyTree

Losses = Callable[[nn.Module, PyTree, PRNGKeyArray, Float[Array, "b d"]], Float[Array, "b"]]
"""(network, variables, rng, rows) -> the loss of each row, in nats up to a constant."""

HELD_OUT_AT_ONCE = 4096
"""Held-out rows that are evaluated together."""


@dataclasses.dataclass(frozen=True)
class Training:
    """Options of `minimize`: Adam with decoupled weight decay, at a rate that falls as a cosine.

    The rate falls from `learning_rate` to `final_rate` over `num_epochs`. Training stops after
    `patience` epochs without a lower held-out loss; the variables are those of the lowest.
    `held_out` is the share of rows that is kept for this. `noise` is the standard deviation of
    fresh normal noise in every batch, in units of the rows: with few rows in many dimensions the
    likelihood has no bound without it.

    Raises: ValueError if an option is out of range.
    """

    num_epochs: int = 100
    batch_size: int = 256
    learning_rate: float = 1e-3
    final_rate: float = 1e-5
    weight_decay: float = 1e-6
    patience: int = 10
    held_out: float = 0.1
    noise: float = 0.0

    def __post_init__(self) -> None:
        values = vars(self)
        sizes = ("num_epochs", "batch_size", "patience")
        require(values, sizes, lambda v: v >= 1, "to be at least 1")
        rates = ("learning_rate", "final_rate")
        require(values, rates, lambda v: 0 < v < math.inf, "to be a positive number")
        require(values, ("weight_decay", "noise"), lambda v: 0 <= v < math.inf, "to be at least 0")
        require(values, ("held_out",), lambda v: 0 < v < 1, "to lie in (0, 1)")


TRAINING = Training()


class Minimized(NamedTuple):
    """Variables at the lowest held-out loss, that loss, and the number of epochs until then."""

    variables: PyTree
    held_out_loss: float
    epochs: int


class _State(NamedTuple):
    variables: PyTree
    optimizer: optax.OptState


def minimize(
    rng: PRNGKeyArray,
    network: nn.Module,
    variables: PyTree,
    losses: Losses,
    x: Float[Array, "n d"],
    training: Training = TRAINING,
) -> Minimized:
    """Fits a network to rows (n, d) by its mean loss, from its initial variables.

    `network` and `losses` need to be hashable: linen modules and functions of a module are. The
    collection "spectral", if there is one, follows the kernels as `spectral_norm` says.
    Raises: ValueError if no held-out loss is finite.
    """
    split_rng, held_out_rng, epochs_rng = jax.random.split(rng, 3)
    x, held_out = held_out_split(split_rng, x, training.held_out)
    state = _State(variables, _optimizer(training, len(x)).init(variables))
    best = Minimized(variables, math.inf, 0)
    for epoch in range(1, training.num_epochs + 1):
        state = _epoch(network, losses, training, jax.random.fold_in(epochs_rng, epoch), state, x)
        # The same noise each time: only the network differs between epochs.
        loss = float(_mean_loss(network, losses, state.variables, held_out_rng, held_out))
        if loss < best.held_out_loss:
            best = Minimized(state.variables, loss, epoch)
        if not epoch < best.epochs + training.patience:
            break
    if not math.isfinite(best.held_out_loss):
        raise ValueError(
            f"fitting needs a finite held-out loss; got {loss} after epoch {epoch}. Standardise "
            f"the rows, or lower learning_rate={training.learning_rate:g}"
        )
    return best


def _batches(training: Training, num_rows: int) -> tuple[int, int]:
    """Batches of an epoch and rows of a batch."""
    size = min(training.batch_size, num_rows)
    return num_rows // size, size


def _optimizer(training: Training, num_rows: int) -> optax.GradientTransformation:
    num_steps = training.num_epochs * _batches(training, num_rows)[0]
    rate = optax.cosine_decay_schedule(
        training.learning_rate, num_steps, training.final_rate / training.learning_rate
    )
    return optax.adamw(rate, weight_decay=training.weight_decay)


@functools.partial(jax.jit, static_argnames=("network", "losses", "training"))
def _epoch(
    network: nn.Module,
    losses: Losses,
    training: Training,
    rng: PRNGKeyArray,
    state: _State,
    x: Float[Array, "n d"],
) -> _State:
    num_steps, size = _batches(training, len(x))
    optimizer = _optimizer(training, len(x))
    order_rng, steps_rng = jax.random.split(rng)
    order = jax.random.permutation(order_rng, len(x))[: num_steps * size].reshape(num_steps, size)

    def step(state: _State, inputs: tuple[Array, Array]) -> tuple[_State, None]:
        rows, key = inputs
        noise_rng, loss_rng = jax.random.split(key)
        batch = x[rows]
        if training.noise:
            batch = batch + training.noise * normal(noise_rng, batch.shape, batch.dtype)
        mean = lambda variables: jnp.mean(losses(network, variables, loss_rng, batch))
        grads = jax.grad(mean)(state.variables)
        updates, moments = optimizer.update(grads, state.optimizer, state.variables)
        variables = optax.apply_updates(state.variables, updates)
        if isinstance(variables, Mapping) and "spectral" in variables:
            vectors = spectral_norm.advance(variables["params"], variables["spectral"])
            variables = {**variables, "spectral": vectors}
        return _State(variables, moments), None

    return jax.lax.scan(step, state, (order, jax.random.split(steps_rng, num_steps)))[0]


@functools.partial(jax.jit, static_argnames=("network", "losses"))
def _mean_loss(
    network: nn.Module,
    losses: Losses,
    variables: PyTree,
    rng: PRNGKeyArray,
    x: Float[Array, "n d"],
) -> Float[Array, ""]:
    """Mean loss of rows in equal chunks; leaves out fewer rows than there are chunks."""
    num = -(-len(x) // HELD_OUT_AT_ONCE)
    chunks = x[: num * (len(x) // num)].reshape(num, -1, x.shape[1])
    chunk_mean = lambda row: jnp.mean(losses(network, variables, *row))
    return jnp.mean(jax.lax.map(chunk_mean, (jax.random.split(rng, num), chunks)))
