# SPDX-License-Identifier: Apache-2.0
"""Why do bounds of log Z of energies by denoising stay apart, and at which noise do they meet?

    python -m benchmarks.recovery_normalizer
    python -m benchmarks.recovery_normalizer runs/denoising [--num_walks=128]

First, without a run, exact energies of a Gaussian with the covariance of digits, on DDPM's 1000
levels, where log Z is known and starts of the walks back are exact: annealed importance sampling
takes a step of MALA at each temperature, with two gradient calls; `density.diffusion_importance`
an ancestral step, with one. Then a run of digits: bounds of the density of some of its levels, by
ancestral steps from white noise to that level, and back from chains of 300 steps of MALA that
start at training images with the noise of the level. Columns: mean and std of log-weights of walks
down, less log Z (of runs: less the lower bound); the same of walks back, negated; both bounds;
effective sizes.

Numbers: docs/results.md, "Recovery likelihood on digits".
"""

import argparse
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

import launch  # noqa: F401  (XLA's flags and the allocator's settings)
from scorejax import runs, systems
from scorejax.data.view import ImageView
from scorejax.density.annealed_importance import tuned_step_sizes
from scorejax.density.annealing_path import Path, level_path
from scorejax.density.bidirectional import sandwich, walk
from scorejax.density.diffusion_importance import NoiseLadder, step_stds, walk_down, walk_up
from scorejax.numerics import gaussian_log_prob
from scorejax.objectives.recovery import noised_data
from scorejax.random import row_keys
from scorejax.samplers.hamiltonian import LogProb
from scorejax.samplers.long_run import adapted_step_size, long_run
from scorejax.schedules import fine_recovery_levels
from scorejax.systems.recovery_ebm import density

Weights = tuple[jax.Array, jax.Array]
"""Log-weights of walks down and of walks back."""
NUM_CHAIN_STEPS = 300


def by_mala(rng: jax.Array, path: Path, draws: jax.Array) -> Weights:
    """Walks by MALA along a path from white noise, with step sizes tuned on others."""
    keys, num = jax.random.split(rng, 5), len(draws)
    base = lambda key: jax.random.normal(key, draws.shape)
    sizes = tuned_step_sizes(keys[0], path, base(keys[1]), num_steps=1)
    down = walk(row_keys(keys[2], num), path, base(keys[3]), step_sizes=sizes)
    back = walk(row_keys(keys[4], num), path.reversed(), draws, step_sizes=sizes[::-1])
    return down.log_weights, back.log_weights


def by_ancestral_steps(
    rng: jax.Array, ladder: NoiseLadder, log_prob: LogProb, x: jax.Array, draws: jax.Array
) -> Weights:
    """Walks of the model itself; `x` are examples that tell the spread of its steps."""
    keys = [row_keys(key, len(draws)) for key in jax.random.split(rng, 3)]
    stds = step_stds(keys[0], ladder, x)
    down = walk_down(keys[1], ladder, stds, log_prob)
    return down.log_weights, walk_up(keys[2], ladder, stds, log_prob, draws).log_weights


def row(name: str, weights: Weights, log_z: float) -> str:
    """A line of the table."""
    down, back = (np.asarray(w, np.float64) for w in weights)
    found = sandwich(*weights)
    cells = (
        f"{down.mean() - log_z:.1f} ± {down.std():.1f}",
        f"{-back.mean() - log_z:.1f} ± {back.std():.1f}",
        *(f"{float(bound) - log_z:.2f}" for bound in (found.lower, found.upper)),
        f"{found.lower_effective_size:.0f}, {found.upper_effective_size:.0f}",
    )
    return f"| {name} | " + " | ".join(cells) + " |"


def report_gaussian(num: int) -> None:
    """Exact energies of a Gaussian with the covariance of digits, in its principal axes."""
    view = ImageView("digits", 8, uniform_dequantization=True)
    digits = view.density_examples(np.random.default_rng(0), 898, "train").reshape(898, -1)
    spreads, axes = np.linalg.eigh(np.cov(digits.T))
    levels = fine_recovery_levels(1000, energy_unit="nats")
    scales = levels.scales[1:, None]
    variances = jnp.asarray(scales**2 * spreads + 1 - scales**2, jnp.float32)
    means = jnp.asarray(scales * (digits.mean(axis=0) @ axes), jnp.float32)
    log_z = float(jnp.sum(jnp.log(2 * np.pi * variances[0]))) / 2

    def log_prob_at(position: jax.Array, x: jax.Array) -> jax.Array:
        t = jnp.clip(1000 - position, 0, 999)
        energy = jnp.sum((x - means[t][None]) ** 2 / variances[t][None], axis=1) / 2
        return jnp.where(position == 0, gaussian_log_prob(x, 1.0), -energy)

    draw = lambda key: means[:1] + jnp.sqrt(variances[:1]) * jax.random.normal(key, (num, 64))
    score = lambda j, x: -(x - means[j + 1][None]) / variances[j + 1][None]
    ladder = NoiseLadder(score, levels.scales[2:1000] / levels.scales[1:999])
    x, draws = draw(jax.random.key(1)), draw(jax.random.key(2))
    for each in (1, 2, 10):
        path = level_path(log_prob_at, 1000, np.linspace(0, 1, each + 1))
        weights = jax.jit(lambda rng, path=path: by_mala(rng, path, draws))(jax.random.key(0))
        print(row(f"Gaussian, MALA, {1000 * each}", weights, log_z), flush=True)
    log_prob = lambda x: log_prob_at(jnp.asarray(1000), x)
    run = jax.jit(lambda rng: by_ancestral_steps(rng, ladder, log_prob, x, draws))
    print(row("Gaussian, ancestral, 998", run(jax.random.key(0)), log_z), flush=True)


def report_run(workdir: str, num: int, noises: list[float]) -> None:
    """Bounds of the densities of those levels of a run whose S_t / A_t is nearest to `noises`."""
    run = runs.open(workdir)
    model = systems.load_model(run.config)
    examples = model.data.density_examples(np.random.default_rng(0), num, "train")
    ratios = model.levels.stds[1:-1] / model.levels.scales[1:-1]

    def walks(variables: tuple, rng: jax.Array, t: jax.Array, *, num_left: int) -> Weights:
        """Of energy t, which is that of x_{t+1}; `num_left` levels are above it."""
        keys = jax.random.split(rng, 4)
        full = density.noise_ladder(model, variables, model.levels.num_energies)
        ladder = NoiseLadder(lambda j, x: full.score(j + t, x), full.decays[-num_left:])
        log_prob = lambda x: density.log_prob_at(model, variables)(t, x)
        x = noised_data(keys[0], examples, model.levels, len(full.decays) - num_left + 1)
        adapted = adapted_step_size(keys[1], log_prob, x, adjust="mala", first=0.01)
        options = {"adjust": "mala", "record_at": np.array([NUM_CHAIN_STEPS])}
        chains = row_keys(keys[2], num)
        draws = long_run(chains, log_prob, x, step_size=adapted.step_size, **options).x[-1]
        return by_ancestral_steps(keys[3], ladder, log_prob, x, draws)

    for noise in noises:
        t = int(np.argmin(np.abs(ratios - noise)))
        run_walks = jax.jit(functools.partial(walks, num_left=len(ratios) - 1 - t))
        weights = run_walks(run.variables, jax.random.key(0), jnp.asarray(t))
        name = (
            f"{pathlib.Path(workdir).name}, noise {ratios[t]:.2g}, ancestral, {len(ratios) - 1 - t}"
        )
        print(row(name, weights, float(sandwich(*weights).lower)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdirs", nargs="*")
    parser.add_argument("--num_walks", type=int, default=64)
    parser.add_argument("--noises", type=float, nargs="+", default=[0.0, 0.1, 0.3, 0.5])
    options = parser.parse_args()
    print("| walks, steps | down | back | lower bound | upper bound | effective sizes |")
    print("|---|---|---|---|---|---|")
    if not options.workdirs:
        report_gaussian(options.num_walks)
    for workdir in options.workdirs:
        report_run(workdir, options.num_walks, options.noises)


if __name__ == "__main__":
    main()
