# SPDX-License-Identifier: Apache-2.0
"""How near are autoregressive scores of points of the plane to the truth, beside a mixture?

    for toy in eight_gaussians checkerboard rings spirals moons; do
      python -m launch.train --workdir=runs/$toy --config=configs/ar_csm/$toy.py
    done
    python -m benchmarks.ar_csm_plane runs/eight_gaussians runs/checkerboard ...

One row for each trained run: KL(truth || model) in nats over held-out draws, where truth and draws
have the noise of the model's smallest level; the same of scikit-learn's Gaussian mixture with full
covariances, fitted to 20,000 draws with that noise, with the number of components that gives others
the highest density; and the p-value of a permutation test of the maximum mean discrepancy between
samples of the model and draws, by Gaussian kernels of three widths. Under equality it is uniform.
The ± is a standard error.

Numbers: docs/results.md, "Autoregressive conditional scores".
"""

import argparse
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.mixture import GaussianMixture

import launch  # noqa: F401  (XLA's flags and the allocator's settings)
from scorejax import runs, systems
from scorejax.data.toy import PlaneDistribution
from scorejax.evaluate.chunks import measure_in_chunks
from scorejax.random import row_keys

COMPONENTS = (8, 16, 32, 64)
NUM_FITTED, NUM_VALID, NUM_HELD_OUT, NUM_COMPARED = 20_000, 5_000, 10_000, 1000
WIDTHS = (0.5, 0.1, 0.03)
NUM_PERMUTATIONS = 999

Rows = Float[np.ndarray, "n 2"]


def draws(truth: PlaneDistribution, seed: int, num: int) -> Rows:
    """Independent draws."""
    return np.asarray(truth.sample(jax.random.key(seed), num))


def mixture_divergence(truth: PlaneDistribution, x: Rows, true_log_prob: np.ndarray) -> float:
    """KL(truth || mixture) over x, of the mixture that is best on draws of its own."""
    fitted, valid = draws(truth, 1, NUM_FITTED), draws(truth, 2, NUM_VALID)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        mixtures = [GaussianMixture(k, random_state=0).fit(fitted) for k in COMPONENTS]
    best = max(mixtures, key=lambda mixture: mixture.score(valid))
    return float(np.mean(true_log_prob - best.score_samples(x)))


def discrepancy_p_value(rng: np.random.Generator, x: Rows, y: Rows) -> float:
    """The share of permutations of both sets whose discrepancy is at least that of x and y.

    The squared discrepancy is s' K s, where s is 1 / n on x and -1 / n on y; K is the sum of the
    kernels.
    """
    both = np.concatenate([x, y])
    kernel = sum(rbf_kernel(both, gamma=1 / (2 * width**2)) for width in WIDTHS)
    signs = np.repeat([1.0, -1.0], len(x)) / len(x)
    permuted = np.stack([signs, *(rng.permutation(signs) for _ in range(NUM_PERMUTATIONS))])
    squared = np.sum((permuted @ kernel) * permuted, axis=1)
    return float(np.mean(squared >= squared[0] * (1 - 1e-12)))


def row(workdir: str) -> str:
    """A row of the table. Raises: ValueError unless the run is of points of the plane."""
    run = runs.open(workdir)
    model = systems.load_model(run.config)
    if getattr(model, "truth", None) is None:
        raise ValueError(f"{workdir} is no run of points of the plane")
    truth = model.truth.noised(1.0, model.noise)
    x = draws(truth, 0, NUM_HELD_OUT)
    true_log_prob = np.asarray(truth.log_prob(jnp.asarray(x)), float)
    options = {"field": "x", "batch_size": 512}
    measure = model.likelihood()
    log_prob = measure_in_chunks(jax.random.key(0), measure, run.variables, x, **options)
    difference = true_log_prob - log_prob["log_prob"]
    error = difference.std() / np.sqrt(len(x))
    keys = row_keys(jax.random.key(3), NUM_COMPARED)
    drawn = np.asarray(jax.jit(model.sampler())(run.variables, keys)["x"])
    p = discrepancy_p_value(np.random.default_rng(0), drawn, x[:NUM_COMPARED])
    beside = mixture_divergence(truth, x, true_log_prob)
    name = f"{run.config.dataset}, {run.config.objective}, seed {run.config.seed}"
    learned = f"{difference.mean():.3f} ± {error:.3f}"
    return f"| {name} | {run.step} | {learned} | {beside:.3f} | {p:.3f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdirs", nargs="+")
    print(
        "| toy | steps | KL of AR-CSM | KL of a mixture | p of equal samples |\n" + "|---" * 5 + "|"
    )
    for workdir in parser.parse_args().workdirs:
        print(row(workdir), flush=True)


if __name__ == "__main__":
    main()
