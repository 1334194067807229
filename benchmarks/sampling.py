# SPDX-License-Identifier: Apache-2.0
"""How fast are predictor-corrector sampling and likelihoods on a CPU, compared with PyTorch?

    python -m benchmarks.sampling [--networks digits cifar ncsnpp] [--rounds=5]
                                  [--measures chain few_steps likelihood]

Sampling: a chain of reverse diffusion and one Langevin move in each of 200 steps, and Heun's method
in 35 evaluations, 64 images, against the same loops in PyTorch: eager, channels-last,
torch.compile. Likelihood: probability flow at rtol = atol = 1e-5 with one Hutchinson probe, 32
images, against SciPy's RK45 around PyTorch, with drift and divergence from one forward (eager,
torch.compile) and from two, as the code published with the paper has it. RK45 is Dormand-Prince
too; it controls the error of the batch as a whole, ours that of each example, which takes more
evaluations. The network was trained for 300 steps.

Larger networks draw a quarter of the images, in a fifth of the chain's steps, and the likelihood is
that of 8 images at rtol = atol = 1e-3: at 1e-5 a turn takes minutes. Both sides use two
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
from scorejax.preconditioning import noise_level_range
from scorejax.samplers.correctors import langevin
from scorejax.samplers.few_step import heun
from scorejax.samplers.predictor_corrector import predictor_corrector
from scorejax.samplers.predictors import reverse_diffusion
from scorejax.schedules import rho_sigmas
from scorejax.sdes import VPSDE
from scorejax.typing import Params, ScoreFn

SNR, HEUN_STEPS = 0.16, 18
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


def measure_chain(size: Size, params: Params, rounds: int, *, small: bool) -> None:
    num, num_steps = (64, 200) if small else (16, 40)

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


def measure_few_steps(size: Size, params: Params, rounds: int, *, small: bool) -> None:
    """Heun's method in 35 evaluations, by us and by the same loop in PyTorch."""
    num = 64 if small else 16
    shape = (num, size.channels, size.image_size, size.image_size)

    def ours(params, rng):
        score_fn = our_score_fn(size, params)
        return heun(rng, score_fn, (num, *size.image_shape), sde=SDE, num_steps=HEUN_STEPS)

    turn, taken = compiled(ours, params, jax.random.key(0))
    turns, notes = {OURS: turn}, {OURS: f"{turn().nfe} evaluations, compiled in {taken:.0f} s"}
    sigmas = np.append(rho_sigmas(*noise_level_range(SDE, SDE.sampling_t_min), HEUN_STEPS), 0)
    for name, network in networks(size, params, layouts=True).items():
        score_fn = torch_twin.noise_prediction(network)
        turns[name] = lambda score_fn=score_fn: torch_twin.heun(score_fn, shape, sigmas)
    notes["torch.compile"] = f"first call {timing.seconds(turns['torch.compile']):.0f} s"
    times = timing.compare(turns, rounds=rounds, calls=1)
    timing.report(f"{num} samples in 35 evaluations, {size.name}", times, notes, [OURS])


def measure_likelihood(size: Size, params: Params, rounds: int, *, small: bool) -> None:
    num, tolerance = (32, 1e-5) if small else (8, 1e-3)
    images = real_images(size, num)
    probes = np.sign(np.random.default_rng(1).normal(size=images.shape)).astype(np.float32)

    def ours(params, rng, x):
        return likelihood.log_prob(
            rng, SDE, our_score_fn(size, params), x, rtol=tolerance, atol=tolerance
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
            score_fn, x, probe, derivative, rtol=tolerance, atol=tolerance
        )
        log_prob, evaluations = turns[name]()
        notes[name] = f"{evaluations} evaluations; {_bits(log_prob, images)}"
    times = timing.compare(turns, rounds=rounds, calls=1)
    timing.report(f"log-likelihood of {num} images, {size.name}", times, notes, [OURS])


MEASURES = {
    "chain": measure_chain,
    "few_steps": measure_few_steps,
    "likelihood": measure_likelihood,
}


def _bits(log_prob: np.ndarray, images: np.ndarray) -> str:
    """Mean bits per dimension of the density on [-1, 1], to see that all compute the same."""
    return f"{-np.mean(log_prob) / images[0].size / np.log(2):.3f} bits/dim"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=SIZES, default=["digits", "cifar"])
    parser.add_argument("--measures", nargs="+", choices=MEASURES, default=list(MEASURES))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    for name in options.networks:
        params = trained_params(SIZES[name])
        for measure in options.measures:
            MEASURES[measure](SIZES[name], params, options.rounds, small=name == "digits")


if __name__ == "__main__":
    main()
