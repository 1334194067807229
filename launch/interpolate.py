# SPDX-License-Identifier: Apache-2.0
"""Goes from image to image through the latents of a model: <out>.png, a row for each pair.

python -m launch.interpolate --workdir=runs/digits --num=8 --num_frames=9

Both images of a pair are encoded by the probability-flow ODE; what lies between their latents, on a
sphere, is decoded.
"""

from absl import flags

from launch import command

WORKDIR = flags.DEFINE_string("workdir", None, "The run whose latents they are.", required=True)
SPLIT = flags.DEFINE_string("split", "test", "test or train.")
NUM = flags.DEFINE_integer("num", 8, "Pairs, of the first images: 1 and 2, 3 and 4 ...")
NUM_FRAMES = flags.DEFINE_integer("num_frames", 9, "Of a row, both ends among them.", lower_bound=2)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "At most so many pairs at a time.")
SEED = flags.DEFINE_integer("seed", 0, "Of dequantisation.")
STEP = flags.DEFINE_integer("step", None, "Which checkpoint; the newest by default.")
OUT = flags.DEFINE_string("out", "", "Path without ending; <workdir>/interpolation by default.")


def prepare() -> command.Job:
    command.require_positive(num=NUM.value, batch_size=BATCH_SIZE.value)
    config = command.saved_config(WORKDIR.value)
    import numpy as np

    from scorejax import systems
    from scorejax.files import save_npz

    view = systems.capability(config, "image_view")(config)
    path = systems.capability(config, "interpolation")(config, NUM_FRAMES.value)
    stored = view.stored(SPLIT.value, 2 * NUM.value).image
    if len(stored) < 2 * NUM.value:
        raise ValueError(f"--num needs to be at most {len(stored) // 2} pairs; got {NUM.value}")
    restored = command.restore(WORKDIR.value, STEP.value)

    def job() -> None:
        from scorejax.evaluate import pictures

        x = view.dequantized(np.random.default_rng(SEED.value), stored)
        rows = {"start": x[0::2], "end": x[1::2]}
        variables = restored.params, restored.model_state
        frames = command.in_chunks(path, variables, rows, BATCH_SIZE.value, "pairs")["image"]
        out = command.output(OUT.value, WORKDIR.value, "interpolation")
        save_npz(f"{out}.npz", images=frames)
        flat = frames.reshape(-1, *view.shape)
        pictures.save_png(f"{out}.png", pictures.image_grid(flat, num_columns=NUM_FRAMES.value))
        print(f"{len(frames)} pairs: {out}.png, {out}.npz")

    return job


if __name__ == "__main__":
    command.run(prepare)
