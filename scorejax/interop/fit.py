# SPDX-License-Identifier: Apache-2.0
"""Whether tensors from outside are those of an architecture: one line if not."""

import functools
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict


@functools.lru_cache(maxsize=8)  # Raw and averaged weights ask for the same; tracing takes seconds.
def param_shapes(net: nn.Module, size: int, channels: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters, by path `layer/kernel`, of a network of (image, label)."""
    image = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
    label = jax.ShapeDtypeStruct((1,), jnp.float32)
    # The key is made inside: outside it would be computed, by a program that is compiled.
    init = lambda image, label: net.init(jax.random.key(0), image, label)
    params = jax.eval_shape(init, image, label)["params"]
    return {path: leaf.shape for path, leaf in flatten_dict(params, sep="/").items()}


def require_fit(
    architecture: str,
    state: Mapping[str, np.ndarray],
    expected: Mapping[str, tuple[int, ...]],
    tolerated: set[str],
) -> None:
    """Raises ValueError unless all are there, of their shapes, and hold finite real numbers."""
    given = {name: array.shape for name, array in state.items()}
    missing = [name for name in expected if name not in given]
    surplus = [name for name in given if name not in expected and name not in tolerated]
    misshapen = [n for n, shape in expected.items() if n in given and given[n] != shape]
    # By kind: the bfloat16 of JAX is a type that NumPy does not count among its own.
    odd = [n for n in expected if n in given and not jnp.issubdtype(state[n].dtype, jnp.floating)]
    failed = [n for n in expected if n in given and n not in odd and not _is_finite(state[n])]
    complaints = []
    if missing:
        complaints.append(f"{len(missing)} missing, first {missing[0]}")
    if surplus:
        complaints.append(f"{len(surplus)} surplus, first {surplus[0]}")
    if misshapen:
        first = misshapen[0]
        complaints.append(
            f"{len(misshapen)} misshapen, first {first} {given[first]} for {expected[first]}"
        )
    if odd:
        complaints.append(f"{len(odd)} not real numbers, first {odd[0]} {state[odd[0]].dtype}")
    if failed:
        complaints.append(f"{len(failed)} with numbers that are not finite, first {failed[0]}")
    if complaints:
        raise ValueError(
            f"the tensors are not those of {architecture} with these settings: "
            + "; ".join(complaints)
        )


def _is_finite(array: np.ndarray) -> bool:
    return bool(np.isfinite(array).all())
