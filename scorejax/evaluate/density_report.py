# SPDX-License-Identifier: Apache-2.0
"""Densities of examples under a trained model, each measured several times, as a report.

Images are reported in bits per dimension, vectors in nats. Each chunk of results is saved, so that
a killed computation resumes.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from scorejax.data.view import DataView, ImageView
from scorejax.density.bidirectional import Sandwich, verdict
from scorejax.evaluate.chunks import measure_in_chunks
from scorejax.evaluate.parts import Parts
from scorejax.evaluate.progress import summary
from scorejax.files import save_npz
from scorejax.likelihood import importance_weighted
from scorejax.runs import Run
from scorejax.typing import PRNGKeyArray, Variables

MAX_ERROR = 0.02
"""Mean error of a quadrature, in bits a dimension, above which a report has a caveat."""


class Unit(NamedTuple):
    """A density's name in a report, and the number by which it grows for a nat of log-density."""

    name: str
    per_nat: float
    number: str
    """Name of the number of examples in a report."""

    @classmethod
    def of(cls, data: DataView) -> "Unit":
        """Bits per dimension of images, nats of vectors."""
        if isinstance(data, ImageView):
            bits = -1 / (math.prod(data.shape) * math.log(2))
            return cls("bits_per_dim", bits, "num_images")
        return cls("log_prob", 1.0, "num_rows")

    def by_bound(self, bound: str) -> str:
        """Name of the value that takes the "lower" or "upper" bound of log Z."""
        low = "lower" if self.per_nat < 0 else "upper"
        return f"{self.name}_{'low' if bound == low else 'high'}"


def stored_examples(data: DataView, split: str, num: int | None) -> np.ndarray:
    """The first `num` examples of a split: images uint8, or rows in the units of the model."""
    if isinstance(data, ImageView):
        return data.stored(split, num).image
    return data.density_examples(np.random.default_rng(0), num, split)


def density_report(
    model: Any,
    run: Run,
    examples: np.ndarray,
    repeats: int,
    *,
    exact: bool,
    seed: int,
    batch_size: int,
    out: str,
    normalize: Callable[[Variables, PRNGKeyArray], Sandwich] | None = None,
) -> tuple[dict[str, Any], Parts]:
    """A report of bits/dim of images, or nats of vectors, and the parts of the computation.

    The parts are to be removed in the end. The model is a `capabilities.MeasuresDensity` with
    `data`; `examples` are images (n, h, w, c) uint8 as stored, or rows (n, d) in the units of the
    model. Every repetition has its own dequantisation and probe noise. If the model is an energy,
    `normalize` bounds its normaliser, and values are reported for both bounds. Writes the values
    and "nfe" (repeats, n) to <out>.npz; those of an energy lack log Z, which is in the report.
    """
    x = np.tile(examples, (repeats, *(1,) * (examples.ndim - 1)))
    if isinstance(model.data, ImageView):
        x = model.data.dequantized(np.random.default_rng(seed), x)
    identity = {"config": run.config.to_dict(), "exact": exact, "seed": seed}
    parts = Parts(out, identity | {"batch_size": batch_size}, (run.variables, x))
    measure, rng = model.likelihood(exact=exact), jax.random.key(seed)
    options = {"field": model.data.field, "batch_size": batch_size, "parts": parts}
    rows = measure_in_chunks(rng, measure, run.variables, x, **options)
    unit, dim = Unit.of(model.data), x[0].size
    values, nfe = (rows[name].reshape(repeats, -1) for name in (unit.name, "nfe"))
    if normalize is None:
        report = likelihood_report(values, nfe, unit=unit, dim=dim, exact=exact)
        if "error" in rows:
            del report["divergence"], report["nfe"]  # of the flow's solver
            report |= quadrature_report(rows["error"], dim=dim)
    else:
        bounds = _normalized(normalize, run, seed, parts)
        report = energy_report(values, bounds, unit=unit) | {"caveats": model.caveats()}
    if jax.process_index() == 0:
        save_npz(f"{out}.npz", **{unit.name: values, "nfe": nfe})
    return report, parts


def quadrature_report(error: Float[np.ndarray, "n"], *, dim: int) -> dict[str, Any]:
    """Estimated errors of log-densities in bits a dimension, and a caveat where they are large."""
    bits = np.asarray(error, np.float64) / (dim * math.log(2))
    report: dict[str, Any] = {"mean_quadrature_error": float(bits.mean())}
    report["largest_quadrature_error"] = float(bits.max())
    if not bits.mean() <= MAX_ERROR:
        report["caveats"] = [
            f"the quadrature errs by up to {bits.mean():.2g} bits/dim on average: train with a "
            "larger num_cells; an infinite error means mass beyond its range"
        ]
    return report


def _normalized(normalize: Callable, run: Run, seed: int, parts: Parts) -> Sandwich:
    """The bounds of the normaliser, a part of the computation like the chunks of images."""
    if not parts.has("normalizer"):
        bounds = jax.device_get(normalize(run.variables, jax.random.key(seed + 1)))
        parts.save("normalizer", {k: np.asarray(v) for k, v in bounds._asdict().items()})
        return bounds
    return Sandwich(**parts.load("normalizer"))


def energy_report(
    values: Float[np.ndarray, "repeats n"], bounds: Sandwich, *, unit: Unit
) -> dict[str, Any]:
    """Mean density of n examples under an energy, by both bounds of its normaliser.

    `values` lack the normaliser. The lower bound of log Z promises too much: "bits_per_dim_low", or
    "log_prob_high". The value by the upper bound is left out if the bounds are upside down or not
    finite, and is the number to quote, without a suffix, only if they meet.
    """
    report: dict[str, Any] = {"verdict": verdict(bounds), "bounds_meet": bool(bounds.met)}
    report |= {"repeats": len(values), unit.number: values.shape[1]}
    error = math.hypot(bounds.lower_error, bounds.upper_error)
    ordered = math.isfinite(bounds.gap) and bounds.gap > -2 * error
    named = {"lower": bounds.lower} | ({"upper": bounds.upper} if ordered else {})
    for bound, log_z in named.items():
        report |= summary(unit.by_bound(bound), values - float(log_z) * unit.per_nat)
    if bounds.met and ordered:
        report[unit.name] = report[unit.by_bound("upper")]
    for name in ("lower", "upper"):
        size = float(getattr(bounds, f"{name}_effective_size"))
        report[f"log_normalizer_{name}"] = float(getattr(bounds, name))
        # Of one or two walks that count, a standard error is the cap of its formula.
        error = float(getattr(bounds, f"{name}_error")) if size > 3 else math.nan
        report[f"log_normalizer_{name}_error"] = error
        report[f"{name}_effective_size"] = size
    return report


def likelihood_report(
    values: Float[np.ndarray, "repeats n"],
    nfe: Int[np.ndarray, "repeats n"],
    *,
    unit: Unit,
    dim: int,
    exact: bool,
) -> dict[str, Any]:
    """Mean density of n examples of `dim` entries, each measured several times.

    `exact` says that the divergence was computed exactly; only then is the importance-weighted
    bound of images reported, which an estimated divergence would bias.
    """
    report = {"repeats": len(values), unit.number: values.shape[1]}
    report |= {"divergence": "exact" if exact else "hutchinson", "nfe": float(nfe.mean())}
    report |= summary(unit.name, values)
    if exact and unit.name == "bits_per_dim":
        weighted = importance_weighted(values, dim)[None]
        report |= summary("bits_per_dim_importance_weighted", weighted)
    return report
