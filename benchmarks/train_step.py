# SPDX-License-Identifier: Apache-2.0
"""How fast is a training step on a CPU, compared with PyTorch?

    python -m benchmarks.train_step [--networks digits cifar ncsnpp] [--rounds=15]

One update of a small DDPM++ or NCSN++ (Adam, clipping, moving average) by our step, one at a time
and ten scanned in one call, against a PyTorch twin with the same weights and batch: eager, eager
with channels-last memory, and torch.compile. Both use two threads; turns alternate in one process,
see `benchmarks/timing.py`.

On 2 cores of an AMD EPYC: see docs/speed.md.
"""

import argparse
from collections.abc import Callable

from benchmarks import timing  # first: it sets what JAX and PyTorch read as they start

# isort: split
import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks import torch_twin
from benchmarks.pairs import (
    CLIP_NORM,
    EMA_RATE,
    LEARNING_RATE,
    SIZES,
    Size,
    our_step,
    random_params,
    real_images,
    twin,
)
from scorejax.train.state import TrainState
from scorejax.train.step import TrainStep, scan_steps
from scorejax.typing import Params

SCANNED = 10
OURS = ("ours", f"ours, {SCANNED} scanned")

Turn = Callable[[], object]


def our_turns(size: Size, params: Params, images: np.ndarray) -> tuple[dict[str, Turn], dict]:
    """Our contenders, and the seconds that each took to compile."""
    step, create = our_step(size)
    batch = {"image": jnp.asarray(images)}
    batches = {"image": jnp.broadcast_to(batch["image"], (SCANNED, *images.shape))}
    turns, compile_times = {}, {}
    for name, function, given in zip(OURS, (step, scan_steps(step)), (batch, batches), strict=True):
        turn = _Repeated(function, create(params), given)
        turns[name] = turn
        compile_times[name] = timing.seconds(turn.compile)
    return turns, compile_times


class _Repeated:
    """A step that takes its own last state, which it may overwrite, and blocks."""

    def __init__(self, step: TrainStep, state: TrainState, batch: dict):
        self.step, self.state, self.batch = jax.jit(step, donate_argnums=0), state, batch
        self.rng = jax.random.key(0)

    def compile(self) -> None:
        self.step = self.step.lower(self.state, self.batch, self.rng).compile()

    def __call__(self) -> None:
        self.state, metrics = self.step(self.state, self.batch, self.rng)
        jax.block_until_ready((self.state, metrics))


def torch_turns(size: Size, params: Params, images: np.ndarray) -> tuple[dict[str, Turn], dict]:
    """PyTorch's contenders, and the seconds that torch.compile took, its cache being empty."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2)
    layouts = {
        "PyTorch eager": torch.contiguous_format,
        "PyTorch channels-last": torch.channels_last,
        "torch.compile": torch.contiguous_format,
        "torch.compile channels-last": torch.channels_last,
    }
    turns, compile_times = {}, {}
    for name, layout in layouts.items():
        network = twin(size, params).to(memory_format=layout)
        if name.startswith("torch.compile"):
            network = torch.compile(network)
        step = torch_twin.make_step(
            network, learning_rate=LEARNING_RATE, clip_norm=CLIP_NORM, ema_rate=EMA_RATE
        )
        given = x.contiguous(memory_format=layout)
        turns[name] = lambda step=step, given=given: step(given)
        if name.startswith("torch.compile"):
            compile_times[name] = timing.seconds(turns[name])
    return turns, compile_times


def measure(size: Size, rounds: int) -> None:
    params = random_params(size)
    images = real_images(size, size.batch_size)
    ours, our_compile_times = our_turns(size, params, images)
    theirs, their_compile_times = torch_turns(size, params, images)
    times = timing.compare(ours | theirs, rounds=rounds, calls=3)
    times[OURS[1]] = [taken / SCANNED for taken in times[OURS[1]]]
    notes = {
        name: f"compiled in {taken:.0f} s"
        for name, taken in (our_compile_times | their_compile_times).items()
    }
    timing.report(f"training step, {size}, seconds a step", times, notes, OURS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    for name in options.networks:
        measure(SIZES[name], options.rounds)


if __name__ == "__main__":
    main()
