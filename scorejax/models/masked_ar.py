# SPDX-License-Identifier: Apache-2.0
"""Masked autoregressive networks: contexts c_d that depend on the dimensions before d alone.

Every unit has a degree, the number of leading dimensions that it may see. The input at position p
of the order (from 0) has degree p + 1, its context degree p, and the hidden units, in ascending
order, the degrees between. Weights from a unit to one of a lower degree are zero. All hidden layers
have the same degrees, so that each can be added to the one below it. Sines and cosines of an input
have its degree.

Source: Germain et al. 2015, arXiv:1502.03509; residual layers after Nash & Durkan 2019,
arXiv:1904.05626.
"""

import reprlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from scorejax.choices import choose, require
from scorejax.models.energy_resnet import ACTIVATIONS
from scorejax.models.layers import require_fourier_series, series_frequencies, waves
from scorejax.random import Rng


class MaskedCache(NamedTuple):
    """Partial results of `MaskedTrunk.advance`, exact for units that see known dimensions only."""

    sums: Float[Array, "b hidden"]
    """Products of the first layer with the known dimensions."""
    activations: tuple[Float[Array, "b hidden"], ...]
    """Activations of each hidden layer."""


class MaskedWeights(NamedTuple):
    """Parameters of a `MaskedTrunk`, before the masks apply, and the degrees of hidden units."""

    degrees: Int[np.ndarray, "hidden"]
    input_kernel: Float[Array, "d hidden"]
    wave_kernel: Float[Array, "dw hidden"] | None
    condition_kernel: Float[Array, "e hidden"] | None
    hidden_kernels: list[Float[Array, "hidden hidden"]]
    hidden_biases: list[Float[Array, "hidden"]]
    output_kernel: Float[Array, "hidden d features"]
    output_bias: Float[Array, "d features"]


class MaskedTrunk(nn.Module):
    """Contexts (x (b, *d), condition (b, e) or None) -> (b, *d, features), strictly causal.

    There are `num_hidden` layers of `hidden` units; each but the first is a residual layer. `order`
    lists flat indices into an example, the first dimension first; None stands for 0, 1, ... All
    contexts depend on the condition. With fewer hidden units than dimensions, contexts miss some of
    the dimensions right before them. `init_scale` multiplies the first weights of the last layer;
    with 0 the contexts of a new network are zero.

    The first layer also sees `num_frequencies` pairs of sines and cosines of each dimension: the
    Fourier series of period num_frequencies / max_frequency, which should exceed the range of the
    data, up to `max_frequency` cycles per unit. With it contexts follow structure too fine to be
    learned from the values alone.

    Raises: ValueError if a size is below 1, the activation is unknown, a number of the series is
    out of range, or the order is not a permutation of the example's dimensions.
    """

    hidden: int
    num_hidden: int
    features: int
    order: Sequence[int] | None = None
    activation: str = "swish"
    init_scale: float = 1.0
    num_frequencies: int = 0
    max_frequency: float = 1.0

    def __post_init__(self) -> None:
        if self.order is not None:
            self.order = _permutation(self.order)
        super().__post_init__()
        sizes = {name: getattr(self, name) for name in ("hidden", "num_hidden", "features")}
        require(sizes, sizes, lambda v: v >= 1, "to be at least 1")
        require_fourier_series(vars(self))
        choose("activation", self.activation, ACTIVATIONS)

    def dimension_order(self, num_dims: int) -> Int[np.ndarray, "d"]:
        """Flat index into an example of the dimension at each position of the order."""
        order = np.arange(num_dims) if self.order is None else np.asarray(self.order)
        if len(order) != num_dims:
            raise ValueError(
                f"order needs an entry for each of the {num_dims} dimensions; got {len(order)}"
            )
        return order

    def __call__(self, x: Float[Array, "b *d"], condition: Array | None = None) -> Array:
        return self.contexts(x, condition)

    def contexts(
        self,
        x: Float[Array, "b *d"],
        condition: Float[Array, "b e"] | None = None,
        *,
        dropout_rng: Rng | None = None,
    ) -> Float[Array, "b *d features"]:
        """Contexts of all dimensions in one pass; `dropout_rng` is ignored."""
        activation, x_flat = ACTIVATIONS[self.activation], x.reshape(x.shape[0], -1)
        num_dims = x_flat.shape[1]
        order, positions = self.dimension_order(num_dims), np.arange(num_dims)
        weights = self._weights(num_dims, condition)
        units = weights.degrees
        h = x_flat[:, order] @ _masked(weights.input_kernel, positions + 1, units)
        if weights.wave_kernel is not None:
            series = self._series(x_flat[:, order]).reshape(x.shape[0], -1)
            degrees = self._series_degrees(num_dims)
            h = h + series @ _masked(weights.wave_kernel, degrees, units)
        h = h + weights.hidden_biases[0][None]
        if condition is not None:
            h = h + condition @ weights.condition_kernel
        for kernel, bias in zip(weights.hidden_kernels, weights.hidden_biases[1:], strict=True):
            h = h + activation(h) @ _masked(kernel, units, units) + bias[None]
        kernel = _masked(weights.output_kernel, units, positions)
        c = activation(h) @ kernel.reshape(self.hidden, -1)
        c = c.reshape(-1, num_dims, self.features) + weights.output_bias[None]
        return c[:, np.argsort(order)].reshape(*x.shape, self.features)

    def empty(self, x_example: Float[Array, "b *d"]) -> MaskedCache:
        """Cache with which `advance` starts, for examples of the same shape and type."""
        dtype = jnp.promote_types(x_example.dtype, jnp.result_type(float))
        zeros = jnp.zeros((x_example.shape[0], self.hidden), dtype)
        return MaskedCache(zeros, (zeros,) * self.num_hidden)

    def advance(
        self,
        cache: MaskedCache,
        x: Float[Array, "b *d"],
        position: int | Int[Array, ""],
        condition: Float[Array, "b e"] | None = None,
    ) -> tuple[MaskedCache, Float[Array, "b features"]]:
        """Context of the dimension at `position`; call it for positions 0, 1, ... in turn.

        It reads only the dimension of x before `position`, and evaluates only the units that have
        just seen their last dimension: all positions together cost about one call of `contexts`.
        """
        activation, x_flat = ACTIVATIONS[self.activation], x.reshape(x.shape[0], -1)
        num_dims = x_flat.shape[1]
        weights = self._weights(num_dims, condition)
        units = jnp.asarray(weights.degrees)
        # Units of the slice that see more than is known hold no result until their turn comes.
        first = np.searchsorted(weights.degrees, np.arange(num_dims))
        start, width = jnp.asarray(first)[position], int(np.bincount(weights.degrees).max())
        take = lambda a: jax.lax.dynamic_slice_in_dim(a, start, width, axis=-1)
        sums = cache.sums + self._contribution(x_flat, position, weights).astype(cache.sums.dtype)
        h = take(sums) + take(weights.hidden_biases[0])[None]
        if condition is not None:
            h = h + condition @ take(weights.condition_kernel)
        activations = []
        for i, stored in enumerate(cache.activations):
            if i:
                kernel = _masked(take(weights.hidden_kernels[i - 1]), units, take(units))
                h = h + activations[-1] @ kernel + take(weights.hidden_biases[i])[None]
            new = activation(h).astype(stored.dtype)
            activations.append(jax.lax.dynamic_update_slice_in_dim(stored, new, start, axis=1))
        kernel = jnp.where((units <= position)[:, None], weights.output_kernel[:, position], 0)
        c = activations[-1] @ kernel + weights.output_bias[position][None]
        return MaskedCache(sums, tuple(activations)), c

    def _contribution(
        self, x_flat: Float[Array, "b d"], position: int | Int[Array, ""], weights: MaskedWeights
    ) -> Float[Array, "b hidden"]:
        """The share of the first layer from the dimension before `position`; 0 at position 0."""
        before = jnp.maximum(position - 1, 0)
        known = x_flat[:, jnp.asarray(self.dimension_order(x_flat.shape[1]))[before]]
        known = jnp.where(position > 0, known, jnp.zeros_like(known))
        sees = jnp.asarray(weights.degrees) > before
        share = known[:, None] * jnp.where(sees, weights.input_kernel[before], 0)[None]
        if weights.wave_kernel is None:
            return share
        # The cosines of position 0, which has no dimension before it, are not zero.
        sees = sees & (position > 0)
        kernels = weights.wave_kernel.reshape(x_flat.shape[1], -1, self.hidden)
        return share + self._series(known) @ jnp.where(sees, kernels[before], 0)

    def _series(self, x: Float[Array, "*n"]) -> Float[Array, "*n waves"]:
        """Sines and cosines of each value."""
        frequencies = series_frequencies(self.num_frequencies, self.max_frequency, x)
        return waves(frequencies * x[..., None])

    def _series_degrees(self, num_dims: int) -> Int[np.ndarray, "dw"]:
        """Degrees of the sines and cosines of all dimensions, those of the dimensions."""
        return np.repeat(np.arange(1, num_dims + 1), 2 * self.num_frequencies)

    @nn.compact
    def _weights(self, num_dims: int, condition: Array | None) -> MaskedWeights:
        if condition is None and self.has_variable("params", "condition_kernel"):
            raise ValueError("condition needs an array, as in initialisation; got None")
        inputs, positions = np.arange(1, num_dims + 1), np.arange(num_dims)
        # Without a condition, units that see no dimension would be constants.
        units = hidden_degrees(self.hidden, int(condition is None), num_dims - 1)

        def kernel(name: str, below: np.ndarray, above: np.ndarray, *features: int) -> Array:
            shape = (len(below), len(above), *features)
            init = _scaled_normal(below, above, self.init_scale if features else 1.0)
            return jnp.asarray(self.param(f"{name}_kernel", init, shape))

        def bias(name: str, *shape: int) -> Array:
            return jnp.asarray(self.param(f"{name}_bias", nn.initializers.zeros, shape))

        wave_kernel = condition_kernel = None
        if self.num_frequencies:
            wave_kernel = kernel("wave", self._series_degrees(num_dims), units)
        if condition is not None:  # whose entries all units may see
            always = np.zeros(condition.shape[1], int)
            condition_kernel = kernel("condition", always, units)
        return MaskedWeights(
            units,
            kernel("input", inputs, units),
            wave_kernel,
            condition_kernel,
            [kernel(f"hidden_{i}", units, units) for i in range(1, self.num_hidden)],
            [bias(f"hidden_{i}", self.hidden) for i in range(self.num_hidden)],
            kernel("output", units, positions, self.features),
            bias("output", num_dims, self.features),
        )


def hidden_degrees(hidden: int, lowest: int, highest: int) -> Int[np.ndarray, "hidden"]:
    """Ascending degrees of hidden units, spread evenly from `lowest` to `highest`.

    Every degree occurs if there are enough units. `highest` wins if it is below `lowest`.
    """
    lowest = min(lowest, highest)
    num_degrees = highest - lowest + 1
    if hidden >= num_degrees:
        return lowest + np.arange(hidden) * num_degrees // hidden
    return np.linspace(lowest, highest, hidden).round().astype(int)


def _masked(kernel: Float[Array, "i o *f"], below: Array, above: Array) -> Float[Array, "i o *f"]:
    """The kernel with zeros from units of degrees `below` to units of lower degrees `above`."""
    visible = below[:, None] <= above[None]
    return jnp.where(visible.reshape(visible.shape + (1,) * (kernel.ndim - 2)), kernel, 0)


def _scaled_normal(
    below: np.ndarray, above: np.ndarray, factor: float
) -> nn.initializers.Initializer:
    """Normal initializer of std factor / sqrt(number of units that the masks leave visible)."""
    num_visible = np.sum(below[:, None] <= above[None], axis=0)

    def init(rng: Array, shape: tuple[int, ...], dtype: Any = float) -> Array:
        std = factor / np.sqrt(np.maximum(num_visible, 1))
        scale = std.reshape((-1,) + (1,) * (len(shape) - 2))
        return jax.random.normal(rng, shape, dtype) * jnp.asarray(scale, dtype)[None]

    return init


def _permutation(order: Sequence[int]) -> tuple[int, ...]:
    """The order as a tuple. Raises: ValueError unless it has each of 0 .. len(order) - 1 once."""
    values = np.asarray(order).reshape(-1).tolist()
    missing = set(range(len(values))) - set(values)
    if missing:
        last, got = len(values) - 1, reprlib.repr(values)
        raise ValueError(
            f"order needs each of 0 .. {last} once; got {got}: {min(missing)} is missing"
        )
    return tuple(map(int, values))
