# SPDX-License-Identifier: Apache-2.0
"""Which sampler for how many evaluations of the score? A table and a picture.

    python -m benchmarks.few_step runs/digits_vp_seed0 --out=docs/results

Two problems under the VP SDE. A mixture of Gaussians in the plane, whose score is exact, so that
all of the error is the sampler's: the distance is Wasserstein's, averaged over 64 directions, to
draws of the mixture itself. Digits, by a trained network: the Fréchet distance to the test half in
the features of a classifier, as in `benchmarks/digits_quality.py`. Error bars are one standard
error, over repetitions for the mixture and over bootstrap draws of the samples for digits. What is
there keeps its numbers in the workdir, so that a call that was stopped goes on.
"""

import argparse
import functools
import json
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from scipy import stats

import launch  # noqa: F401  (XLA's flags and the allocator's settings)
from scorejax import runs, systems
from scorejax.data import images
from scorejax.evaluate import frechet, pictures
from scorejax.evaluate.chunks import draw_in_chunks
from scorejax.evaluate.digits_features import digits_features
from scorejax.samplers import dpm_solver, few_step
from scorejax.samplers.correctors import annealed_langevin
from scorejax.samplers.predictor_corrector import predictor_corrector
from scorejax.samplers.predictors import euler_maruyama
from scorejax.sdes import VPSDE

SDE = VPSDE()
BUDGETS = (5, 10, 20, 35, 50, 100, 200, 500, 1000)
MEANS, STDS, WEIGHTS = ((-1.0, -0.5), (1.0, 0.0), (0.0, 1.0)), (0.1, 0.2, 0.3), (0.5, 0.3, 0.2)
NUM, REPETITIONS, DIRECTIONS = 4096, 5, 64
NUM_DIGITS, BOOTSTRAPS, LARGEST_ON_DIGITS = 449, 50, 200
FEWEST = {"predictor-corrector": 50}  # The VP chain, which sets its steps, has 21 or more.

pc = functools.partial(predictor_corrector, sde=SDE, predictor=euler_maruyama)
SAMPLERS: dict[str, Callable] = {
    "predictor": lambda nfe: functools.partial(pc, num_steps=nfe),
    "predictor-corrector": lambda nfe: functools.partial(
        pc, corrector=annealed_langevin, num_steps=nfe // 2
    ),
    "Euler": lambda nfe: functools.partial(few_step.euler, sde=SDE, num_steps=nfe),
    "Heun": lambda nfe: functools.partial(few_step.heun, sde=SDE, num_steps=(nfe + 1) // 2),
    "DPM-Solver++": lambda nfe: functools.partial(
        dpm_solver.dpm_solver_pp, sde=SDE, num_steps=nfe - 1
    ),
    "SDE-DPM-Solver++": lambda nfe: functools.partial(
        dpm_solver.sde_dpm_solver_pp, sde=SDE, num_steps=nfe - 1
    ),
}
DIGITS_SAMPLERS = {
    "predictor": ("pc", {"predictor": "euler_maruyama", "corrector": "none"}),
    "predictor-corrector": ("pc", {"predictor": "euler_maruyama", "corrector": "langevin"}),
    "Heun": ("heun", {}),
    "DPM-Solver++": ("dpm++", {}),
    "SDE-DPM-Solver++": ("sde-dpm++", {}),
}

Measured = tuple[float, float]
"""A distance and its standard error."""


def mixture_score(x: jax.Array, t: jax.Array) -> jax.Array:
    """The exact score of the mixture under the SDE."""

    def log_prob(x: jax.Array, t: jax.Array) -> jax.Array:
        scale, std = SDE.marginal(t[None])
        variance = scale**2 * jnp.asarray(STDS) ** 2 + std**2
        square = jnp.sum((x[None] - scale[:, None] * jnp.asarray(MEANS)) ** 2, axis=1)
        logits = jnp.log(jnp.asarray(WEIGHTS)) - square / (2 * variance) - jnp.log(variance)
        return logsumexp(logits)

    return jax.vmap(jax.grad(log_prob))(x, t)


def mixture_draws(rng: np.random.Generator) -> np.ndarray:
    chosen = rng.choice(len(WEIGHTS), NUM, p=WEIGHTS)
    noise = rng.standard_normal((NUM, 2))
    return np.asarray(MEANS)[chosen] + np.asarray(STDS)[chosen][:, None] * noise


def sliced_wasserstein(x: np.ndarray, y: np.ndarray) -> float:
    """Mean over directions of the Wasserstein distance of two projected samples of one size."""
    angle = np.pi * np.arange(DIRECTIONS) / DIRECTIONS
    directions = np.stack([np.cos(angle), np.sin(angle)])
    return float(np.abs(np.sort(x @ directions, 0) - np.sort(y @ directions, 0)).mean())


def on_the_mixture(name: str, nfe: int) -> Measured:
    draw = jax.jit(lambda rng: SAMPLERS[name](nfe)(rng, mixture_score, (NUM, 2)).x)
    distances = [
        sliced_wasserstein(
            np.asarray(draw(jax.random.key(n)), np.float64),
            mixture_draws(np.random.default_rng(n)),
        )
        for n in range(REPETITIONS)
    ]
    return float(np.mean(distances)), float(stats.sem(distances))


def floor_of_the_mixture() -> Measured:
    """Two samples of the mixture itself."""
    draws = [mixture_draws(np.random.default_rng(100 + n)) for n in range(2 * REPETITIONS)]
    distances = [sliced_wasserstein(*pair) for pair in zip(draws[::2], draws[1::2], strict=True)]
    return float(np.mean(distances)), float(stats.sem(distances))


def on_digits(config, variables, name: str, nfe: int) -> Measured:
    sampler, settings = DIGITS_SAMPLERS[name]
    config = config.copy_and_resolve_references()
    config.update(settings)
    draw = systems.load_model(config).sampler(sampler, nfe=nfe)
    sizes = {"batch_size": NUM_DIGITS, "unit": f"{name}, {nfe}"}
    x = draw_in_chunks(jax.random.key(1), draw, variables, NUM_DIGITS, **sizes)["image"]
    if not np.isfinite(x).all():
        return float("nan"), float("nan")
    return with_bootstrap(digits_features(np.clip(x, 0, 1)).features)


def floor_of_digits() -> Measured:
    """As many real images of the training half."""
    return with_bootstrap(digits_features(images.load("digits", "train").image / 16).features)


def with_bootstrap(features: np.ndarray) -> Measured:
    """Fréchet distance to the test half of the first images, and its bootstrap standard error."""
    test = digits_features(images.load("digits", "test").image / 16).features
    features, rng = features[:NUM_DIGITS], np.random.default_rng(0)
    again = [
        frechet.frechet_distance(test, features[rng.integers(0, len(features), len(features))])
        for _ in range(BOOTSTRAPS)
    ]
    return frechet.frechet_distance(test, features), float(np.std(again, ddof=1))


def measure(workdir: pathlib.Path) -> dict[str, dict[str, Measured]]:
    """Problem -> "sampler, NFE" -> distance; what the workdir holds already is not done again."""
    config, variables, step = runs.open(workdir)
    if config.sde != SDE.name:
        raise ValueError(f"{workdir} needs a run with sde={SDE.name!r}; got {config.sde!r}")
    path = workdir / f"few_step_{step}.json"
    found = json.loads(path.read_text()) if path.exists() else {"mixture": {}, "digits": {}}
    jobs = {
        "mixture": (SAMPLERS, BUDGETS[-1], on_the_mixture, floor_of_the_mixture),
        "digits": (
            DIGITS_SAMPLERS, LARGEST_ON_DIGITS, functools.partial(on_digits, config, variables),
            floor_of_digits,
        ),
    }  # fmt: skip
    for problem, (names, largest, distance, floor) in jobs.items():
        rows = found[problem]
        if "floor" not in rows:
            rows["floor"] = floor()
        for name in names:
            for nfe in BUDGETS:
                key = f"{name}, {nfe}"
                if key in rows or not FEWEST.get(name, 0) <= nfe <= largest:
                    continue
                rows[key] = distance(name, nfe)
                print(f"{problem}: {key}: {rows[key][0]:.4f} ± {rows[key][1]:.4f}", flush=True)
                path.write_text(json.dumps(found, indent=1))
    return found


def table(rows: dict[str, Measured], names: list[str]) -> str:
    """Samplers by evaluations, in markdown."""
    lines = ["| sampler | " + " | ".join(map(str, BUDGETS)) + " |"]
    lines.append("|---" * (len(BUDGETS) + 1) + "|")
    for name in names:
        cells = [rows.get(f"{name}, {nfe}") for nfe in BUDGETS]
        shown = [f"{c[0]:.3g} ± {c[1]:.1g}" if c else "" for c in cells]
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    mean, error = rows["floor"]
    lines.append(f"\nReal draws of the same number: {mean:.3g} ± {error:.1g}.")
    return "\n".join(lines)


def draw_picture(found: dict[str, dict[str, Measured]], path: pathlib.Path) -> None:
    """Distance over evaluations, for both problems."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    labels = ("mixture: sliced Wasserstein distance", "digits: Fréchet distance")
    for axes, (problem, rows), label in zip(
        figure.subplots(1, 2), found.items(), labels, strict=True
    ):
        for name, colour in zip(SAMPLERS, pictures.COLOURS, strict=True):
            points = [(n, *rows[f"{name}, {n}"]) for n in BUDGETS if f"{name}, {n}" in rows]
            if points:
                nfe, mean, error = np.array(points).T
                style = {"color": colour, "marker": "o", "markersize": 3}
                axes.errorbar(nfe, mean, error, label=name, **style)
        axes.axhline(rows["floor"][0], color="grey", linestyle=":", label="real draws")
        axes.set(xscale="log", yscale="log", xlabel="evaluations of the score", ylabel=label)
        if problem == "mixture":
            axes.legend(fontsize=7)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdir", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/few_step"))
    arguments = parser.parse_args()
    found = measure(arguments.workdir)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for problem, rows in found.items():
        names = [name for name in SAMPLERS if any(key.startswith(f"{name}, ") for key in rows)]
        print(f"\n{problem}\n\n{table(rows, names)}")
    draw_picture(found, arguments.out / "few_step.png")


if __name__ == "__main__":
    main()
