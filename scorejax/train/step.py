# SPDX-License-Identifier: Apache-2.0
"""One update of the parameters: gradient, optimiser, moving average.

A step is a pure function of (state, batch, key), the same for every system: the loss and the
optimiser are whatever the caller gives, several players under `optax.multi_transform` included.

The key given is the run's one key, from which follow that of the step and, from this, those of the
examples: the loss finds them as batch["rng"] (b,). What it draws from them is the same however the
batch is divided, over devices or by accumulation, and whenever the step is repeated; gradients
differ by the rounding of a sum in another order. The key that the loss is given beside the batch is
its shard's own: for draws that belong to no example.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from scorejax.random import row_keys
from scorejax.train.state import TrainState
from scorejax.typing import Array, Aux, Batch, LossFn, Params, PRNGKeyArray, PyTree

TrainStep = Callable[[TrainState, Batch, PRNGKeyArray], tuple[TrainState, dict[str, Array]]]
Rate = float | Callable[[Array], Array]


def make_train_step(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    *,
    ema_rate: Rate,
    axis_name: str | None = None,
    accumulation: int = 1,
) -> TrainStep:
    """Builds step(state, batch, rng) -> (state, metrics).

    `ema_rate` in [0, 1) is the weight of the old average, or a function of the number of updates
    made, this one included. `axis_name` names the mapped axis over which to average, None if the
    step is not mapped. `accumulation` splits the batch into as many parts, one in memory at a time.

    The metrics are those of the loss and, over them, `loss`, `grad_norm` (before any clipping) and
    `finite`, 1.0 unless the loss, the gradient or the update has a value that is not finite.
    Running statistics in the model state are per shard, then averaged.
    Raises: ValueError unless ema_rate lies in [0, 1) and accumulation >= 1.
    """
    if not callable(ema_rate) and not 0 <= ema_rate < 1:
        raise ValueError(f"ema_rate needs to lie in [0, 1); got {ema_rate}.")
    if accumulation < 1:
        raise ValueError(f"accumulation needs to be at least 1; got {accumulation}.")

    def step(
        state: TrainState, batch: Batch, rng: PRNGKeyArray
    ) -> tuple[TrainState, dict[str, Array]]:
        rngs = jax.random.split(jax.random.fold_in(rng, state.step))
        first_shard = 0 if axis_name is None else jax.lax.axis_index(axis_name) * accumulation
        loss, aux, grads = _accumulate(loss_fn, state, batch, rngs, first_shard, accumulation)
        if axis_name is not None:
            loss, aux, grads = _average_over_devices((loss, aux, grads), axis_name)

        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        count = state.step + 1
        rate = ema_rate(count) if callable(ema_rate) else ema_rate
        ema_params = _moving_average(state.ema_params, params, rate)

        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(loss + grad_norm + optax.tree.norm(updates)).astype(jnp.float32)
        metrics = {**aux.metrics, "loss": loss, "grad_norm": grad_norm, "finite": finite}
        return TrainState(count, params, ema_params, aux.model_state, opt_state), metrics

    return step


def scan_steps(step: TrainStep) -> TrainStep:
    """Makes one call do several steps: batches and metrics gain a leading axis, one row a step.

    Saves the cost of dispatch, which for small networks is most of the time.
    """

    def steps(
        state: TrainState, batches: Batch, rng: PRNGKeyArray
    ) -> tuple[TrainState, dict[str, Array]]:
        (num_steps,) = {leaf.shape[0] for leaf in jax.tree.leaves(batches)}
        if num_steps == 1:  # no loop: some operations are slower inside one
            state, metrics = step(state, jax.tree.map(lambda leaf: leaf[0], batches), rng)
            return state, jax.tree.map(lambda leaf: leaf[None], metrics)
        return jax.lax.scan(lambda state, batch: step(state, batch, rng), state, batches)

    return steps


def _accumulate(
    loss_fn: LossFn,
    state: TrainState,
    batch: Batch,
    rngs: Array,
    first_shard: int | Array,
    num_shards: int,
) -> tuple[Array, Aux, Params]:
    """Loss, report and gradient averaged over the shards of this device's batch."""
    shard_rng, example_rng = rngs

    def gradient(shard: Array | int, part: Batch) -> tuple[Array, Aux, Params]:
        number, size = first_shard + shard, len(jax.tree.leaves(part)[0])
        key = jax.random.fold_in(shard_rng, number)
        part = {**part, "rng": row_keys(example_rng, size, first=number * size)}
        value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, aux), grads = value_and_grad(state.params, state, key, part)
        metrics = {name: jnp.asarray(value, loss.dtype) for name, value in aux[0].items()}
        return loss, Aux(metrics, aux[1]), grads

    if num_shards == 1:
        return gradient(0, batch)

    def add(total: Params, inputs: tuple[Array, Batch]) -> tuple[Params, tuple[Array, Aux]]:
        loss, aux, grads = gradient(*inputs)
        return jax.tree.map(jnp.add, total, grads), (loss, aux)

    parts = jax.tree.map(lambda leaf: leaf.reshape((num_shards, -1, *leaf.shape[1:])), batch)
    zeros = jax.tree.map(jnp.zeros_like, state.params)
    total, reports = jax.lax.scan(add, zeros, (jnp.arange(num_shards), parts))
    loss, aux = jax.tree.map(_mean_of_rows, reports)
    return loss, aux, jax.tree.map(lambda leaf: leaf / num_shards, total)


def _mean_of_rows(rows: Array) -> Array:
    """Mean over the leading axis; counters, equal in all rows, are taken from the last."""
    return jnp.mean(rows, axis=0) if jnp.issubdtype(rows.dtype, jnp.inexact) else rows[-1]


def _average_over_devices(tree: PyTree, axis_name: str) -> PyTree:
    """Mean over devices; counters, which are equal on all devices, stay as they are."""
    return jax.tree.map(
        lambda leaf: (
            jax.lax.pmean(leaf, axis_name) if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf
        ),
        tree,
    )


def _moving_average(average: Params, params: Params, rate: float | Array) -> Params:
    # The weights of rate * old + (1 - rate) * new do not add up to one in float32: at rate 0.9999
    # the average would settle up to 3e-4 away from the value that it averages.
    return jax.tree.map(
        lambda old, new: (old + (1 - rate) * (new - old)).astype(old.dtype), average, params
    )
