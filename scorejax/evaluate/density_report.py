# SPDX-License-Identifier: Apache-2.0
"""Bits per dimension of images under a trained model, each measured several times.

Each chunk of results is saved, so that a killed computation resumes.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int, UInt8

from scorejax.density.bidirectional import Sandwich, verdict
from scorejax.evaluate.chunks import measure_in_chunks
from scorejax.evaluate.parts import Parts
from scorejax.evaluate.progress import summary
from scorejax.files import save_npz
from scorejax.likelihood import importance_weighted
from scorejax.runs import Run
from scorejax.typing import PRNGKeyArray, Variables

MAX_ERROR = 0.02
"""Mean error of a quadrature, in bits/dim, above which a report has a caveat."""


def density_report(
    model: Any,
    run: Run,
    stored: UInt8[np.ndarray, "n h w c"],
    repeats: int,
    *,
    exact: bool,
    seed: int,
    batch_size: int,
    out: str,
    normalize: Callable[[Variables, PRNGKeyArray], Sandwich] | None = None,
) -> tuple[dict[str, Any], Parts]:
    """A report of bits/dim, and the parts of the computation, to be removed in the end.

    The model is a `capabilities.MeasuresDensity` with `data`, an `ImageView`. Every repetition has
    its own dequantisation and probe noise. If the model is an energy, `normalize` bounds its
    normaliser, and bits/dim are reported for both bounds. Writes "bits_per_dim" and "nfe"
    (repeats, n) to <out>.npz; those of an energy lack log Z / (d log 2), which is in the report.
    """
    repeated = np.tile(stored, (repeats, 1, 1, 1))
    x = model.data.dequantized(np.random.default_rng(seed), repeated)
    identity = {"config": run.config.to_dict(), "exact": exact, "seed": seed}
    parts = Parts(out, identity | {"batch_size": batch_size}, (run.variables, x))
    measure, rng = model.likelihood(exact=exact), jax.random.key(seed)
    rows = measure_in_chunks(rng, measure, run.variables, x, batch_size=batch_size, parts=parts)
    bits, nfe = (rows[name].reshape(repeats, -1) for name in ("bits_per_dim", "nfe"))
    dim = x[0].size
    if normalize is None:
        report = likelihood_report(bits, nfe, dim=dim, exact=exact)
        if "error" in rows:
            del report["divergence"], report["nfe"]  # of the flow's solver
            report |= quadrature_report(rows["error"], dim=dim)
    else:
        bounds = _normalized(normalize, run, seed, parts)
        report = energy_report(bits, bounds, dim=dim) | {"caveats": model.caveats()}
    if jax.process_index() == 0:
        save_npz(f"{out}.npz", bits_per_dim=bits, nfe=nfe)
    return report, parts


def quadrature_report(error: Float[np.ndarray, "n"], *, dim: int) -> dict[str, Any]:
    """Estimated errors of log-densities in bits/dim, and a caveat where they are large."""
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
    bits: Float[np.ndarray, "repeats n"], bounds: Sandwich, *, dim: int
) -> dict[str, Any]:
    """Mean bits/dim of n images under an energy, by both bounds of its normaliser.

    `bits` lack the normaliser. "bits_per_dim_low" takes the lower bound of log Z and promises too
    much; "bits_per_dim_high" takes the upper one. The latter is left out if the bounds are upside
    down or not finite, and is "bits_per_dim", the number to quote, only if they meet.
    """
    report: dict[str, Any] = {"verdict": verdict(bounds), "bounds_meet": bool(bounds.met)}
    report |= {"repeats": len(bits), "num_images": bits.shape[1]}
    error = math.hypot(bounds.lower_error, bounds.upper_error)
    ordered = math.isfinite(bounds.gap) and bounds.gap > -2 * error
    named = {"low": bounds.lower} | ({"high": bounds.upper} if ordered else {})
    for name, log_z in named.items():
        report |= summary(f"bits_per_dim_{name}", bits + float(log_z) / (dim * math.log(2)))
    if bounds.met and ordered:
        report["bits_per_dim"] = report["bits_per_dim_high"]
    for name in ("lower", "upper"):
        size = float(getattr(bounds, f"{name}_effective_size"))
        report[f"log_normalizer_{name}"] = float(getattr(bounds, name))
        # Of one or two walks that count, a standard error is the cap of its formula.
        error = float(getattr(bounds, f"{name}_error")) if size > 3 else math.nan
        report[f"log_normalizer_{name}_error"] = error
        report[f"{name}_effective_size"] = size
    return report


def likelihood_report(
    bits: Float[np.ndarray, "repeats n"],
    nfe: Int[np.ndarray, "repeats n"],
    *,
    dim: int,
    exact: bool,
) -> dict[str, Any]:
    """Mean bits/dim of n images of `dim` entries, each measured several times.

    `exact` says that the divergence was computed exactly; only then is the importance-weighted
    bound reported, which an estimated divergence would bias.
    """
    report = {"repeats": len(bits), "num_images": bits.shape[1]}
    report |= {"divergence": "exact" if exact else "hutchinson", "nfe": float(nfe.mean())}
    report |= summary("bits_per_dim", bits)
    if exact:
        weighted = importance_weighted(bits, dim)[None]
        report |= summary("bits_per_dim_importance_weighted", weighted)
    return report
