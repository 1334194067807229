# SPDX-License-Identifier: Apache-2.0
"""Completes images of which only part was measured: <out>.png and <out>.npz.

python -m launch.inverse --workdir=runs/digits --task=inpaint --num=16
python -m launch.inverse --workdir=runs/photos --task=inpaint --mask=hole.png
python -m launch.inverse --workdir=runs/photos --task=super_resolution --factor=4

The tasks are inpaint, colorize, super_resolution, deblur and fourier. In the picture each image has
three rows: the image, what was seen of it, and what the model makes of that, by the method of its
paper (predictor and corrector, or annealed Langevin dynamics), with the measurement imposed at
every step.
"""

from absl import flags

from launch import command

WORKDIR = flags.DEFINE_string("workdir", None, "The run whose model completes.", required=True)
TASK = flags.DEFINE_string("task", "inpaint", "What is measured.")
MASK = flags.DEFINE_string("mask", "", "For inpaint: an image file, white where it is known.")
FACTOR = flags.DEFINE_integer("factor", 2, "For super_resolution: pixels per block, each way.")
SPLIT = flags.DEFINE_string("split", "test", "test or train.")
NUM = flags.DEFINE_integer("num", 16, "The first so many images.")
NUM_STEPS = flags.DEFINE_integer("num_steps", 0, "0: as the config says.", lower_bound=0)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 256, "At most so many at a time, on all devices.")
SEED = flags.DEFINE_integer("seed", 0, "Of the noise.")
STEP = flags.DEFINE_integer("step", None, "Which checkpoint; the newest by default.")
OUT = flags.DEFINE_string("out", "", "Path without ending; <workdir>/<task> by default.")


def prepare() -> command.Job:
    command.require_positive(num=NUM.value, batch_size=BATCH_SIZE.value)
    config = command.saved_config(WORKDIR.value)
    import numpy as np

    from scorejax import systems
    from scorejax.files import save_npz

    view = systems.capability(config, "image_view")(config)
    measurement = systems.capability(config, "measurement")
    options = {"factor": FACTOR.value, "seed": SEED.value, "mask": read_mask()}
    operator = measurement(TASK.value, view.shape, **options)
    completion = systems.capability(config, "completion")
    complete = completion(config, operator, num_steps=NUM_STEPS.value)
    stored = view.stored(SPLIT.value, NUM.value).image
    restored = command.restore(WORKDIR.value, STEP.value)

    def job() -> None:
        from scorejax.evaluate import pictures

        x = view.as_trained(np.random.default_rng(SEED.value), stored)
        rows = {"image": x, "rng": command.keys(SEED.value, len(x))}
        variables = restored.params, restored.model_state
        found = command.in_chunks(complete, variables, rows, BATCH_SIZE.value, "images")
        out = command.output(OUT.value, WORKDIR.value, TASK.value)
        found |= {"original": view.to_unit(x)}
        save_npz(f"{out}.npz", **found)
        shown = [found[name][:16] for name in ("original", "measured", "image")]
        grid = pictures.image_grid(np.concatenate(shown), num_columns=len(shown[0]))
        pictures.save_png(f"{out}.png", grid)
        error = lambda name: np.sqrt(np.mean((found[name] - found["original"]) ** 2))
        print(
            f"{len(x)} images; root mean squared error of what was seen {error('measured'):.4f}, "
            f"of what was made of it {error('image'):.4f}: {out}.png, {out}.npz"
        )

    return job


def read_mask():
    """The mask of --mask as True where the image is known, or None. Raises: ValueError."""
    if not MASK.value:
        return None
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    try:
        return np.asarray(Image.open(MASK.value).convert("L")) > 127
    except UnidentifiedImageError:
        raise ValueError(f"--mask={MASK.value} is no image") from None


if __name__ == "__main__":
    command.run(prepare)
