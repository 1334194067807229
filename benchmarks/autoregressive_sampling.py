# SPDX-License-Identifier: Apache-2.0
"""Seconds a sample of a trained autoregressive model: with its cache, without, and by Jacobi.

    taskset -c 0 python -m benchmarks.autoregressive_sampling runs/digits_mixture runs/digits_scores

One batch is drawn in three ways. "cached" is the sampler "inverse_cdf"; "whole passes" the same
draws, where each dimension takes its context from a pass over the whole image; "jacobi" all
dimensions at once until none moves. The three draw the same samples, and the share of equal values
says so: grey levels can differ where a value is within rounding of a bound between two. Turns, and
ratios within a round, as in `benchmarks.timing`. "sweeps" is the mean number of Jacobi's sweeps,
and the largest, which the batch waits for.

Numbers: docs/speed.md, "Autoregressive sampling".
"""

import argparse
import dataclasses
import functools
import statistics
from collections.abc import Callable

from benchmarks.timing import Times, compare, ratio  # first, since it sets the threads

# isort: split
import jax
import numpy as np
from flax import linen as nn
from jaxtyping import Array

from scorejax import runs, systems
from scorejax.random import row_keys
from scorejax.typing import PyTree


class WithoutCache(nn.Module):
    """A trunk whose `advance` computes the contexts of all values anew."""

    trunk: nn.Module

    def contexts(self, *args: Array, **options: Array) -> Array:
        return self.trunk.contexts(*args, **options)

    def empty(self, x_example: Array) -> PyTree:
        return ()

    def advance(
        self, cache: PyTree, x: Array, position: Array, condition: Array | None = None
    ) -> tuple[PyTree, Array]:
        c = self.trunk.contexts(x, condition)
        c = c.reshape(len(x), -1, c.shape[-1])
        order = jax.numpy.asarray(self.trunk.dimension_order(c.shape[1]))
        return cache, c[:, order[position]]

    def dimension_order(self, num_dims: int) -> np.ndarray:
        return self.trunk.dimension_order(num_dims)


def ways(workdir: str) -> dict[str, Callable[[Array], dict[str, Array]]]:
    """Functions of keys (b,) that draw samples, by name."""
    run = runs.open(workdir)
    model = systems.load_model(run.config)
    params, state = run.variables
    network = model.network.clone(trunk=WithoutCache(model.network.trunk.clone()))
    whole = dataclasses.replace(model, network=network)
    nested = {**params, "trunk": {"trunk": params["trunk"]}}

    def way(draw: Callable, params: PyTree) -> Callable[[Array], dict[str, Array]]:
        return functools.partial(jax.jit(draw), (params, state))

    return {
        "cached": way(model.sampler("inverse_cdf"), params),
        "whole passes": way(whole.sampler("inverse_cdf"), nested),
        "jacobi": way(model.sampler("jacobi"), params),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdirs", nargs="+")
    parser.add_argument("--num", type=int, default=16, help="samples of a batch")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    keys = row_keys(jax.random.key(0), options.num)
    print("| run | way | seconds a sample | over cached | equal values | sweeps |")
    print("|---" * 6 + "|")
    for workdir in options.workdirs:
        drawing = ways(workdir)
        drawn = {name: jax.device_get(draw(keys)) for name, draw in drawing.items()}
        contenders = {
            name: lambda draw=draw: jax.block_until_ready(draw(keys))
            for name, draw in drawing.items()
        }
        times = compare(contenders, rounds=options.rounds, calls=1)
        show(workdir, drawn, times, options.num)


def show(workdir: str, drawn: dict[str, dict], times: Times, num: int) -> None:
    """Prints a row for each way."""
    reference = next(value for name, value in drawn["cached"].items() if name in ("image", "x"))
    for name, samples in drawn.items():
        x = next(value for key, value in samples.items() if key in ("image", "x"))
        equal = np.mean(np.abs(x - reference) < 1e-3)
        sweeps = samples.get("sweeps")
        swept = "" if sweeps is None else f"{sweeps.mean():.1f}, {sweeps.max()}"
        each = statistics.median(times[name]) / num
        over = ratio(times[name], times["cached"])
        print(f"| {workdir} | {name} | {each:.4f} | {over} | {equal:.4f} | {swept} |", flush=True)


if __name__ == "__main__":
    main()
