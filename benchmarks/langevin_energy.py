# SPDX-License-Identifier: Apache-2.0
"""How many Langevin steps a second on an energy of the plane, compared with torchebm?

    python -m benchmarks.langevin_energy [--activations silu leaky_relu tanh softplus] [--rounds=9]

1024 chains on an MLP 2-128-128-1, 200 steps a call. Ours is `samplers.tempered_langevin`, with one
key and with a key for each chain, as commands draw. torchebm's is `LangevinDynamics`, on the
network and on it under torch.compile. The weights, the starts and the step size are the same, and
so are the chains without noise. All take turns on one core of one process and are charged processor
time.

XLA_FLAGS=--xla_cpu_prefer_vector_width=512 is set unless XLA_FLAGS is. The flag of our commands,
--xla_cpu_experimental_ynn_fusion_type=dot, is for convolutions; these products are slower with it.

One core of an Intel Xeon with AVX-512, shared with other programs (load 2 to 4), JAX 0.10.2,
PyTorch 2.14.1, torchebm 0.8.9. Steps a second, and torchebm's time over ours: median and range of
seven rounds; in the last column with the flag of our commands, of five rounds at a load of 4.

    activation   scorejax   torchebm   ratio              torch.compile   with ...=dot
    leaky ReLU       1989        751   2.60 [2.53, 2.92]            188   1.93 [1.30, 2.70]
    tanh             1794        777   2.30 [2.21, 2.52]            486
    SiLU             1563        731   2.11 [2.08, 2.22]            543   1.82 [1.41, 1.92]
    softplus          687        544   1.30 [1.09, 1.79]            432

A key for each chain costs 2 to 5 % more. The two 128 x 128 products alone take 0.42 ms of the 0.65
of a step with SiLU, and the noise takes 0.02 ms. `jax.nn.softplus` is `logaddexp`, whose derivative
is as expensive as that: with the sigmoid for a derivative (jax.custom_jvp) there are 1290 steps.
A gradient by hand, 512 chains at a time, gains 10 % on SiLU.
"""

# ruff: noqa: E402  (the libraries read these settings as they start)

import argparse
import functools
import itertools
import os
import statistics
import time
from collections.abc import Callable

os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-1:])
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_prefer_vector_width=512")

from benchmarks import timing  # first: it sets what JAX and PyTorch read as they start

# isort: split
import jax
import jax.numpy as jnp
import numpy as np
import torch
from jaxtyping import Array

from benchmarks.torch_twin import require_same
from scorejax.energies import Energy
from scorejax.random import row_keys
from scorejax.samplers.tempered_langevin import tempered_langevin

try:
    from torchebm.core import BaseModel
    from torchebm.samplers import LangevinDynamics
except ImportError as error:
    raise SystemExit("torchebm 0.8.9 is missing: pip install -e '.[bench]'") from error

WIDTHS, NUM_CHAINS, NUM_STEPS, ETA = (2, 128, 128, 1), 1024, 200, 1e-3
"""x <- x - ETA grad E + sqrt(2 ETA) z."""
STEP_SIZE = (2 * ETA) ** 0.5
ACTIVATIONS = {
    "silu": (jax.nn.silu, torch.nn.SiLU),
    "leaky_relu": (
        lambda a: jax.nn.leaky_relu(a, 0.2),
        functools.partial(torch.nn.LeakyReLU, 0.2),
    ),
    "tanh": (jnp.tanh, torch.nn.Tanh),
    "softplus": (jax.nn.softplus, torch.nn.Softplus),
}
OURS = "scorejax"
Layers = list[tuple[np.ndarray, np.ndarray]]


class TorchEnergy(BaseModel):
    """The MLP with these layers, as a model of torchebm."""

    def __init__(self, layers: Layers, activation: Callable[[], torch.nn.Module]):
        super().__init__()
        modules = []
        for kernel, bias in layers:
            linear = torch.nn.Linear(*kernel.shape)
            linear.weight.data = torch.tensor(kernel.T).contiguous()
            linear.bias.data = torch.tensor(bias)
            modules += [linear, activation()]
        self.network = torch.nn.Sequential(*modules[:-1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x)[:, 0]


def our_energy(layers: Layers, activation: Callable[[Array], Array]) -> Energy:
    """The same as a function of x (b, 2)."""

    def energy(x: Array) -> Array:
        for kernel, bias in layers[:-1]:
            x = activation(x @ kernel + bias)
        kernel, bias = layers[-1]
        return (x @ kernel + bias)[:, 0]

    return energy


def random_layers(generator: np.random.Generator) -> Layers:
    """Kernels N(0, 1 / inputs) and biases N(0, 0.01)."""
    return [
        (
            (generator.normal(size=(before, after)) / before**0.5).astype(np.float32),
            (0.1 * generator.normal(size=after)).astype(np.float32),
        )
        for before, after in itertools.pairwise(WIDTHS)
    ]


def our_chains(rng: Array, energy: Energy, x: Array, temperature: float = 1.0) -> Array:
    hot = np.full(NUM_STEPS, temperature)
    return tempered_langevin(rng, energy, x, step_size=STEP_SIZE, temperatures=hot)[-1]


def torchebm_chains(
    model: BaseModel, x: torch.Tensor, noise_scale: float = 1.0
) -> Callable[[], torch.Tensor]:
    """Returns a call that runs the chains."""
    options = {"step_size": ETA, "noise_scale": noise_scale, "device": torch.device("cpu")}
    sampler = LangevinDynamics(model, **options)
    return lambda: sampler.sample(x=x, n_steps=NUM_STEPS)


def measure(name: str, rounds: int) -> None:
    """Reports seconds and steps per second of all contenders, on one activation."""
    generator = np.random.default_rng(0)
    layers, (ours, theirs) = random_layers(generator), ACTIVATIONS[name]
    x = generator.normal(size=(NUM_CHAINS, 2)).astype(np.float32)
    energy, start = our_energy(layers, ours), torch.from_numpy(x)
    model, traced = TorchEnergy(layers, theirs), TorchEnergy(layers, theirs)
    traced.forward = torch.compile(traced.forward)
    # At no temperature both are the same descent; torchebm asks for some noise.
    frozen = our_chains(jax.random.key(0), energy, x, temperature=0.0)
    require_same(frozen, torchebm_chains(model, start, noise_scale=1e-9)())

    chains = jax.jit(lambda rng: our_chains(rng, energy, x))
    key, keys = jax.random.key(1), row_keys(jax.random.key(1), NUM_CHAINS)
    turns = {
        OURS: lambda: jax.block_until_ready(chains(key)),
        "scorejax, a key for each chain": lambda: jax.block_until_ready(chains(keys)),
        "torchebm": torchebm_chains(model, start),
        "torchebm, torch.compile": torchebm_chains(traced, start),
    }
    times = timing.compare(turns, rounds=rounds, calls=1, clock=time.process_time)
    per_step = {label: [t / NUM_STEPS for t in taken] for label, taken in times.items()}
    rates = {label: f"{1 / statistics.median(t):.0f} steps/s" for label, t in per_step.items()}
    setting = f"load {os.getloadavg()[0]:.1f}, XLA_FLAGS={os.environ['XLA_FLAGS']}"
    timing.report(f"a step of {NUM_CHAINS} chains, {name}; {setting}", per_step, rates, [OURS])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--activations", nargs="+", choices=ACTIVATIONS, default=list(ACTIVATIONS))
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    for name in options.activations:
        measure(name, options.rounds)


if __name__ == "__main__":
    main()
