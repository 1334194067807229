# SPDX-License-Identifier: Apache-2.0
"""The initial variables of a network."""

from collections.abc import Callable

import flax.linen as nn
import jax

from scorejax.typing import Params, PRNGKeyArray, PyTree


def make_init(model: nn.Module, *inputs: PyTree) -> Callable[[PRNGKeyArray], tuple[Params, PyTree]]:
    """Builds init(rng) -> (params, model_state) of a network, compiled once.

    `inputs` are examples of the arguments that the network is called with, such as images (1, h, w,
    c) and labels (1,), token ids or a dictionary of arrays. Their values matter to networks whose
    first parameters follow from data, such as `PixelCNNPP`; to others only shapes and types do.
    Raises: ValueError if the network's layers do not fit the inputs.
    """

    @jax.jit
    def init(rng: PRNGKeyArray) -> tuple[Params, PyTree]:
        variables = dict(model.init(rng, *inputs))
        return variables.pop("params"), variables

    jax.eval_shape(lambda: init(jax.random.key(0)))  # Traced: compiles nothing.
    return init
