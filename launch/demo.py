# SPDX-License-Identifier: Apache-2.0
"""The score SDE in minutes, on real digits: trains, resumes, samples and measures likelihoods.

    make demo        or        python -m launch.demo --workdir=runs/demo

Uses the config and the functions of the other commands, so that they go on from its workdir. A
call that was stopped, or that is repeated, goes on where it stands.
"""

import importlib.resources
import pathlib
import time

from absl import flags

from launch import command

WORKDIR = flags.DEFINE_string("workdir", "runs/demo", "Where everything goes.")
STEPS = flags.DEFINE_integer("num_train_steps", 1000, "Updates, half of them before a break.")
NUM = flags.DEFINE_integer("num", 64, "Images to sample, and of each kind to measure.")


def prepare() -> command.Job:
    command.require_positive(num=NUM.value, num_train_steps=STEPS.value)
    from configs.score_sde import digits

    config = digits.get_config("vp")
    config.num_train_steps, config.save_every = STEPS.value, max(STEPS.value // 2, 1)
    config.eval_every = config.save_every
    config.num_steps_per_call = 10 if STEPS.value % 20 == 0 else 1
    config.ema_rate = 0.99
    config.rtol = config.atol = 1e-3
    config.eval_examples, config.eval_bits_examples = 256, 0  # bits/dim are for the end
    workdir = pathlib.Path(WORKDIR.value)
    return lambda: demonstrate(config, workdir, NUM.value)


def demonstrate(config, workdir: pathlib.Path, num: int) -> None:
    """Trains, samples and measures; says what it does, and ends with a summary."""
    from scorejax.evaluate import pictures

    started = time.monotonic()
    variables = train_with_a_break(config, workdir)
    for name in ("pc", "ode"):
        print(f"\nSampling {num} digits, --sampler={name} ...", flush=True)
        drawn = draw(config, name, variables, num)
        pictures.save_png(workdir / f"samples_{name}.png", pictures.image_grid(drawn["image"]))
        print(f"  {drawn['nfe'].mean():.0f} evaluations of the score for each image")

    print(f"\nMeasuring likelihoods of {3 * num} images ...", flush=True)
    bits = measure(config, variables, num)
    picture = pictures.histogram_picture(bits, xlabel="bits/dim: lower is likelier")
    pictures.save_png(workdir / "likelihood.png", picture)
    summarise(bits, workdir, time.monotonic() - started)


def train_with_a_break(config, workdir: pathlib.Path):
    """Trains to the half, stops, and lets a second call go on; returns the averaged weights."""
    from scorejax import systems
    from scorejax.train import loop

    system, whole = systems.load(config), config.num_train_steps
    for last in (config.save_every, whole):
        config.num_train_steps = last
        print(f"\nTraining a VP score SDE on 899 digits, to step {last} of {whole} ...", flush=True)
        loop.train(system, config, workdir)
    restored = command.restore(str(workdir), None)
    return restored.params, restored.model_state


def draw(config, sampler: str, variables, num: int) -> dict:
    """Samples in [0, 1], and what each of them cost."""
    from scorejax.systems import score_sde

    sample = score_sde.sampler(config, sampler)
    fn = lambda variables, rows: sample(variables, rows["rng"])
    return command.in_chunks(fn, variables, {"rng": command.keys(0, num)}, num, "images")


def measure(config, variables, num: int) -> dict:
    """Bits/dim (num,) of digits held out from training, and of two kinds that are no digits."""
    import numpy as np

    from scorejax.systems import score_sde

    view, rng = score_sde.image_view(config), np.random.default_rng(0)
    samples = importlib.resources.files("scorejax.data") / "samples" / "fashion_mnist_8x8.npz"
    with samples.open("rb") as file:
        clothes = np.load(file)["image"]
    noise = rng.integers(0, view.levels, (num, *view.shape), np.uint8)
    kinds = {"test digits": view.stored("test").image, "clothes": clothes, "noise": noise}
    num = min(num, *map(len, kinds.values()))
    stored = np.concatenate([images[:num] for images in kinds.values()])
    rows = {"image": view.dequantized(rng, stored), "rng": command.keys(0, len(stored))}
    found = command.in_chunks(score_sde.likelihood(config), variables, rows, num, "images")
    return dict(zip(kinds, np.split(found["bits_per_dim"], len(kinds)), strict=True))


def summarise(bits: dict, workdir: pathlib.Path, seconds: float) -> None:
    """What was found, where the pictures are, and what to try next."""
    print(f"\nDone in {seconds / 60:.1f} minutes. Bits/dim, lower is likelier, one probe an image:")
    for kind, values in bits.items():
        error = values.std(ddof=1) / len(values) ** 0.5
        print(f"  {kind:12s} {values.mean():6.2f} ± {error:.2f}")
    python = ".venv/bin/python -m"
    print(f"""
Look at   {workdir}/samples_pc.png, samples_ode.png, likelihood.png
          {workdir}/pictures/: the loss, samples, and the way from noise to them
Try next  {python} launch.sample --workdir={workdir} --num=100 --out={workdir}/more
          {python} launch.likelihood --workdir={workdir} --split=test --num=100
          {python} launch.train --config=configs/score_sde/digits.py:ve --workdir=runs/ve
          tensorboard --logdir={workdir}/tensorboard""")


if __name__ == "__main__":
    command.run(prepare)
