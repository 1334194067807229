# SPDX-License-Identifier: Apache-2.0
"""Segments every picture of a folder by a trained model.

python -m launch.segment --workdir=runs/nuclei --images=my/sections

For picture.png the folder <out> then holds picture_mask.png, black and white,
picture_instances.png, whose 16-bit levels number the instances, and picture_overlay.png. More than
65535 instances are numbered by picture_instances.tif instead, of 32 bits. Of a run with several
classes it holds picture_classes.png, whose levels are the classes, and picture_overlay.png.
Pictures in folders below that of --images are segmented too, to folders of the same names; <out>
needs to lie outside of it.

Pictures of up to --max_pixels pixels are segmented tile by tile, whatever their size. Those of more
than 4 million are read and written in strips, and arrays of more than 256 MiB lie in a temporary
file, up to 15 bytes a pixel, in the directory of TMPDIR.
"""

import functools

from absl import flags

from launch import command

WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.", required=True)
IMAGES = flags.DEFINE_string(
    "images", None, "Folder of pictures to segment, or a picture.", required=True
)
DAMAGED = flags.DEFINE_enum(
    "damaged", "raise", ["raise", "skip"], "What to do with pictures that cannot be read."
)
MAX_PIXELS = flags.DEFINE_integer("max_pixels", 10**9, "Most pixels of a picture.")
STEP = flags.DEFINE_integer("step", None, "Step of the checkpoint; the newest by default.")
SYMMETRIES = flags.DEFINE_enum(
    "symmetries",
    "",
    ["", "1", "4", "8"],
    "Flips and turns to average; those of the run by default.",
)
OUT = flags.DEFINE_string("out", "", "Folder; <workdir>/segmented by default.")


def prepare() -> command.Job:
    command.require_positive(max_pixels=MAX_PIXELS.value)
    from scorejax import runs, systems
    from scorejax.capabilities import Segments
    from scorejax.evaluate import segmented_folder

    config = runs.read_config(WORKDIR.value)
    out = command.output(OUT.value, WORKDIR.value, "segmented", folder=True)
    if SYMMETRIES.value:
        config.update(eval_symmetries=int(SYMMETRIES.value))
    model = systems.require(config, Segments)
    segment, load = model.segmenter(), model.load_picture
    segmented_folder.require_apart(IMAGES.value, out)
    load = functools.partial(load, max_pixels=MAX_PIXELS.value)
    pictures = segmented_folder.readable(IMAGES.value, damaged=DAMAGED.value, load=load)
    run = runs.open(WORKDIR.value, STEP.value)

    def job() -> None:
        segmented_folder.segment_pictures(segment, run.variables, pictures, out, load=load)
        if not command.writes():
            return
        for line in pictures.skipped:
            print(f"left out: {line}")
        print(f"{len(pictures.paths)} pictures segmented: {out}")

    return job


if __name__ == "__main__":
    command.run(prepare, shares_work=True)
