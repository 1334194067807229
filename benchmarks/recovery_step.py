# SPDX-License-Identifier: Apache-2.0
"""What does a training step of recovery likelihood cost, beside PyTorch, and what is in it?

    python -m benchmarks.recovery_step [--sizes 8 16] [--num_steps=10] [--rounds=7] [--no-compile]
    python -m benchmarks.recovery_step --share
    python -m benchmarks.recovery_step --memory

One update of `systems.recovery_ebm` (diffusion, K Langevin steps, loss, Keras' Adam, average, one
power iteration) beside a PyTorch twin of the same weights: with u moved at each call of the network
as in the published code; and with kernels and embedding held within a step, eager, channels-last
and under torch.compile. First the twin is held, in float64, to the official F and gradients, and to
our chain, gradients of the loss and u. One core, processor time, turns in one process.

Networks of widths (1, 2) and two blocks, batch 64, K = 10, on one core of an Intel Xeon with
AVX-512 that is shared with other programs (load 5), JAX 0.10.2, PyTorch 2.14.1. Seconds of our
step, and PyTorch's time over ours: median and range of 15 rounds (8 px), of five (16 px), and of
seven for torch.compile at 8 px, in a run at load 9.

                          8 px, nf 16          16 px, nf 32
    scorejax              0.084 s              0.84 s
    u moved at each call  1.39 [1.32, 1.89]    1.10 [0.75, 1.12]
    kernels held          1.23 [0.73, 1.73]    0.94 [0.71, 1.00]
      channels-last       1.21 [0.98, 1.73]    0.91 [0.69, 0.98]
      torch.compile       2.37 [1.70, 2.67]    1.67 [1.62, 2.09]

At 8 px these differ from run to run: the medians of five runs are 1.29 to 1.64 with u moved at each
call, and 1.39, 1.23, 1.21, 1.11 and, of three rounds only, 0.78 with kernels held.

The chain's share of our step, by the times with K = 1 and 30 (five rounds, load 6):

                          8 px                 16 px
    a Langevin step       0.007 s              0.07 s
    all else              0.035 s              0.24 s
    K = 10, K = 30        68 %, 87 %           77 %, 90 %

At 16 px our chain takes as long as PyTorch's (1.00 [0.93, 1.08]), and our gradient of the loss 1.3
times as long. Gradients in 3 x 3 kernels alone take 1.3 times as long as PyTorch's; as matrix
products they would take twice as long as they do. XLA moves the power iterations out of the chain's
loop by itself: with kernels normalised beforehand by hand, and with one call on positives and
negatives, a step changes by 1 %, less than the noise. Drawing the noise is 2 % of a chain at 8 px.

The forward pass of the CIFAR-10 network on 8 images leaves 636 MiB to the backward pass, 107 with
`remat`, for K = 2 and for K = 30 alike.
"""

# ruff: noqa: E402  (the libraries read these settings as they start)

import argparse
import os
import statistics
import time
from collections.abc import Callable

os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-1:])

from benchmarks import timing  # first: it sets what JAX and PyTorch read as they start

# isort: split
import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks import recovery_torch
from benchmarks.recovery_checks import require_official, require_same_step
from benchmarks.residuals import residual_bytes
from configs.recovery_ebm import cifar10, digits
from scorejax.systems.recovery_ebm import make_model
from scorejax.systems.recovery_ebm.model import RecoveryModel
from scorejax.systems.recovery_ebm.training import make_loss
from scorejax.train.initial import make_init
from scorejax.train.state import TrainState
from scorejax.train.step import make_train_step

BATCH, EMA_RATE, OURS = 64, 0.999, "scorejax"
WIDTHS = {8: 16, 16: 32}
"""Image size -> nf of a network of two levels (1, 2) of two blocks."""
Turn = Callable[[], object]


def model_of(size: int, num_steps: int) -> RecoveryModel:
    """Our model of grey images of that size."""
    config = digits.get_config()
    config.image_size, config.nf, config.num_chain_steps = size, WIDTHS[size], num_steps
    config.ch_mult, config.num_res_blocks = (1, 2), 2
    return make_model(config)


def first_state(model: RecoveryModel) -> TrainState:
    """The state with parameters moved by N(0, 0.05^2), so that none is zero."""
    init = make_init(model.network, np.ones((1, *model.data.shape), np.float32), np.zeros(1, int))
    params, model_state = init(jax.random.key(0))
    generator = np.random.default_rng(0)
    shift = lambda leaf: leaf + 0.05 * generator.normal(size=leaf.shape).astype(np.float32)
    return TrainState.create(jax.tree.map(shift, params), model_state, model.tx)


def pictures(model: RecoveryModel) -> np.ndarray:
    """(b, h, w, c) in [-1, 1]."""
    generator = np.random.default_rng(1)
    return generator.uniform(-1, 1, (BATCH, *model.data.shape)).astype(np.float32)


class OurStep:
    """Our training step, compiled, which overwrites its last state."""

    def __init__(self, model: RecoveryModel):
        step = make_train_step(make_loss(model), model.tx, ema_rate=EMA_RATE)
        self.state, self.rng = first_state(model), jax.random.key(1)
        self.batch = {"image": jnp.asarray(pictures(model))}
        jitted = jax.jit(step, donate_argnums=0)
        self.compiled = jitted.lower(self.state, self.batch, self.rng).compile()

    def __call__(self) -> None:
        self.state, metrics = self.compiled(self.state, self.batch, self.rng)
        jax.block_until_ready((self.state, metrics))


def channels_last(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    layout = lambda a: torch.channels_last if a.ndim == 4 else torch.contiguous_format
    return {
        name: a.detach().clone(memory_format=layout(a)).requires_grad_()
        for name, a in weights.items()
    }


def torch_turns(model: RecoveryModel, *, compiled: bool) -> dict[str, Turn]:
    """PyTorch's contenders."""
    state, body = first_state(model), recovery_torch.make_body(model.network)
    x = torch.from_numpy(pictures(model)).permute(0, 3, 1, 2)

    def turn(body: recovery_torch.Body, *, held: bool, last: bool = False) -> Turn:
        weights, u = recovery_torch.copied(state.params, state.model_state["spectral"])
        layout = torch.channels_last if last else torch.contiguous_format
        step = recovery_torch.Step(
            body, channels_last(weights) if last else weights, u, model.levels,
            num_steps=model.num_chain_steps, held=held,
        )  # fmt: skip
        given = x.contiguous(memory_format=layout)
        return lambda: step(given)

    turns = {
        "PyTorch, u moved at each call": turn(body, held=False),
        "PyTorch, kernels held": turn(body, held=True),
        "PyTorch, kernels held, channels-last": turn(body, held=True, last=True),
    }
    if compiled:
        turns["torch.compile, kernels held"] = turn(torch.compile(body), held=True)
    return turns


def measure(size: int, num_steps: int, rounds: int, *, compiled: bool) -> None:
    """Prints processor seconds a step of every contender."""
    model = model_of(size, num_steps)
    require_same_step(model, first_state(model), pictures(model)[:12])
    start = time.perf_counter()
    turns = {OURS: OurStep(model)}
    notes = {OURS: f"traced and compiled in {time.perf_counter() - start:.0f} s"}
    turns |= torch_turns(model, compiled=compiled)
    times = timing.compare(turns, rounds=rounds, calls=1, clock=time.process_time)
    setting = f"{size} px, nf {WIDTHS[size]}, batch {BATCH}, K = {num_steps}"
    timing.report(f"a step, {setting}; load {os.getloadavg()[0]:.1f}", times, notes, [OURS])


def measure_share(size: int, rounds: int) -> None:
    """Prints the seconds of a Langevin step and their share of a step of training."""
    few, many = 1, 30
    models = {k: model_of(size, k) for k in (few, 10, many)}
    times = timing.compare(
        {f"K = {k}": OurStep(model) for k, model in models.items()},
        rounds=rounds, calls=1, clock=time.process_time,
    )  # fmt: skip
    timing.report(f"{size} px; load {os.getloadavg()[0]:.1f}", times, {}, [f"K = {few}"])
    rows = list(zip(times[f"K = {few}"], times[f"K = {many}"], strict=True))
    a_step = [(last - first) / (many - few) for first, last in rows]
    rest = [first - few * step for (first, _), step in zip(rows, a_step, strict=True)]
    for k in models:
        shares = [1 - b / taken for b, taken in zip(rest, times[f"K = {k}"], strict=True)]
        print(f"K = {k}: chain {100 * statistics.median(shares):.0f} % of a step")
    step, others = statistics.median(a_step), statistics.median(rest)
    print(f"a Langevin step {step:.4f} s, all else {others:.4f} s")


def measure_memory(batch_size: int = 8) -> None:
    """Prints what the forward pass of the published CIFAR-10 network leaves to the backward."""
    for remat in (False, True):
        for num_steps in (2, 30):
            config = cifar10.get_config()
            config.remat, config.num_chain_steps = remat, num_steps
            model = make_model(config)
            init = make_init(
                model.network, np.ones((1, *model.data.shape), np.float32), np.zeros(1, int)
            )
            create = lambda rng, init=init, model=model: TrainState.create(*init(rng), model.tx)
            state = jax.eval_shape(create, jax.random.key(0))
            shape = jax.ShapeDtypeStruct((batch_size, *model.data.shape), jnp.float32)
            kept = residual_bytes(make_loss(model), state, {"image": shape}, jax.random.key(0))
            print(
                f"CIFAR-10, {batch_size} images, remat={remat}, K = {num_steps}: "
                f"{kept / 2**20:.1f} MiB between passes",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", type=int, choices=WIDTHS, default=list(WIDTHS))
    parser.add_argument("--num_steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-compile", dest="compiled", action="store_false")
    parser.add_argument("--share", action="store_true", help="of chains in our step, instead")
    parser.add_argument("--memory", action="store_true", help="between passes, instead")
    options = parser.parse_args()
    if options.memory:
        return measure_memory()
    if options.share:
        for size in options.sizes:
            measure_share(size, options.rounds)
        return None
    require_official()
    for size in options.sizes:
        measure(size, options.num_steps, options.rounds, compiled=options.compiled)
    return None


if __name__ == "__main__":
    main()
