# SPDX-License-Identifier: Apache-2.0
"""What does a training step cost by each way of score matching, in time and in memory?

    python -m benchmarks.score_matching [--networks mlp energy_resnet ncsn] [--no-torch]

One update by Adam. Of an energy: the dense Hessian where it fits, sliced score matching by reverse
mode over reverse mode (as the papers' code does), by forward mode over reverse (`jvp` of `grad`),
over forward (`jvp` of `jvp`, the library's) and by Taylor mode (`jet`), its variance-reduced form,
denoising, and the finite differences; PyTorch's double backward and differences of the same
weights. Of the score network of NCSN: the exact forms and the differences, each variance-reduced,
and denoising, here and in PyTorch.
Turns alternate in one process, see `benchmarks/timing.py`; the memory is what XLA's compiler sets
aside for temporaries beside parameters and data (no such number of PyTorch).
Results: docs/papers/fd_score_matching.md.
"""

import argparse
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks import timing  # first: it sets what JAX and PyTorch read as they start

# isort: split
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import jet

from scorejax.energies import score_of
from scorejax.models.energy_resnet import EnergyResNet
from scorejax.models.refinenet import NCSN
from scorejax.numerics import sum_except_batch
from scorejax.objectives import finite_difference as fd
from scorejax.objectives import sliced
from scorejax.objectives.denoising import energy_denoising, half_sum
from scorejax.objectives.directions import draw_directions, sphere

SIGMA, EPS, LEARNING_RATE = 0.3, 0.1, 1e-4
REFERENCES = ("FD-SSM", "SSM, forward over forward")
SCORE_REFERENCES = ("FD-SSM-VR", "SSM-VR, forward mode")
NCSN_FEATURES = 32  # a quarter of the published width
RESNET = {"features": 16, "multipliers": (2, 4, 8), "num_blocks": 2}
LARGEST_DENSE = 64
# What `jet` raises without a rule for an operation: our convolution, and softplus.
TAYLOR_MODE_LACKS = (NotImplementedError, KeyError, jax.errors.UnexpectedTracerError)
WIDTHS = (512, 512, 512)

Objective = Callable[..., jax.Array]


class Network(NamedTuple):
    """A module, the shape of its data, its objectives, two to compare with; a label is level 0."""

    module: nn.Module
    shape: tuple[int, ...]
    objectives: dict[str, Objective]
    references: tuple[str, str]
    labelled: bool = False


class MLP(nn.Module):
    """Hyperbolic tangents and 0.15 |x|^2: an energy."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        h = x
        for i, width in enumerate(self.widths):
            h = jnp.tanh(nn.Dense(width, name=f"linear_{i}")(h))
        energy = nn.Dense(1, name=f"linear_{len(self.widths)}")(h)[:, 0]
        return energy + 0.15 * jnp.sum(x**2, axis=1)


def reverse_over_reverse(energy, rng, x):
    """SSM as it is usually written."""
    u = draw_directions(sphere, rng, x, 1)[0]
    slope = lambda x: sum_except_batch(score_of(energy)(x) * u)
    hessian_u = jax.grad(lambda x: jnp.sum(slope(x)))(x)
    return sum_except_batch(hessian_u * u) + slope(x) ** 2 / 2


def forward_over_reverse(energy, rng, x):
    """SSM by one `jvp` of the gradient."""
    return sliced.score_sliced_score_matching(score_of(energy), rng, x)


def taylor_mode(energy, rng, x):
    """SSM by the two first coefficients along the line, in one pass."""
    u = draw_directions(sphere, rng, x, 1)[0]
    _, (first, second) = jet.jet(lambda x: -energy(x), (x,), ((u, jnp.zeros_like(u)),))
    return second + first**2 / 2


def score_reverse(score, rng, x):
    """SSM-VR of a score network by a vector-Jacobian product."""
    u = draw_directions(sphere, rng, x, 1)[0]
    s, pull = jax.vjp(score, x)
    dim = math.prod(x.shape[1:])
    return dim * sum_except_batch(pull(u)[0] * u) + half_sum(s**2)


def score_denoising(score, rng, x):
    noise = jax.random.normal(rng, x.shape)
    return half_sum((score(x + SIGMA * noise) + noise / SIGMA) ** 2)


ENERGY = {
    "SM, dense Hessian": sliced.exact_score_matching,
    "SSM, reverse over reverse": reverse_over_reverse,
    "SSM, forward over reverse": forward_over_reverse,
    "SSM, forward over forward": sliced.sliced_score_matching,
    "SSM, Taylor mode": taylor_mode,
    "SSM-VR": sliced.sliced_score_matching_vr,
    "FD-SSM": functools.partial(fd.fd_sliced, eps=EPS),
    "DSM": functools.partial(energy_denoising, sigma=SIGMA),
    "FD-DSM": functools.partial(fd.fd_denoising, sigma=SIGMA, eps=EPS),
}
SCORE = {
    "SSM-VR, reverse mode": score_reverse,
    "SSM-VR, forward mode": sliced.score_sliced_score_matching_vr,
    "FD-SSM-VR": functools.partial(fd.fd_sliced_vr, eps=EPS),
    "DSM": score_denoising,
}
NETWORKS = {
    "mlp": lambda: Network(MLP(WIDTHS), (128, 64), ENERGY, REFERENCES),
    "energy_resnet": lambda: Network(EnergyResNet(**RESNET), (16, 32, 32, 3), ENERGY, REFERENCES),
    "ncsn": lambda: Network(NCSN(NCSN_FEATURES), (8, 32, 32, 3), SCORE, SCORE_REFERENCES, True),
}


def apply(network: Network, params: Any, x: jax.Array) -> jax.Array:
    """The energy or the score of x, at level 0 if there are levels."""
    return network.module.apply({"params": params}, x, *level(network, x))


def level(network: Network, x: jax.Array) -> tuple[jax.Array, ...]:
    """What the network is given beside x."""
    return (jnp.zeros(len(x), jnp.int32),) if network.labelled else ()


class Turn:
    """A compiled step that takes its own last state, which it may overwrite, and blocks."""

    def __init__(self, network: Network, objective: Objective, params: Any, x: jax.Array):
        tx = optax.adam(LEARNING_RATE)

        def loss(params, rng, x):
            return jnp.mean(objective(functools.partial(apply, network, params), rng, x))

        def step(params, state, rng, x):
            updates, state = tx.update(jax.grad(loss)(params, rng, x), state)
            return optax.apply_updates(params, updates), state

        self.params, self.x = jax.tree.map(jnp.copy, params), x
        self.state, self.rng = tx.init(params), jax.random.key(0)
        jitted = jax.jit(step, donate_argnums=(0, 1))
        self.step = jitted.lower(self.params, self.state, self.rng, x).compile()

    @property
    def megabytes(self) -> float:
        return self.step.memory_analysis().temp_size_in_bytes / 1e6

    def __call__(self) -> None:
        self.params, self.state = self.step(self.params, self.state, self.rng, self.x)
        jax.block_until_ready(self.params)


def our_turns(network: Network, params: Any, x: jax.Array) -> dict[str, Turn]:
    turns = {}
    for name, objective in network.objectives.items():
        if objective is sliced.exact_score_matching and math.prod(x.shape[1:]) > LARGEST_DENSE:
            print(f"{name}: left out, D = {math.prod(x.shape[1:])}", flush=True)
            continue
        try:
            turns[name] = Turn(network, objective, params, x)
        except TAYLOR_MODE_LACKS as error:
            print(f"{name}: left out, {type(error).__name__}", flush=True)
    return turns


def torch_objectives(labelled: bool) -> dict[str, Callable]:
    """Of a score network, whose level is labelled, or of an energy."""
    from benchmarks import score_matching_torch as twins

    if labelled:
        return {
            "SSM-VR": twins.score_ssm_vr,
            "FD-SSM-VR": functools.partial(twins.score_fd_ssm_vr, eps=EPS),
            "DSM": functools.partial(twins.score_dsm, sigma=SIGMA),
        }
    return {
        "SSM": twins.ssm,
        "SSM-VR": twins.ssm_vr,
        "FD-SSM": functools.partial(twins.fd_ssm, eps=EPS),
        "DSM": functools.partial(twins.dsm, sigma=SIGMA),
        "FD-DSM": functools.partial(twins.fd_dsm, sigma=SIGMA, eps=EPS),
    }


def torch_turns(name: str, params: Any, x: np.ndarray) -> dict[str, Callable[[], None]]:
    """The same steps in PyTorch. Raises: AssertionError unless the networks compute the same."""
    import torch

    from benchmarks import score_matching_torch as twins
    from benchmarks.torch_refinenet import TorchNCSN
    from benchmarks.torch_twin import require_same

    make = {
        "mlp": lambda: twins.MLP((x.shape[1], *WIDTHS)),
        "energy_resnet": lambda: twins.EnergyResNet(**RESNET),
        "ncsn": lambda: TorchNCSN(NCSN_FEATURES, x.shape[-1]),
    }
    channels_first = lambda x: x.transpose(0, 3, 1, 2).copy() if x.ndim == 4 else x
    ours = NETWORKS[name]()
    given, expected = torch.from_numpy(channels_first(x)), np.asarray(apply(ours, params, x))

    def bound(network):
        zeros = lambda x: torch.zeros(len(x), dtype=torch.long)
        return (lambda x: network(x, zeros(x))) if ours.labelled else network

    turns = {}
    for kind, objective in torch_objectives(ours.labelled).items():
        network = make[name]()
        twins.copy_weights(params, network)
        with torch.no_grad():
            require_same(channels_first(expected), bound(network)(given))
        of_network = lambda network, x, objective=objective: objective(bound(network), x)
        step = twins.make_step(network, of_network, LEARNING_RATE)
        turns[f"PyTorch {kind}"] = functools.partial(step, given)
    return turns


def measure(name: str, rounds: int, calls: int, torch: bool) -> None:
    network, rng = NETWORKS[name](), jax.random.key(0)
    x = np.random.default_rng(0).normal(0.5, 0.3, network.shape).astype(np.float32)
    params = jax.jit(network.module.init)(rng, x, *level(network, x))["params"]
    turns = our_turns(network, params, jnp.asarray(x))
    notes = {kind: f"{turn.megabytes:8.1f} MB" for kind, turn in turns.items()}
    contenders = turns | (torch_turns(name, params, x) if torch else {})
    times = timing.compare(contenders, rounds=rounds, calls=calls)
    title = f"{name}, batch {network.shape[0]}, data {network.shape[1:]}, seconds a training step"
    timing.report(title, times, notes, network.references)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--calls", type=int, default=3)
    parser.add_argument("--no-torch", action="store_true")
    options = parser.parse_args()
    for name in options.networks:
        measure(name, options.rounds, options.calls, not options.no_torch)


if __name__ == "__main__":
    main()
