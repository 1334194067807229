# SPDX-License-Identifier: Apache-2.0
"""The score SDE in minutes, on real digits: trains, resumes, samples and measures likelihoods.

    make demo        or        python -m launch.demo --workdir=runs/demo

Uses the config and the functions of the other commands, so that they go on from its workdir. A
call that was stopped, or that is repeated, resumes where it stands.
"""

import time

from absl import flags

from launch import command

WORKDIR = flags.DEFINE_string("workdir", "runs/demo", "Directory for everything.")
STEPS = flags.DEFINE_integer("num_train_steps", 1000, "Updates, half of them before a break.")
NUM = flags.DEFINE_integer("num", 64, "Images to sample, and of each kind to measure.")
ENDING = """
Done in {0:.1f} minutes. Bits/dim, lower is likelier, one probe an image:
{1}

Look at   {2}/samples_pc.png, samples_ode.png, likelihood.png
          {2}/pictures/: the loss, samples, and the way from noise to them
Try next  .venv/bin/python -m launch.sample --workdir={2} --num=100 --out={2}/more
          .venv/bin/python -m launch.likelihood --workdir={2} --split=test --num=100
          .venv/bin/python -m launch.train --config=configs/score_sde/digits.py:ve --workdir=runs/ve
          tensorboard --logdir={2}/tensorboard"""


def prepare() -> command.Job:
    command.require_positive(num=NUM.value, num_train_steps=STEPS.value)
    from configs.score_sde import digits
    from scorejax.files import as_path

    config = digits.get_config("vp")
    config.save_every = config.eval_every = max(STEPS.value // 2, 1)
    config.num_steps_per_call = 10 if STEPS.value % 20 == 0 else 1
    config.update(ema_rate=0.99, rtol=1e-3, atol=1e-3, eval_examples=256, eval_bits_examples=0)
    return lambda: demonstrate(config, as_path(WORKDIR.value), NUM.value)


def demonstrate(config, workdir, num: int) -> None:
    import jax

    from scorejax import runs, systems
    from scorejax.evaluate import chunks, foreign_images, reports
    from scorejax.train import loop

    started, whole = time.monotonic(), STEPS.value
    system, model = systems.load(config), systems.load_model(config)
    for last in (config.save_every, whole):
        config.num_train_steps = last
        print(f"\nTraining a VP score SDE on 899 digits, to step {last} of {whole} ...", flush=True)
        if loop.train(system, config, workdir).step < last:  # SIGTERM
            return
    variables, key = runs.open(workdir).variables, jax.random.key(0)
    for name in ("pc", "ode"):
        print(f"\nSampling {num} digits, --sampler={name} ...", flush=True)
        drawn = chunks.draw_in_chunks(key, model.sampler(name), variables, num, batch_size=num)
        reports.save_samples(str(workdir / f"samples_{name}"), drawn, step=whole, sampler=name)
        print(f"  {drawn['nfe'].mean():.0f} evaluations of the score for each image")
    print(f"\nMeasuring likelihoods of {3 * num} images ...", flush=True)
    bits = foreign_images.digits_beside_others(model.likelihood(), variables, model.data, num)
    foreign_images.save_histogram(workdir / "likelihood.png", bits)
    print(ENDING.format((time.monotonic() - started) / 60, foreign_images.table(bits), workdir))


if __name__ == "__main__":
    command.run(prepare)
