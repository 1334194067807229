# SPDX-License-Identifier: Apache-2.0
"""How fast are predictor-corrector sampling and likelihoods on a CPU, compared with PyTorch?

    python -m benchmarks.sampling [--networks digits cifar] [--rounds=5]

Sampling: reverse diffusion and one Langevin move in each of 200 steps, 64 images, against the same
loop in PyTorch: eager, channels-last, torch.compile. Likelihood: probability flow at rtol = atol =
1e-5 with one Hutchinson probe, 32 images, against SciPy's RK45 around PyTorch, with drift and
divergence from one forward (eager, torch.compile) and from two, as the code published with the
paper has it. RK45 is Dormand-Prince too; it controls the error of the batch as a whole, ours that
of each example, which takes more evaluations. The network was trained for 300 steps.

The larger network draws a quarter of the images in a fifth of the steps. Both sides use two
threads; turns alternate in one process, see `benchmarks/timing.py`.

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
from benchmarks.pairs import SIZES, Size, flax_network, real_images, trained_params, twin
from scorejax import likelihood, parameterize
from scorejax.samplers.correctors import langevin
from scorejax.samplers.predictor_corrector import predictor_corrector
from scorejax.samplers.predictors import reverse_diffusion
from scorejax.sdes import VPSDE
from scorejax.typing import Params, ScoreFn

SNR, TOLERANCE = 0.16, 1e-5
OURS = "ours"
SDE = VPSDE()

Turn = Callable[[], object]


def our_score_fn(size: Size, params: Params) -> ScoreFn:
    network = flax_network(size)
    return parameterize.noise_prediction(SDE, lambda x, t: network.apply({"params": params}, x, t))


def networks(size: Size, params: Params, layouts: bool) -> dict[str, torch.nn.Module]:
    """The twin as PyTorch's contenders have it, with parameters that need no gradient."""
    kinds = {"PyTorch eager": twin(size, params)}
    if layouts:
        kinds["PyTorch channels-last"] = twin(size, params).to(memory_format=torch.channels_last)
    kinds["torch.compile"] = torch.compile(twin(size, params))
    for network in kinds.values():
        network.requires_grad_(False)
    return kinds


def compiled(function: Callable, *arguments) -> tuple[Turn, float]:
    """A turn of our function, and the seconds that it took to compile."""
    lowered = jax.jit(function).lower
    programs = []
    taken = timing.seconds(lambda: programs.append(lowered(*arguments).compile()))
    return lambda: jax.block_until_ready(programs[0](*arguments)), taken


def measure_sampling(size: Size, params: Params, rounds: int, num: int, num_steps: int) -> None:
    def ours(params, rng):
        return predictor_corrector(
            rng, our_score_fn(size, params), (num, *size.image_shape), sde=SDE,
            predictor=reverse_diffusion, corrector=langevin, num_steps=num_steps, snr=SNR,
        )  # fmt: skip

    turn, taken = compiled(ours, params, jax.random.key(0))
    turns, notes = {OURS: turn}, {OURS: f"{turn().nfe} evaluations, compiled in {taken:.0f} s"}
    shape = (num, size.channels, size.image_size, size.image_size)
    for name, network in networks(size, params, layouts=True).items():
        score_fn = torch_twin.noise_prediction(network)
        turns[name] = lambda score_fn=score_fn: torch_twin.predictor_corrector(
            score_fn, shape, num_steps=num_steps, snr=SNR
        )
    notes["torch.compile"] = f"first call {timing.seconds(turns['torch.compile']):.0f} s"
    times = timing.compare(turns, rounds=rounds, calls=1)
    timing.report(f"{num} samples in {num_steps} steps, {size.name}", times, notes, [OURS])


def measure_likelihood(size: Size, params: Params, rounds: int, num: int) -> None:
    images = real_images(size, num)
    probes = np.sign(np.random.default_rng(1).normal(size=images.shape)).astype(np.float32)

    def ours(params, rng, x):
        return likelihood.log_prob(
            rng, SDE, our_score_fn(size, params), x, rtol=TOLERANCE, atol=TOLERANCE
        )

    turn, taken = compiled(ours, params, jax.random.key(0), jnp.asarray(images))
    answer = turn()
    turns, nfe = {OURS: turn}, np.asarray(answer.nfe)
    notes = {
        OURS: f"{nfe.mean():.0f} evaluations, at most {nfe.max()}; compiled in {taken:.0f} s; "
        + _bits(answer.log_prob, images)
    }
    x, probe = (torch.from_numpy(a).permute(0, 3, 1, 2).contiguous() for a in (images, probes))
    kinds = networks(size, params, layouts=False)
    contenders = {
        name: (network, torch_twin.flow_and_divergence) for name, network in kinds.items()
    }
    contenders["PyTorch eager, two forwards"] = (
        kinds["PyTorch eager"],
        torch_twin.flow_and_divergence_apart,
    )
    for name, (network, derivative) in contenders.items():
        score_fn = torch_twin.noise_prediction(network)
        turns[name] = lambda score_fn=score_fn, derivative=derivative: torch_twin.log_prob(
            score_fn, x, probe, derivative, rtol=TOLERANCE, atol=TOLERANCE
        )
        log_prob, evaluations = turns[name]()
        notes[name] = f"{evaluations} evaluations; {_bits(log_prob, images)}"
    times = timing.compare(turns, rounds=rounds, calls=1)
    timing.report(f"log-likelihood of {num} images, {size.name}", times, notes, [OURS])


def _bits(log_prob: np.ndarray, images: np.ndarray) -> str:
    """Mean bits per dimension of the density on [-1, 1], to see that all compute the same."""
    return f"{-np.mean(log_prob) / images[0].size / np.log(2):.3f} bits/dim"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    for name in options.networks:
        params = trained_params(SIZES[name])
        small = name == "digits"
        measure_sampling(
            SIZES[name], params, options.rounds, num=64 if small else 16,
            num_steps=200 if small else 40,
        )  # fmt: skip
        measure_likelihood(SIZES[name], params, options.rounds, num=32 if small else 8)


if __name__ == "__main__":
    main()
