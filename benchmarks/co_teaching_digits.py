# SPDX-License-Identifier: Apache-2.0
"""Does co-teaching help a score SDE whose digits are contaminated with clothes?

    python -m benchmarks.co_teaching_digits --out=runs/co_teaching_digits [--seeds=3]
                                            [--variant=vp] [--steps=2000] [--samples=898]

512 training digits and the 128 clothes of data/samples: 20 % of the images are no digits. The VP
SDE of configs/score_sde/digits.py is trained on them, and by two learners of which each trains on
the images of smallest loss under the other, of which the share to keep falls to 80 %; and, for what
perfect selection would give, on the digits alone. All take as many steps of as large batches.

Samples by the probability-flow ODE are judged as in `benchmarks/digits_quality.py`, against the
test half. For each seed <out>_<seed>.json has the Fréchet distance of each training, and the share
of digits among the images that a learner was given, at each tenth of the training; a seed whose
file is there is not trained again. 95 % intervals over the seeds are Student's.

It has run with --variant=vp,debug --steps=30 --seeds=1 alone, which trains nothing: no answer yet.
"""

import argparse
import collections
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

import launch  # noqa: F401  (XLA's flags and the allocator's settings)
from benchmarks.digits_quality import ODE_TOLERANCE, draw, judge, plus_minus
from configs.score_sde import digits
from scorejax import systems
from scorejax.evaluate.foreign_images import clothes
from scorejax.files import save_text
from scorejax.numerics import expand, mean_except_batch
from scorejax.objectives import co_teaching
from scorejax.score_model import ScoreModel

NUM_DIGITS, NUM_DRAWS, WRONG = 512, 20, 0.2
TIMES = 4
"""Times of the SDE at which a learner judges an image."""
WARMUP = 0.25
"""Part of the training in which the share to keep falls to 1 - WRONG."""
WAYS = ("digits alone", "contaminated", "contaminated, co-teaching")


def judged(model: ScoreModel, variables: tuple, rng: jax.Array, x: jax.Array) -> jax.Array:
    """Denoising loss (b,) of images, the mean over times; times and noises are those of all images.

    The loss at a random time varies with the time many times more than it does with the image.
    """
    score, sde = model.score(variables), model.sde
    noises = jax.random.normal(rng, (TIMES, *x.shape[1:]))
    times = sde.t_min + (sde.t_max - sde.t_min) * (jnp.arange(TIMES) + 0.5) / TIMES

    def at(t: jax.Array, noise: jax.Array) -> jax.Array:
        t = jnp.full(len(x), t)
        scale, std = (expand(value, x) for value in sde.marginal(t))
        return mean_except_batch((std * score(scale * x + std * noise, t) + noise) ** 2)

    return jnp.mean(jax.vmap(at)(times, noises), axis=0)


def train(
    rng: jax.Array, images: jax.Array, is_digit: jax.Array, *, model: ScoreModel, taught: bool,
    steps: int, batch_size: int, ema_rate: float,
) -> tuple[dict, np.ndarray]:  # fmt: skip
    """Averaged parameters of the first learner, and at each step the share of digits it was given.

    `images` (draws, n, h, w, c) have the noise of dequantisation drawn several times.
    """
    init_rng, rng = jax.random.split(rng)
    images, is_digit = jnp.asarray(images), jnp.asarray(is_digit)
    init = systems.make_init(model.network, images[0, :1], jnp.ones(1))
    names = ("a", "b") if taught else ("a",)
    keys = jax.random.split(init_rng, len(names))
    params = {name: init(key)[0] for name, key in zip(names, keys, strict=True)}
    labels = {name: name for name in names}
    tx = optax.multi_transform(dict.fromkeys(names, model.tx), labels)

    def loss_fn(params: dict, step: jax.Array, rng: jax.Array) -> tuple[jax.Array, jax.Array]:
        row_rng, draw_rng, judge_rng, *loss_rngs = jax.random.split(rng, 5)
        row = jax.random.randint(row_rng, (batch_size,), 0, images.shape[1])
        drawn = jax.random.randint(draw_rng, (batch_size,), 0, len(images))
        rows = {"x": images[drawn, row], "digit": is_digit[row]}
        rate = co_teaching.keep_rate(step, noise_rate=WRONG, warmup=max(int(WARMUP * steps), 1))
        weigh = lambda losses, rows: co_teaching.select(losses, None, keep=rate)
        lessons = [co_teaching.Lesson(rows, jnp.ones(batch_size))]
        if taught:
            judges = [
                lambda rows, p=params[name]: judged(model, (p, {}), judge_rng, rows["x"])
                for name in names
            ]
            lessons = co_teaching.exchange_rows(*judges, rows, weigh=weigh, exchange="same")
        total = 0.0
        for name, lesson, key in zip(names, lessons, loss_rngs, strict=False):
            network = lambda x, t, p=params[name]: model.network.apply({"params": p}, x, t)
            losses = model.example_loss(network, key, lesson.rows["x"])
            total += co_teaching.weighted_mean(losses, lesson.weights)
        return total, co_teaching.weighted_mean(rows["digit"], lessons[0].weights)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(carry: tuple, number: int) -> tuple[tuple, jax.Array]:
        params, averaged, state = carry
        key = jax.random.fold_in(rng, number)
        gradient, share = jax.grad(loss_fn, has_aux=True)(params, number, key)
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        averaged = optax.incremental_update(params["a"], averaged, 1 - ema_rate)
        return (params, averaged, state), share

    carry, shares = (params, jax.tree.map(jnp.copy, params["a"]), tx.init(params)), []
    for number in range(steps):
        carry, share = step(carry, number)
        shares.append(share)
    return carry[1], np.array(shares)


def measure(seed: int, variant: str, steps: int, num_samples: int) -> dict[str, dict]:
    """By training, the Fréchet distance and the shares of digits."""
    config = digits.get_config(variant)
    config.rtol = config.atol = ODE_TOLERANCE
    config.dropout = 0.0
    model = systems.load_model(config)
    rng = np.random.default_rng(seed)
    train_digits = model.data.stored("train").image
    chosen = rng.choice(len(train_digits), NUM_DIGITS, replace=False)
    stored = np.concatenate([train_digits[chosen], clothes()])
    is_digit = (np.arange(len(stored)) < NUM_DIGITS).astype(np.float32)
    images = np.stack([model.data.dequantized(rng, stored) for _ in range(NUM_DRAWS)])
    options = {"model": model, "steps": steps, "batch_size": config.batch_size}
    found = {}
    for way in WAYS:
        num = NUM_DIGITS if way == "digits alone" else len(stored)
        params, shares = train(
            jax.random.key(seed), images[:, :num], is_digit[:num],
            taught="co-teaching" in way, ema_rate=config.ema_rate, **options,
        )  # fmt: skip
        samples = draw(model.sampler("ode"), (params, {}), num_samples, way)
        quality = judge(samples[f"{way}/image"], samples[f"{way}/nfe"])
        tenths = [float(part.mean()) for part in np.array_split(np.asarray(shares), 10)]
        found[way] = {"Fréchet distance": quality["Fréchet distance"], "share of digits": tenths}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--variant", default="vp")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--samples", type=int, default=898)
    options = parser.parse_args()
    distances, shares = collections.defaultdict(list), collections.defaultdict(list)
    for seed in range(options.seeds):
        path = options.out.with_name(f"{options.out.name}_{seed}.json")
        if not path.exists():
            found = measure(seed, options.variant, options.steps, options.samples)
            save_text(path, json.dumps(found, indent=2) + "\n")
        for way, row in json.loads(path.read_text()).items():
            distances[way].append(row["Fréchet distance"])
            shares[way].append(row["share of digits"][-1])
    print("| training | Fréchet distance to test digits | digits among the images, at the end |")
    print("|---|---|---|")
    for way in WAYS:
        print(f"| {way} | {plus_minus(distances[way])} | {plus_minus(shares[way])} |")


if __name__ == "__main__":
    main()
