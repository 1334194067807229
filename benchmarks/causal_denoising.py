# SPDX-License-Identifier: Apache-2.0
"""Denoising of digits in one step: causal estimates, their mean over orders, and what bounds them.

    python -m benchmarks.causal_denoising runs/noisy_0 runs/noisy_1 ... --score_sde=runs/vp

PSNR in dB of test digits with Gaussian noise, higher is better. Runs are of `configs/ar_csm/digits`
with contexts of noisy values (`:noisy`), each with an order of its own. Beside them:

- a median filter of 3 x 3 pixels;
- the Gaussian with the mean and covariance of the training digits, whose posterior mean is known:
  given all pixels (the best linear estimate), and given those up to each one, in the order of each
  run and averaged over the orders. The difference of the two is what causality costs a Gaussian;
- the posterior mean by the score of a score SDE, one evaluation of the network.

Numbers: docs/results.md, "Autoregressive conditional scores".
"""

import argparse
import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from scipy import ndimage

import launch  # noqa: F401  (XLA's flags and the allocator's settings)
from scorejax import runs, systems
from scorejax.numerics import expand

SIGMAS = (0.1, 0.2, 0.4)
"""Noise of images in [-1, 1]."""
Images = Float[np.ndarray, "n h w c"]
Denoise = Callable[[Images, float], Images]


def causal(workdir: str) -> tuple[Denoise, Int[np.ndarray, "d"]]:
    """The causal estimate of a run of AR-CSM, and its order."""
    run = runs.open(workdir)
    model = systems.load_model(run.config)

    def denoise(noisy: Images, sigma: float) -> Images:
        levels = jnp.full(len(noisy), sigma)
        return np.asarray(jax.jit(model.denoised)(run.variables, jnp.asarray(noisy), levels))

    return denoise, model.network.dimension_order(math.prod(model.data.shape))


def posterior_mean(workdir: str) -> Denoise:
    """Tweedie's formula with the score of a score SDE, at the time of the noise level."""
    run = runs.open(workdir)
    model = systems.load_model(run.config)

    @jax.jit
    def of(variables, noisy: jax.Array, sigma: float) -> jax.Array:
        t = model.sde.time_of_sigma(jnp.full(len(noisy), sigma))
        scale, std = (expand(value, noisy) for value in model.sde.marginal(t))
        x = scale * noisy
        return (x + std**2 * model.score(variables)(x, t)) / scale

    return lambda noisy, sigma: np.asarray(of(run.variables, jnp.asarray(noisy), sigma))


def linear(train: Images) -> Denoise:
    """The posterior mean of a Gaussian with the moments of the training images."""
    mean, covariance = moments(train)

    def denoise(noisy: Images, sigma: float) -> Images:
        rows = noisy.reshape(len(noisy), -1) - mean
        gain = np.linalg.solve(covariance + sigma**2 * np.eye(len(mean)), covariance)
        return (mean + rows @ gain).reshape(noisy.shape)

    return denoise


def causal_linear(train: Images, order: Int[np.ndarray, "d"]) -> Denoise:
    """The same given the values up to each one in the order: x + sigma^2 s, s its univariate score.

    With L L' = covariance + sigma^2 I in that order, the score of a value is -e_d / L_dd, where
    e = L^-1 (x - mean) is the error of its prediction in units of its deviation.
    """
    mean, covariance = moments(train)

    def denoise(noisy: Images, sigma: float) -> Images:
        rows = (noisy.reshape(len(noisy), -1) - mean)[:, order]
        noisy_covariance = covariance[np.ix_(order, order)] + sigma**2 * np.eye(len(mean))
        factor = np.linalg.cholesky(noisy_covariance)
        errors = np.linalg.solve(factor, rows.T).T
        denoised = np.empty_like(rows)
        denoised[:, order] = rows - sigma**2 * errors / np.diag(factor)
        return (mean + denoised).reshape(noisy.shape)

    return denoise


def moments(train: Images) -> tuple[Float[np.ndarray, "d"], Float[np.ndarray, "d d"]]:
    """Mean and covariance of images as vectors."""
    rows = train.reshape(len(train), -1).astype(np.float64)
    return rows.mean(axis=0), np.cov(rows, rowvar=False)


def median_filter(noisy: Images, sigma: float) -> Images:
    """The median of 3 x 3 pixels."""
    del sigma
    return ndimage.median_filter(noisy, size=(1, 3, 3, 1), mode="nearest")


def averaged(estimates: list[Denoise]) -> Denoise:
    """The mean of estimates."""
    return lambda noisy, sigma: np.mean([each(noisy, sigma) for each in estimates], axis=0)


def rows_of(options: argparse.Namespace, train: Images) -> Iterator[tuple[str, list[Denoise]]]:
    """Names and estimates; the PSNR of several is reported as their mean."""
    learned, orders = zip(*map(causal, options.workdirs), strict=True)
    of_orders = [causal_linear(train, order) for order in orders]
    yield "noisy images", [lambda noisy, sigma: noisy]
    yield "median filter", [median_filter]
    yield "Gaussian, causal, one order", of_orders
    yield f"Gaussian, causal, mean of {len(orders)} orders", [averaged(of_orders)]
    yield "Gaussian, all pixels", [linear(train)]
    yield "AR-CSM, one order", [*learned]
    yield f"AR-CSM, mean of {len(orders)} orders", [averaged([*learned])]
    if options.score_sde:
        yield "score SDE", [posterior_mean(options.score_sde)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdirs", nargs="+", help="runs with contexts of noisy values")
    parser.add_argument("--score_sde", default="", help="run of a score SDE on the same images")
    parser.add_argument("--num", type=int, default=898, help="test images, at most")
    options = parser.parse_args()
    data = systems.load_model(runs.read_config(options.workdirs[0])).data
    # Values of grey levels in [-1, 1], which all these models see.
    scale = lambda stored: (2 * stored / (data.levels - 1) - 1).astype(np.float32)
    train, test = (scale(data.stored(split).image) for split in ("train", "test"))
    test = test[: options.num]
    print("| estimate | " + " | ".join(f"σ = {sigma}" for sigma in SIGMAS) + " |")
    print("|---" * (1 + len(SIGMAS)) + "|")
    for name, estimates in rows_of(options, train):
        cells = [f"{mean_psnr(estimates, test, sigma):.2f}" for sigma in SIGMAS]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def mean_psnr(estimates: list[Denoise], clean: Images, sigma: float) -> float:
    """PSNR of estimates in dB, the mean over them; peak to peak of the images is 2."""
    noise = np.random.default_rng(0).standard_normal(clean.shape, np.float32)
    noisy = clean + np.float32(sigma) * noise
    errors = [np.mean((each(noisy, sigma) - clean) ** 2, dtype=float) for each in estimates]
    return float(np.mean(10 * np.log10(4 / np.asarray(errors))))


if __name__ == "__main__":
    main()
