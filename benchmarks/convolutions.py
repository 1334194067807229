# SPDX-License-Identifier: Apache-2.0
"""How much of a training step on a CPU do convolutions take, by XLA and by PyTorch?

    python -m benchmarks.convolutions [--networks digits cifar] [--rounds=5]

Every 3x3 convolution of the network's forward pass, found by tracing it, is timed alone with both
its gradients: by XLA (Eigen) as our step has it, by PyTorch (oneDNN) in the faster of its two
memory layouts. Times of a shape are multiplied by how often it occurs, and the whole step stands
beside them. Both use two threads; turns alternate in one process, see `benchmarks/timing.py`.
"""

import argparse
import collections
import statistics
from collections.abc import Callable, Iterator

from benchmarks import timing  # first: it sets what JAX and PyTorch read as they start

# isort: split
import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax.extend.core import jaxprs_in_params

from benchmarks.pairs import SIZES, Size, flax_network, random_params, real_images
from benchmarks.train_step import our_turns, torch_turns
from scorejax.models.convolution import conv

Shape = tuple[int, ...]
Turn = Callable[[], object]
LAYOUTS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}


def convolutions(size: Size) -> dict[tuple[Shape, Shape], int]:
    """(shape of x, shape of the kernel) of the convolutions of stride 1: how often."""
    x = jnp.zeros((size.batch_size, *size.image_shape))
    network, label = flax_network(size), jnp.zeros(size.batch_size)
    forward = lambda x: network.init_with_output(jax.random.key(0), x, label)[0]
    found = collections.Counter()
    for equation in _equations(jax.make_jaxpr(forward)(x).jaxpr):
        if equation.primitive.name == "conv_nhwc" and equation.params["window"].stride == (1, 1):
            found[tuple(variable.aval.shape for variable in equation.invars)] += 1
    return dict(found)


def _equations(jaxpr) -> Iterator:
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from _equations(inner)


def our_turn(x: np.ndarray, kernel: np.ndarray) -> Turn:
    def loss(x, kernel):
        return jnp.sum(conv(x, kernel) ** 2)

    program = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(x, kernel).compile()
    return lambda: jax.block_until_ready(program(x, kernel))


def torch_turn(x: np.ndarray, kernel: np.ndarray, layout: torch.memory_format) -> Turn:
    given = [
        torch.from_numpy(array).permute(axes).contiguous(memory_format=layout).requires_grad_()
        for array, axes in ((x, (0, 3, 1, 2)), (kernel, (3, 2, 0, 1)))
    ]

    def turn() -> object:
        y = torch.nn.functional.conv2d(*given, padding=kernel.shape[0] // 2)
        return torch.autograd.grad(y.square().sum(), given)

    return turn


def measure(size: Size, rounds: int) -> None:
    rng = np.random.default_rng(0)
    ours, theirs = 0.0, 0.0
    print(f"\n{size}: seconds of each convolution with both gradients, ours and PyTorch's best")
    for shapes, count in convolutions(size).items():
        x, kernel = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
        turns = {"ours": our_turn(x, kernel)}
        turns |= {name: torch_turn(x, kernel, layout) for name, layout in LAYOUTS.items()}
        median = {
            name: statistics.median(taken)
            for name, taken in timing.compare(turns, rounds=rounds, calls=5).items()
        }
        best = min(median[name] for name in LAYOUTS)
        ours, theirs = ours + count * median["ours"], theirs + count * best
        print(
            f"  {count} x {shapes[0]} * {shapes[1]}: {median['ours']:.5f}  {best:.5f}", flush=True
        )
    print(f"  all of them: {ours:.4f}  {theirs:.4f}, ratio {theirs / ours:.2f}")
    params, images = random_params(size), real_images(size, size.batch_size)
    steps = our_turns(size, params, images)[0] | torch_turns(size, params, images)[0]
    steps = {name: steps[name] for name in ("ours", "PyTorch eager", "PyTorch channels-last")}
    times = timing.compare(steps, rounds=rounds, calls=2)
    timing.report("whole step", times, {}, ["ours"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=SIZES, default=["digits", "cifar"])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    for name in options.networks:
        measure(SIZES[name], options.rounds)


if __name__ == "__main__":
    main()
