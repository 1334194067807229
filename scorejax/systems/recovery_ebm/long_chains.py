# SPDX-License-Identifier: Apache-2.0
"""Long chains at level 0: whether samples stay as they are once a chain runs for its own sake.

Chains start from samples of the model and run on its marginal energy of level 0, as they are
(Langevin steps of the model's size) and with a Metropolis correction. Energy, acceptance and the
distance of the images to the data are recorded at log-spaced steps. An energy that short chains
have taught only where they go loses its samples here.

Source: Gao et al. 2021, arXiv:2012.08125, Section 4, long-run chains.
"""

import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from scorejax.data.view import ImageView
from scorejax.evaluate.frechet import gaussian_frechet_distance, moments_of_chunks
from scorejax.evaluate.pictures import curve_picture, image_grid
from scorejax.evaluate.progress import Metric
from scorejax.evaluate.sample_distance import image_features
from scorejax.evaluate.trend import trend
from scorejax.random import row_keys
from scorejax.report import Evaluation
from scorejax.samplers import recovery as samplers
from scorejax.samplers.long_run import Trace, adapted_step_size, log_spaced_steps, long_run
from scorejax.systems.recovery_ebm.density import data_log_prob
from scorejax.typing import PRNGKeyArray, Variables

if TYPE_CHECKING:
    from scorejax.systems.recovery_ebm.model import RecoveryModel

SHOWN = 8
"""Chains in the picture of states."""


def long_chains(model: "RecoveryModel", *, num_steps: int, num_chains: int) -> Metric:
    """The metric "long_chains": numbers at the end, trends, and pictures over steps.

    For each of "none" and "mala": the mean energy a dimension at the first record, after one step,
    and at the end; its slope per factor of ten in steps with a 95 % interval and a p-value over
    independent chains; the acceptance, for "none" that which MALA would have; and if the config
    names features of images, their Fréchet distance to the test images at both records.
    """
    steps = log_spaced_steps(num_steps, per_decade=2)
    dim = int(np.prod(model.data.shape))

    def runs(variables: Variables, rng: PRNGKeyArray) -> dict[str, Trace]:
        log_prob = data_log_prob(model, variables)
        sample_rng, adapt_rng, chain_rng = jax.random.split(rng, 3)
        keys, shape = row_keys(sample_rng, num_chains), (num_chains, *model.data.shape)
        options = model.chain_options()
        drawn = samplers.sample(keys, model.energy(variables), shape, model.levels, **options).x
        size = adapted_step_size(adapt_rng, log_prob, drawn, adjust="mala", first=0.01).step_size
        # y = scale x: a step of size s in y is one of s / scale in x.
        own = float(np.sqrt(model.levels.step_sizes[0]) / model.levels.energy_scales[0])
        run = functools.partial(
            long_run, row_keys(chain_rng, num_chains), log_prob, drawn, record_at=steps
        )
        return {
            "none": run(adjust="none", step_size=jnp.asarray(own)),
            "mala": run(adjust="mala", step_size=size),
        }

    compiled = jax.jit(runs)

    def metric(rng: PRNGKeyArray, variables: Variables) -> Evaluation:
        traces = jax.device_get(compiled(variables, rng))
        scalars = {"long_chain_steps": float(num_steps), "long_chains": float(num_chains)}
        pictures, curves = {}, {}
        for name, trace in traces.items():
            energy = trace.energy / dim
            curves[name] = energy.mean(axis=1)
            numbers = energy_numbers(steps, energy) | {"acceptance": trace.acceptance[-1].mean()}
            scalars |= {f"{key}_{name}": float(value) for key, value in numbers.items()}
            if isinstance(model.data, ImageView):
                frames = np.asarray(model.data.to_data(trace.x))
                scalars |= distances(model, frames, name)
                flat = frames[:, :SHOWN].reshape(-1, *frames.shape[2:])
                pictures[f"long_chains_{name}"] = image_grid(
                    np.clip(np.nan_to_num(flat), 0, 1), num_columns=min(SHOWN, num_chains)
                )
        pictures["long_chains_energy"] = curve_picture(
            np.log10(steps), curves, xlabel="log10 of steps", ylabel="energy per dimension, nats",
            title="long chains",
        )  # fmt: skip
        return Evaluation(scalars, pictures)

    return metric


def energy_numbers(
    steps: Int[np.ndarray, "r"], energy: Float[np.ndarray, "r b"]
) -> dict[str, float]:
    """Mean energy at the first and the last record, and its trend over chains if all are finite."""
    numbers = {"energy_first": energy[0].mean(), "energy_last": energy[-1].mean()}
    if len(steps) > 1 and np.isfinite(energy).all():
        slope = trend(steps, energy)
        numbers |= {"energy_trend": slope.slope, "p_value": slope.p_value}
        numbers |= {"energy_trend_low": slope.low, "energy_trend_high": slope.high}
    return numbers


def distances(model: "RecoveryModel", frames: np.ndarray, name: str) -> dict[str, float]:
    """Fréchet distance of the first and the last frame (b, h, w, c) to test images."""
    options = model.eval_options
    if not options.eval_features:
        return {}
    features = image_features(options.eval_features, options.eval_matmul_precision)
    stored = model.data.stored("test", options.eval_examples).image
    reference = moments_of_chunks([features(stored.astype(np.float32) / (model.data.levels - 1))])
    measure = lambda images: gaussian_frechet_distance(
        reference, moments_of_chunks([features(np.clip(np.nan_to_num(images), 0, 1))])
    )
    return {
        f"frechet_first_{name}": measure(frames[0]),
        f"frechet_last_{name}": measure(frames[-1]),
    }
