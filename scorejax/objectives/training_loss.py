# SPDX-License-Identifier: Apache-2.0
"""The training loss of a network: the batch mean of a loss per example."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from scorejax.random import Rng, example_keys, split
from scorejax.typing import Aux, Batch, LossFn, NetworkFn, Params

ExampleLoss = Callable[[NetworkFn, Rng, Float[Array, "b *d"]], Float[Array, "b"]]
"""(network, rng, x) -> (b,): the loss of each example under a network with its parameters bound."""


def make_loss_fn(example_loss: ExampleLoss, apply_fn: Callable, *, field: str = "image") -> LossFn:
    """Makes a training loss, the batch mean of `example_loss`, from the `apply` of a Flax module.

    apply_fn(variables, x, label, dropout_rng=keys (b,)) must return the output alone. Every example
    draws from its own key, see `random.example_keys`, so that the loss does not depend on how a
    batch is split over devices. The examples are batch[field]. The collections in the model state
    are read, not changed.
    """

    def loss_fn(params: Params, state, rng: PRNGKeyArray, batch: Batch) -> tuple[Array, Aux]:
        loss_rng, dropout_rng = split(example_keys(rng, batch))
        variables = {"params": params, **state.model_state}
        network = lambda x, label: apply_fn(variables, x, label, dropout_rng=dropout_rng)
        loss = jnp.mean(example_loss(network, loss_rng, batch[field]))
        return loss, Aux({"loss": loss}, state.model_state)

    return loss_fn
