# SPDX-License-Identifier: Apache-2.0
"""How much memory does NCSNv2's training step need on one device, and do recomputed blocks help?

    python -m benchmarks.ncsnv2_memory [--config=ffhq] [--batch_size=4] [--remat 1 0]
        [--accumulation=1]

For `batch_size` images of a config of configs/ncsnv2, in `accumulation` parts one after the other:
what the forward pass leaves to the backward pass, by JAX; and of the compiled step, by XLA, the
arguments (state, averaged weights, moments of Adam, batch) and what it holds besides. Nothing is
computed and no data is read. XLA's numbers are of the backend that compiles: that for CPUs takes
recomputed blocks out of their place, and reports the same with and without.

On a CPU: see docs/speed.md.
"""

import argparse
import importlib
import time

import jax
import jax.numpy as jnp

from benchmarks.residuals import residual_bytes
from scorejax import systems
from scorejax.objectives.training_loss import make_loss_fn
from scorejax.systems import make_init
from scorejax.train.state import TrainState
from scorejax.train.step import make_train_step

GIB = 2**30


def measure(name: str, batch_size: int, remat: bool, accumulation: int) -> str:
    """One line on the step of a config."""
    config = importlib.import_module(f"configs.ncsnv2.{name}").get_config()
    config.remat = remat
    model = systems.load_model(config)
    shape, tx = model.data.shape, model.tx
    loss = make_loss_fn(model.example_loss, model.network.apply)
    step = make_train_step(loss, tx, ema_rate=config.ema_rate, accumulation=accumulation)
    init, rng = make_init(model.network, jnp.ones((1, *shape)), jnp.ones(1)), jax.random.key(0)
    state = jax.eval_shape(lambda rng: TrainState.create(*init(rng), tx), rng)
    batch = {"image": jax.ShapeDtypeStruct((batch_size, *shape), jnp.float32)}
    start = time.perf_counter()
    part = {"image": jax.ShapeDtypeStruct((batch_size // accumulation, *shape), jnp.float32)}
    kept = residual_bytes(loss, state, part, rng) / GIB
    compiled = jax.jit(step, donate_argnums=0).lower(state, batch, rng).compile()
    found, seconds = compiled.memory_analysis(), time.perf_counter() - start
    arguments, besides = found.argument_size_in_bytes / GIB, found.temp_size_in_bytes / GIB
    return (
        f"{name}, {batch_size} images, accumulation={accumulation}, remat={remat}: {kept:.2f} GiB "
        f"between passes; compiled in {seconds:.0f} s, {arguments:.2f} GiB of arguments, which are "
        f"donated, {besides:.2f} GiB besides, {arguments + besides:.2f} in all"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="ffhq")
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--remat", type=int, nargs="+", default=[1, 0])
    options = parser.parse_args()
    for remat in options.remat:
        print(
            measure(options.config, options.batch_size, bool(remat), options.accumulation),
            flush=True,
        )


if __name__ == "__main__":
    main()
