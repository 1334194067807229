# SPDX-License-Identifier: Apache-2.0
"""Which estimator of the entropy gradient trains the best VAE of digits with an implicit encoder?

    python -m benchmarks.implicit_encoders train
    python -m benchmarks.implicit_encoders report

`train` trains each variant of the config with each seed for the same steps, and writes a file for
each; one that is there is not made again. `report` prints the log-likelihood of test images in nats
by annealed importance sampling, the mean over seeds and its 95 % interval, and what it has over
that of the exact entropy, seed by seed; of triangular encoders also how far the bound lies below
it, the divergence of the encoder from the posterior; and the processor seconds of training.
"""

import argparse
import functools
import itertools
import json
import pathlib
import time
from typing import Any

import jax
import numpy as np

from benchmarks.score_matching_quality import spread
from configs.ar_csm import vae_digits
from scorejax import systems
from scorejax.evaluate.progress import Metric
from scorejax.train.state import TrainState
from scorejax.train.step import make_train_step, scan_steps

EXACT = "exact,triangular"
VARIANTS = (
    EXACT, "csm,triangular", "csm,mlp", "ssm_vr,mlp", "stein,mlp", "spectral,mlp",
    "csm,triangular,raw", "ssm_vr,triangular", "stein,triangular", "spectral,triangular",
    "ssm_vr,mlp,raw",
)  # fmt: skip
STEPS_PER_CALL = 20


def get_config(variant: str) -> Any:
    """The config of a variant, of a smaller network and fewer test images than by default."""
    config = vae_digits.get_config(variant)
    config.hidden, config.eval_likelihoods = 64, 64
    return config


@functools.cache
def metric(name: str) -> Metric:
    """A metric of the decoder, or of the triangular encoder with it: compiled once for all."""
    return systems.load_model(get_config(EXACT)).metrics()[name]()


@functools.cache
def compiled(variant: str) -> tuple:
    """The system of a variant, its start, and its training call; each compiles once."""
    system = systems.load(get_config(variant))
    step = scan_steps(make_train_step(system.loss, system.tx, ema_rate=0.0))
    return (
        system,
        jax.jit(lambda rng: TrainState.create(*system.init(rng), system.tx)),
        jax.jit(step),
    )


def one(variant: str, seed: int, num_steps: int) -> dict[str, Any]:
    """Trains one row of the table and measures it at the end; compilation is not timed."""
    system, init, step = compiled(variant)
    keys = jax.random.split(jax.random.key(seed), 3)
    state, carry, seconds = init(keys[0]), system.source.init(0, keys[1]), 0.0
    for number in range(num_steps // STEPS_PER_CALL):
        rows = []
        for _ in range(STEPS_PER_CALL):
            carry, batch = system.source.next(carry, state, None)
            rows.append(batch)
        batches = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
        start = time.process_time()
        state, metrics = jax.block_until_ready(step(state, batches, keys[2]))
        seconds += time.process_time() - start if number else 0.0
        if not metrics["finite"].all():
            return {"finite": False}
    params, rng = system.published(state)[0], jax.random.key(0)
    scalars = metric("log_prob")(rng, ({"decoder": params["decoder"]}, {})).scalars
    if "triangular" in variant:
        both = {name: params[name] for name in ("encoder", "decoder")}
        scalars |= metric("elbo")(rng, (both, {})).scalars
    return {"finite": True, "seconds": seconds, **scalars}


def by_seed(out: pathlib.Path, variant: str) -> dict[str, dict[str, Any]]:
    """The runs of a variant that are in the folder, by seed."""
    paths = sorted(out.glob(f"{variant}-*.json"))
    return {path.stem.rpartition("-")[2]: json.loads(path.read_text()) for path in paths}


def report(out: pathlib.Path) -> None:
    """The table."""
    print("| variant | log p(x), nats | over exact | log p - bound | seconds | seeds |")
    print("|---" * 6 + "|")
    seeds = {name: by_seed(out, name) for name in VARIANTS}
    for variant, found in seeds.items():
        runs = [*found.values()]
        if not runs or not all(run["finite"] for run in runs):
            if runs:
                failed = [seed for seed, run in found.items() if not run["finite"]]
                print(f"| {variant} | not finite: seed {', '.join(failed)} |")
            continue
        values = [run["log_prob"] for run in runs]
        exact = {seed: run["log_prob"] for seed, run in seeds[EXACT].items() if run["finite"]}
        over = [run["log_prob"] - exact[seed] for seed, run in found.items() if seed in exact]
        gaps = [run["log_prob"] - run["elbo"] for run in runs if "elbo" in run]
        compared = spread(over, 2) if over and variant != EXACT else ""
        cells = [spread(values, 2), compared]
        cells += [spread(gaps, 2) if gaps else "", f"{np.mean([r['seconds'] for r in runs]):.0f}"]
        print(f"| {variant} | {' | '.join(cells)} | {len(runs)} |")
    finite = [run for found in seeds.values() for run in found.values() if run["finite"]]
    if not finite:
        return
    errors = [run["log_prob_standard_error"] for run in finite]
    sizes = [run["effective_walks"] for run in finite]
    print(f"standard error over images {max(errors):.2f}, effective walks {min(sizes):.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("train", "report"))
    parser.add_argument("--variants", nargs="+", default=VARIANTS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/implicit_encoders"))
    args = parser.parse_args()
    if args.what == "report":
        return report(args.out)
    args.out.mkdir(parents=True, exist_ok=True)
    for seed, variant in itertools.product(range(args.seeds), args.variants):
        path = args.out / f"{variant}-{seed}.json"
        if not path.exists():
            found = one(variant, seed, args.steps)
            path.write_text(json.dumps(found))
            print(path.stem, found, flush=True)
    return None


if __name__ == "__main__":
    main()
