# SPDX-License-Identifier: Apache-2.0
"""Completes partly measured images: <out>.png and <out>.npz.

python -m launch.complete --workdir=runs/digits --task=inpaint --num=16
python -m launch.complete --workdir=runs/photos --task=inpaint --mask=hole.png
python -m launch.complete --workdir=runs/photos --task=super_resolution --factor=4

The tasks are inpaint, colorize, super_resolution, deblur and fourier. <out>.png has three rows:
the images, their measurements, and the completions by the sampling chain of the model's paper
(predictor and corrector, or annealed Langevin dynamics), with the measurement imposed at every
step.
"""

from absl import flags

from launch import command

WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.", required=True)
TASK = flags.DEFINE_string("task", "inpaint", "Kind of measurement.")
MASK = flags.DEFINE_string("mask", "", "For inpaint: an image file, white where pixels are known.")
FACTOR = flags.DEFINE_integer("factor", 2, "For super_resolution: side of a block, in pixels.")
SPLIT = flags.DEFINE_string("split", "test", "test or train.")
NUM = flags.DEFINE_integer("num", 16, "Number of images, the first of the split.")
NUM_STEPS = flags.DEFINE_integer("num_steps", 0, "Steps; 0: as in the config.", lower_bound=0)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 256, "Images at a time, on all devices.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of the noise.", lower_bound=0)
STEP = flags.DEFINE_integer("step", None, "Step of the checkpoint; the newest by default.")
OUT = flags.DEFINE_string("out", "", "Folder, or path without suffix; <workdir>/<task> by default.")


def prepare() -> command.Job:
    command.require_positive(num=NUM.value, batch_size=BATCH_SIZE.value)
    import jax
    import numpy as np

    from scorejax import runs, systems
    from scorejax.capabilities import Completes
    from scorejax.data.picture_files import load_known
    from scorejax.score_model import control

    model = systems.require(runs.read_config(WORKDIR.value), Completes)
    command.require_images(model)
    mask = load_known(MASK.value) if MASK.value else None
    options = {"mask": mask, "factor": FACTOR.value, "seed": SEED.value}
    operator = control.measurement(TASK.value, model.data.shape, **options)
    complete = model.completion(operator, num_steps=NUM_STEPS.value)
    stored = model.data.stored(SPLIT.value, NUM.value).image
    out = command.output(OUT.value, WORKDIR.value, TASK.value)
    run = runs.open(WORKDIR.value, STEP.value)

    def job() -> None:
        from scorejax.evaluate import chunks, reports

        x = model.data.as_trained(np.random.default_rng(SEED.value), stored)
        rng, sizes = jax.random.key(SEED.value), {"batch_size": BATCH_SIZE.value}
        completions = chunks.measure_in_chunks(rng, complete, run.variables, x, **sizes)
        completions["original"] = model.data.to_data(x)
        if command.writes():
            print(reports.save_completions(out, completions))
        reports.require_finite(completions, "completions", out)

    return job


if __name__ == "__main__":
    command.run(prepare, shares_work=True)
