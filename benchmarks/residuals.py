# SPDX-License-Identifier: Apache-2.0
"""What a forward pass leaves to the backward pass, counted by JAX without computing anything.

XLA's compiler for CPUs takes recomputed blocks out of their place and reports the same memory with
and without them; what JAX hands from one pass to the other is the same on every backend.
"""

from collections.abc import Callable

import jax

from scorejax.train.state import TrainState


def residual_bytes(loss: Callable, state: TrainState, batch: dict, rng: jax.Array) -> int:
    """Bytes that the forward pass leaves to the backward pass, beside the arguments."""

    def of_params(params, state, batch, rng):
        rows = {"rng": jax.random.split(rng, len(batch["image"]))}
        return loss(params, state, rng, batch | rows)[0]

    pulled_back = lambda *given: jax.vjp(lambda params: of_params(params, *given[1:]), given[0])[1]
    leaves = jax.tree.leaves(jax.eval_shape(pulled_back, state.params, state, batch, rng))
    arguments = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.params))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) - arguments
