# SPDX-License-Identifier: Apache-2.0
"""One update of the parameters: gradient, optimiser, moving average.

A step is a pure function of (state, batch, key). Systems differ in the loss and the optimiser that
it is made with; several players train in one step under `optax.multi_transform`.

The key of the run determines the key of the step, and this the keys of the examples, which the loss
reads as batch["rng"] (b,). Draws from these keys do not depend on how the batch is divided over
devices or by accumulation, and repeat when the step is repeated; gradients differ by the rounding
of a sum in another order. The loss also gets a key of its shard, for draws of no example.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from scorejax.random import row_keys
from scorejax.train.state import TrainState
from scorejax.typing import Array, Aux, Batch, LossFn, Params, PRNGKeyArray, PyTree

TrainStep = Callable[..., tuple[TrainState, dict[str, Array]]]
"""(state, batch, rng, *frozen) -> (state, metrics)."""
Rate = float | Callable[[Array], Array]


def make_train_step(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    *,
    ema_rate: Rate | PyTree,
    axis_name: str | None = None,
    accumulation: int = 1,
) -> TrainStep:
    """Builds step(state, batch, rng, *frozen) -> (state, metrics).

    `ema_rate` in [0, 1) is the weight of the old average, or a function of the number of updates
    made, this one included; or a tree of such rates that is a prefix of the parameters' tree, such
    as {"actor": 0.0, "critic": 0.995}. `axis_name` names the mapped axis over which to average,
    None if the step is not mapped. `accumulation` splits the batch into as many parts, one in
    memory at a time. `frozen` is passed on to the loss: arrays that training does not change.

    The metrics are those of the loss and, over them, `loss`, `grad_norm` (before any clipping) and
    `finite`, 1.0 unless the loss, the gradient or the update has a value that is not finite.
    If `state.skipped` is not None, such an update is skipped: of the state only `step` and
    `skipped` change, and the latter is a metric too.
    Running statistics in the model state are per shard, then averaged.
    Raises: ValueError unless every rate lies in [0, 1) and accumulation >= 1.
    """
    require_rates(ema_rate)
    if accumulation < 1:
        raise ValueError(f"accumulation needs to be at least 1; got {accumulation}.")

    def step(
        state: TrainState, batch: Batch, rng: PRNGKeyArray, *frozen: PyTree
    ) -> tuple[TrainState, dict[str, Array]]:
        rngs = jax.random.split(jax.random.fold_in(rng, state.step))
        first_shard = 0 if axis_name is None else jax.lax.axis_index(axis_name) * accumulation
        bound_loss = lambda params, key, part: loss_fn(params, state, key, part, *frozen)
        loss, aux, grads = _accumulate(
            bound_loss, state.params, batch, rngs, first_shard, accumulation
        )
        if axis_name is not None:
            loss, aux, grads = _average_over_devices((loss, aux, grads), axis_name)

        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        count = state.step + 1
        ema_params = _moving_average(state.ema_params, params, ema_rate, count)

        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(loss + grad_norm + optax.tree.norm(updates))
        metrics = {**aux.metrics, "loss": loss, "grad_norm": grad_norm}
        metrics["finite"] = finite.astype(jnp.float32)
        updated = TrainState(
            count, params, ema_params, aux.model_state, opt_state, skipped=state.skipped
        )
        if state.skipped is not None:
            updated = _skip_unless(finite, updated, state)
            metrics["skipped"] = updated.skipped
        return updated, metrics

    return step


def scan_steps(step: TrainStep) -> TrainStep:
    """Makes one call do several steps: batches and metrics gain a leading axis, one row a step.

    Saves the cost of dispatch, which for small networks is most of the time.
    """

    def steps(
        state: TrainState, batches: Batch, rng: PRNGKeyArray, *frozen: PyTree
    ) -> tuple[TrainState, dict[str, Array]]:
        (num_steps,) = {leaf.shape[0] for leaf in jax.tree.leaves(batches)}
        if num_steps == 1:  # no loop: some operations are slower inside one
            batch = jax.tree.map(lambda leaf: leaf[0], batches)
            state, metrics = step(state, batch, rng, *frozen)
            return state, jax.tree.map(lambda leaf: leaf[None], metrics)
        return jax.lax.scan(lambda state, batch: step(state, batch, rng, *frozen), state, batches)

    return steps


def scan_online_steps(
    step: TrainStep,
    source_step: Callable[[PyTree, TrainState, PRNGKeyArray], tuple[PyTree, Batch]],
    num_steps: int,
    *,
    axis_name: str | None = None,
) -> Callable[..., tuple[tuple[TrainState, PyTree], dict[str, Array]]]:
    """Makes one call do `num_steps` steps, each on the batch that an `OnlineSource` makes for it.

    Returns call((state, carry), (), (step_rng, source_rng), *frozen) -> ((state, carry), metrics),
    metrics with a leading axis of steps. The empty argument stands where the batches of
    `scan_steps` do, so that both are mapped over devices alike.
    """

    def steps(
        state_and_carry: tuple[TrainState, PyTree],
        batches: tuple[()],
        rngs: tuple[PRNGKeyArray, PRNGKeyArray],
        *frozen: PyTree,
    ) -> tuple[tuple[TrainState, PyTree], dict[str, Array]]:
        step_rng, source_rng = rngs
        shard = 0 if axis_name is None else jax.lax.axis_index(axis_name)

        def one(state_and_carry: tuple[TrainState, PyTree], _: None):
            state, carry = state_and_carry
            rng = jax.random.fold_in(jax.random.fold_in(source_rng, state.step), shard)
            carry, batch = source_step(carry, state, rng)
            state, metrics = step(state, batch, step_rng, *frozen)
            return (state, carry), metrics

        return jax.lax.scan(one, state_and_carry, None, length=num_steps)

    return steps


def require_rates(ema_rate: Rate | PyTree) -> None:
    """Raises ValueError unless every rate of a moving average is a function or lies in [0, 1)."""
    leaves = jax.tree_util.tree_flatten_with_path(ema_rate, is_leaf=lambda leaf: leaf is None)[0]
    for path, rate in leaves:
        if not callable(rate) and not (isinstance(rate, int | float) and 0 <= rate < 1):
            part = jax.tree_util.keystr(path, simple=True, separator=".")
            name = f"ema_rate.{part}" if part else "ema_rate"
            raise ValueError(f"{name} needs to lie in [0, 1); got {rate!r}.")


def _accumulate(
    loss_fn: Callable[[Params, PRNGKeyArray, Batch], tuple[Array, Aux]],
    params: Params,
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
        (loss, aux), grads = value_and_grad(params, key, part)
        metrics = {name: jnp.asarray(value, loss.dtype) for name, value in aux[0].items()}
        return loss, Aux(metrics, aux[1]), grads

    if num_shards == 1:
        return gradient(0, batch)

    def add(total: Params, inputs: tuple[Array, Batch]) -> tuple[Params, tuple[Array, Aux]]:
        loss, aux, grads = gradient(*inputs)
        return jax.tree.map(jnp.add, total, grads), (loss, aux)

    parts = jax.tree.map(lambda leaf: leaf.reshape((num_shards, -1, *leaf.shape[1:])), batch)
    zeros = jax.tree.map(jnp.zeros_like, params)
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


def _skip_unless(finite: Array, updated: TrainState, old: TrainState) -> TrainState:
    """The updated state if the update is finite, else the old one at the step of the new one."""
    state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), updated, old)
    return state.replace(step=updated.step, skipped=jnp.where(finite, 0, old.skipped + 1))


def _moving_average(
    average: Params, params: Params, ema_rate: Rate | PyTree, count: Array
) -> Params:
    def move(rate: Rate, average: PyTree, params: PyTree) -> PyTree:
        rate = rate(count) if callable(rate) else rate
        # In float32 at rate 0.9999 this form leaves the average of a constant as it is, and is off
        # by 2e-6 (rms, relative) for parameters that vary by 1% or more about their mean;
        # rate * old + (1 - rate) * new is off by 2e-4 in both. An increment below half a unit in
        # the last place is lost all the same: the average of a parameter that stands still stops
        # up to 6e-4 short of it, so 1.0 never moves toward 1.0003. A compensated sum would be exact
        # and would need a third copy of the parameters in memory and in the checkpoints.
        return jax.tree.map(
            lambda old, new: (old + (1 - rate) * (new - old)).astype(old.dtype), average, params
        )

    return jax.tree.map(move, ema_rate, average, params)
