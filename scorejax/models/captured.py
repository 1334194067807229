# SPDX-License-Identifier: Apache-2.0
"""Features and logits of any Flax module, by the names of its layers.

A layer is named by its path, such as "encoder/dense_1". `layer_shapes` lists all names. A layer's
output is captured, or its input: the input of the last linear map is what most libraries call the
features of a classifier.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.module import InterceptorContext
from jaxtyping import Array, Float

from scorejax.choices import require_known
from scorejax.models.classifier import Classified
from scorejax.typing import PyTree, Shape

SIDES = ("output", "input")


def layer_shapes(network: nn.Module, variables: PyTree, *inputs: Any) -> dict[str, Shape]:
    """Output shapes by layer name, in the order of the names; computes nothing.

    Layers whose output is not one array, such as an LSTM cell, are left out.
    """
    capture = lambda variables, *inputs: network.apply(
        variables, *inputs, capture_intermediates=True, mutable=["intermediates"]
    )[1]
    shapes = jax.eval_shape(capture, variables, *inputs).get("intermediates", {})
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        *module, call, _ = path  # of an array; entries of tuples and dictionaries lie deeper
        if module and getattr(call, "key", None) == "__call__":
            found["/".join(entry.key for entry in module)] = leaf.shape
    return found


def capture_layers(
    network: nn.Module,
    variables: PyTree,
    *inputs: Any,
    layers: Sequence[str],
    side: str = "output",
) -> tuple[Any, dict[str, Array]]:
    """The network's output, and the outputs or the first inputs of its named layers.

    A layer that runs several times gives its last value.
    Raises: ValueError for an unknown side, or a layer that the network lacks or does not run.
    """
    require_known("side", side, SIDES)

    def keep(call: Callable, args: tuple, kwargs: dict, context: InterceptorContext) -> Any:
        output = call(*args, **kwargs)
        if context.method_name == "__call__" and "/".join(context.module.path) in layers:
            value = output if side == "output" else [*args, *kwargs.values()][0]
            context.module.sow("captured", "value", value, reduce_fn=lambda old, new: new)
        return output

    with nn.intercept_methods(keep):
        output, state = network.apply(variables, *inputs, mutable=["captured"])
    captured = {
        "/".join(entry.key for entry in path[:-1]): value
        for path, value in jax.tree_util.tree_leaves_with_path(state.get("captured", {}))
        if getattr(path[-1], "key", None) == "value"
    }
    for name in layers:
        if name not in captured:
            require_known("layer", name, layer_shapes(network, variables, *inputs))
    return output, captured


def make_classified_fn(
    network: nn.Module, layer: str, *, side: str = "output", logits: str | None = None
) -> Callable[[PyTree, Array], Classified]:
    """Makes (variables, x) -> Classified from a network and the name of its features' layer.

    Features with axes between the first and the last, such as pixels, are averaged over them.
    `logits` names the layer whose output holds the logits; without it they are the network's
    output. The function raises ValueError as `capture_layers`, and for logits that are no (b, k).
    """

    def classify(variables: PyTree, x: Array) -> Classified:
        output, captured = capture_layers(network, variables, x, layers=(layer,), side=side)
        if logits is not None:
            _, outputs = capture_layers(network, variables, x, layers=(logits,))
            output = outputs[logits]
        if getattr(output, "ndim", None) != 2:
            raise ValueError(
                f"logits need to be one array (b, k); got {jax.tree.map(jnp.shape, output)}. "
                "Name their layer by `logits`."
            )
        features = _pooled(captured[layer])
        return Classified(output, features, features)

    return classify


def _pooled(h: Float[Array, "b *s d"]) -> Float[Array, "b d"]:
    return jnp.mean(h, axis=tuple(range(1, h.ndim - 1))) if h.ndim > 2 else h
