# SPDX-License-Identifier: Apache-2.0
"""Interpolates through the latents of a model: <out>.png, a row for each pair, and <out>.npz.

python -m launch.interpolate --workdir=runs/digits --num=8 --num_frames=9

The probability-flow ODE encodes both images of a pair and decodes the latents between theirs, which
lie on a sphere. A model without an encoder, such as a ladder of energies, goes from one sample to
another by mixing all the noise of their chains, on the sphere too; --split then plays no part.
"""

from absl import flags

from launch import command

WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.", required=True)
SPLIT = flags.DEFINE_string("split", "test", "test or train.")
NUM = flags.DEFINE_integer("num", 8, "Pairs, of the first images: 1 and 2, 3 and 4 ...")
NUM_FRAMES = flags.DEFINE_integer("num_frames", 9, "Images per row, with both ends.", lower_bound=2)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Pairs at a time, on all devices.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of the dequantisation.", lower_bound=0)
STEP = flags.DEFINE_integer("step", None, "Step of the checkpoint; the newest by default.")
OUT = flags.DEFINE_string(
    "out", "", "Folder, or path without suffix; <workdir>/interpolation by default."
)


def prepare() -> command.Job:
    command.require_positive(num=NUM.value, batch_size=BATCH_SIZE.value)
    from scorejax import runs, systems
    from scorejax.capabilities import Interpolates, InterpolatesNoise
    from scorejax.files import save_npz

    config = runs.read_config(WORKDIR.value)
    model, stored = systems.load_model(config), None
    if not isinstance(model, InterpolatesNoise):
        model = systems.require(config, Interpolates)
    command.require_images(model)
    if isinstance(model, InterpolatesNoise):
        path = model.noise_interpolation(NUM_FRAMES.value)
    else:
        path = model.interpolation(NUM_FRAMES.value)
        stored = model.data.stored(SPLIT.value, 2 * NUM.value).image
        if len(stored) < 2 * NUM.value:
            raise ValueError(f"--num needs to be at most {len(stored) // 2} pairs; got {NUM.value}")
    out = command.output(OUT.value, WORKDIR.value, "interpolation")
    run = runs.open(WORKDIR.value, STEP.value)

    def job() -> None:
        import jax
        import numpy as np

        from scorejax.evaluate import pictures, reports
        from scorejax.evaluate.chunks import in_chunks
        from scorejax.random import row_keys

        if stored is None:
            rows = {"rng": row_keys(jax.random.key(SEED.value), NUM.value)}
        else:
            x = model.data.dequantized(np.random.default_rng(SEED.value), stored)
            rows = {"start": x[0::2], "end": x[1::2]}
        frames = in_chunks(path, run.variables, rows, BATCH_SIZE.value, "pairs")["image"]
        if command.writes():
            save_npz(f"{out}.npz", images=frames)
            flat = frames.reshape(-1, *frames.shape[2:])
            pictures.save_png(f"{out}.png", pictures.image_grid(flat, num_columns=NUM_FRAMES.value))
            print(f"{len(frames)} pairs: {out}.png, {out}.npz")
        reports.require_finite({"image": frames}, "interpolations", out)

    return job


if __name__ == "__main__":
    command.run(prepare, shares_work=True)
