# SPDX-License-Identifier: Apache-2.0
"""What does a step of annealed Langevin dynamics cost, compared with PyTorch's loop?

    python -m benchmarks.langevin [--networks digits cifar] [--rounds=5]

The chain of CIFAR-10 (arXiv:2006.09011): 232 noise levels from 50 to 0.01, five steps each, 1160 in
all and one last denoising step, by NCSNv2's network with 16 features for 16 images of 8 x 8 pixels,
and with 32 for four of 32 x 32 in colour. Ours is one compiled scan; PyTorch's loop is eager,
channels-last and compiled. The weights are the same, and are drawn, not trained: they decide
nothing of the time. Both sides use two threads; turns alternate in one process, see
`benchmarks/timing.py`.

On 2 cores of an AMD EPYC: see docs/speed.md.
"""

import argparse
from typing import NamedTuple

from benchmarks import timing  # first: it sets what JAX and PyTorch read as they start

# isort: split
import jax
import numpy as np
import torch

from benchmarks.score_matching_torch import copy_weights
from benchmarks.torch_refinenet import TorchNCSNv2, annealed_langevin
from benchmarks.torch_twin import require_same
from scorejax.models.refinenet import NCSNv2
from scorejax.parameterize import divided_by_sigma
from scorejax.samplers import langevin
from scorejax.schedules import geometric_sigmas

STEPS_PER_LEVEL, STEP_SIZE = 5, 6.2e-6
OURS = "scorejax"


class Size(NamedTuple):
    """A network and the images that it draws."""

    features: int
    shape: tuple[int, int, int, int]


SIZES = {"digits": Size(16, (16, 8, 8, 1)), "cifar": Size(32, (4, 32, 32, 3))}


def measure(name: str, rounds: int, num_scales: int) -> None:
    """Times the chain by all contenders, and reports seconds per step."""
    sigmas = geometric_sigmas(0.01, 50.0, num_scales)
    num_steps = len(sigmas) * STEPS_PER_LEVEL
    size, network = SIZES[name], NCSNv2(SIZES[name].features)
    x = np.random.default_rng(0).normal(size=size.shape).astype(np.float32)
    params = jax.jit(network.init)(jax.random.key(0), x, np.zeros(len(x)))["params"]
    twin = checked_twin(size, network, params, x)

    options = {"step_size": STEP_SIZE, "steps_per_level": STEPS_PER_LEVEL}
    score_fn = divided_by_sigma(lambda x, sigma: network.apply({"params": params}, x, sigma))
    chain = jax.jit(
        lambda rng: langevin.annealed_langevin(rng, score_fn, size.shape, sigmas=sigmas, **options)
    )
    turns = {OURS: lambda: jax.block_until_ready(chain(jax.random.key(1)))}
    images = torch.from_numpy(x).permute(0, 3, 1, 2).contiguous()
    layouts = {"PyTorch eager": images}
    layouts["PyTorch channels-last"] = images.to(memory_format=torch.channels_last)
    for label, start in layouts.items():
        turns[label] = lambda start=start: annealed_langevin(twin, start, sigmas, **options)
    compiled = torch.compile(twin)
    turns["torch.compile"] = lambda: annealed_langevin(compiled, images, sigmas, **options)
    times = timing.compare(turns, rounds=rounds, calls=1)
    per_step = {label: [t / num_steps for t in taken] for label, taken in times.items()}
    timing.report(f"a step of {len(x)} images, {name} network", per_step, {}, [OURS])


def checked_twin(size: Size, network: NCSNv2, params, x: np.ndarray) -> TorchNCSNv2:
    """The twin with these parameters. Raises: AssertionError unless it computes the same."""
    twin = TorchNCSNv2(size.features, size.shape[-1]).eval()
    copy_weights(params, twin)
    ours = jax.jit(network.apply)({"params": params}, x, np.zeros(len(x)))
    with torch.no_grad():
        theirs = twin(torch.from_numpy(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    require_same(ours, theirs)
    return twin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--num_scales", type=int, default=232, help="fewer levels, the same steps")
    options = parser.parse_args()
    for name in options.networks:
        measure(name, options.rounds, options.num_scales)


if __name__ == "__main__":
    main()
