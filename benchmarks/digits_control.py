# SPDX-License-Identifier: Apache-2.0
"""Control on real digits: does guidance give the class that was asked for, inpainting the digit?

    python -m launch.train --config=configs/noisy_classifier/digits.py:vp --workdir=runs/guide
    python -m benchmarks.digits_control runs/digits_vp_seed0 runs/guide --out=docs/results

Judged by a classifier of clean digits that saw neither network (98 % right on test digits). Classes
are asked for in equal numbers; inpainting gets the upper half of test digits. Intervals are exact
binomial ones of 95 %. A second run of the same SDE, given with --other, is asked for the latents
of the same digits: they should be the same, up to what training left different.
"""

import argparse
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

import launch  # noqa: F401  (XLA's flags and the allocator's settings)
from scorejax import runs, systems
from scorejax.evaluate import pictures
from scorejax.evaluate.digits_features import digits_features
from scorejax.guidance import class_guided
from scorejax.inverse import inpaint
from scorejax.samplers.correctors import langevin
from scorejax.samplers.few_step import heun
from scorejax.samplers.predictors import reverse_diffusion
from scorejax.samplers.probability_flow import encode

NUM_EACH, NUM_INPAINTED, NUM_ENCODED = 40, 200, 100
GUIDANCE = (0.0, 1.0, 3.0)


def load(workdir: pathlib.Path):
    """The model and the variables of a run."""
    config, variables, _ = runs.open(workdir)
    return systems.load_model(config), variables


def share(right: np.ndarray) -> str:
    """A share with its interval, in per cent."""
    low, high = stats.binomtest(int(right.sum()), len(right)).proportion_ci()
    return f"{100 * right.mean():.0f} % ({100 * low:.0f} to {100 * high:.0f})"


def classes(run, guide) -> tuple[list[str], np.ndarray]:
    """Rows of a table, and a picture: one row of samples for each class asked for."""
    (model, variables), (classifier, weights) = run, guide
    sde, view, logits = model.sde, model.data, classifier.classifier()
    label = np.repeat(np.arange(10), NUM_EACH)
    rows, shown = [], None

    @jax.jit
    def draw(variables, weights, guidance):
        score_fn = model.score(variables)
        guide = lambda x, t: logits(weights, sde, x, t)
        guided = class_guided(score_fn, guide, jnp.asarray(label), guidance=guidance)
        return heun(jax.random.key(0), guided, (len(label), *view.shape), sde=sde).x

    for guidance in GUIDANCE:
        x = np.clip(view.to_unit(draw(variables, weights, guidance)), 0, 1)
        right = digits_features(x).label == label
        rows.append(f"| class asked for, guidance {guidance:g} | {share(right)} |")
        if guidance == 1:
            shown = x.reshape(10, NUM_EACH, *view.shape)[:, :12].reshape(-1, *view.shape)
    return rows, pictures.image_grid(shown, num_columns=12)


def inpainted(run) -> tuple[list[str], np.ndarray]:
    """Rows of a table, and a picture: digits, what was given of them, and what was made of it."""
    model, variables = run
    sde, view = model.sde, model.data
    test = view.stored("test", NUM_INPAINTED)
    x = jnp.asarray(view.as_trained(np.random.default_rng(0), test.image))
    mask = np.zeros((8, 8, 1), np.float32)
    mask[:4] = 1

    @jax.jit
    def draw(variables, x):
        return inpaint(
            jax.random.key(1), model.score(variables), x, mask, sde=sde,
            predictor=reverse_diffusion, corrector=langevin, num_steps=200,
        ).x  # fmt: skip

    known = test.image / 16
    blank = known * mask
    mean = known * mask + view.stored("train").image.mean(axis=0) / 16 * (1 - mask)
    filled = np.clip(view.to_unit(draw(variables, x)), 0, 1)
    rows = []
    candidates = {"whole digit": known, "upper half, inpainted": filled}
    candidates |= {"upper half, mean below": mean, "upper half alone": blank}
    for name, images in candidates.items():
        rows.append(f"| {name} | {share(digits_features(images).label == test.label)} |")
    columns = np.stack([known[:12], blank[:12], filled[:12]]).reshape(-1, *view.shape)
    return rows, pictures.image_grid(columns, num_columns=12)


def same_latents(run, other) -> str:
    """How close the latents of two networks are, and those of different digits."""
    (model, first), (_, second) = run, other
    sde, view = model.sde, model.data
    stored = view.stored("test", NUM_ENCODED).image
    x = jnp.asarray(view.dequantized(np.random.default_rng(0), stored))
    solve = functools.partial(encode, sde=sde, rtol=1e-3, atol=1e-3)
    latent = jax.jit(lambda variables: solve(model.score(variables), x).x)
    one, two = (np.asarray(latent(variables)).reshape(len(x), -1) for variables in (first, second))
    distance = lambda a, b: np.mean(np.linalg.norm(a - b, axis=1))
    cosine = lambda a, b: np.mean(
        np.sum(a * b, 1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    )
    shuffled = np.roll(two, 1, axis=0)
    return (
        f"Latents of {len(x)} test digits by two networks of different seeds: distance "
        f"{distance(one, two):.2f}, cosine {cosine(one, two):.3f}; of different digits, distance "
        f"{distance(one, shuffled):.2f}, cosine {cosine(one, shuffled):.3f}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=pathlib.Path)
    parser.add_argument("guide", type=pathlib.Path)
    parser.add_argument("--other", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/digits_control"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    run = load(arguments.run)
    by_class, picture = classes(run, load(arguments.guide))
    pictures.save_png(arguments.out / "digits_classes.png", picture)
    by_half, picture = inpainted(run)
    pictures.save_png(arguments.out / "digits_inpainted.png", picture)
    print("\n".join(["| images | the classifier agrees |", "|---|---|", *by_class, *by_half]))
    if arguments.other:
        print(same_latents(run, load(arguments.other)))


if __name__ == "__main__":
    main()
