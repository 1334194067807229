# SPDX-License-Identifier: Apache-2.0
"""Draws samples from a trained model: <out>.png, a grid, and <out>.npz, images and evaluations.

python -m launch.sample --workdir=runs/digits --num=64 --sampler=pc
python -m launch.sample --workdir=runs/digits --sampler=ode --out=runs/digits/ode
python -m launch.sample --workdir=runs/digits --sampler=heun --nfe=35
python -m launch.sample --workdir=runs/digits --classifier=runs/guide --label=3
python -m launch.sample --workdir=runs/nuclei --images=my/sections

With --images a model that segments, such as bionet, does so with every picture of a folder. In the
folder <out> there are then, for picture.png, picture_mask.png, black and white,
picture_instances.png, whose 16-bit levels number the instances, and picture_overlay.png. More than
65535 instances are numbered by picture_instances.tif instead, of 32 bits. <out> needs to be another
folder than that of the pictures.
"""

import pathlib
import sys

from absl import flags

from launch import command

WORKDIR = flags.DEFINE_string("workdir", None, "The run to sample from.", required=True)
SAMPLER = flags.DEFINE_string(
    "sampler", "", "pc (predictor-corrector), ode, heun, dpm++, sde-dpm++ (DPM-Solver++) or, of "
    "NCSNv2, ald (annealed Langevin dynamics); the paper's own by default."
)  # fmt: skip
NUM = flags.DEFINE_integer("num", 64, "How many.")
NUM_STEPS = flags.DEFINE_integer(
    "num_steps", 0, "Of the sampler; 0: its usual number.", lower_bound=0
)
NFE = flags.DEFINE_integer("nfe", 0, "Instead: at most so many network calls.", lower_bound=0)
CLASSIFIER = flags.DEFINE_string("classifier", "", "A run of noisy_classifier that guides.")
LABEL = flags.DEFINE_integer("label", None, "The class that it guides to.", lower_bound=0)
GUIDANCE = flags.DEFINE_float("guidance", 1.0, "How strongly; 1 is Bayes' rule.", lower_bound=0)
IMAGES = flags.DEFINE_string("images", "", "A folder of pictures to segment.")
DAMAGED = flags.DEFINE_enum(
    "damaged", "raise", ["raise", "skip"], "What to do with pictures that cannot be read."
)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 256, "At most so many at a time, on all devices.")
SEED = flags.DEFINE_integer("seed", 0, "Of the noise.")
STEP = flags.DEFINE_integer("step", None, "Which checkpoint; the newest by default.")
OUT = flags.DEFINE_string("out", "", "Path without ending; <workdir>/samples by default.")


def prepare() -> command.Job:
    command.require_positive(num=NUM.value, batch_size=BATCH_SIZE.value)
    config = command.saved_config(WORKDIR.value)
    if IMAGES.value:
        return prepare_segmentation(config)
    from scorejax import systems
    from scorejax.files import save_npz

    options, given = {"num_steps": NUM_STEPS.value, "nfe": NFE.value}, ()
    if CLASSIFIER.value or LABEL.value is not None:
        condition, *given = class_condition(config)
        options["condition"] = condition
    draw = systems.capability(config, "sampler")(config, SAMPLER.value, **options)
    restored = command.restore(WORKDIR.value, STEP.value)

    def job() -> None:
        from scorejax.evaluate import pictures

        rows = {"rng": command.keys(SEED.value, NUM.value)}
        variables = (restored.params, restored.model_state), *given
        fn = lambda variables, batch: draw(variables[0], batch["rng"], *variables[1:])
        drawn = command.in_chunks(fn, variables, rows, BATCH_SIZE.value, "samples")
        out = command.output(OUT.value, WORKDIR.value, "samples")
        save_npz(f"{out}.npz", images=drawn["image"], nfe=drawn["nfe"], step=restored.step)
        pictures.save_png(f"{out}.png", pictures.image_grid(drawn["image"][:100]))
        nfe = drawn["nfe"].mean()
        print(f"{NUM.value} samples, {nfe:.0f} evaluations each: {out}.png, {out}.npz")

    return job


def prepare_segmentation(config) -> command.Job:
    """Masks of the pictures in a folder.

    Raises: ValueError, also for a damaged picture, or if the masks would lie among the pictures.
    """
    require_apart(IMAGES.value, OUT.value or pathlib.Path(WORKDIR.value) / "segmented")
    from scorejax import systems
    from scorejax.evaluate import segmented_folder

    segment = systems.capability(config, "segmenter")(config)
    found = segmented_folder.readable(IMAGES.value, damaged=DAMAGED.value)
    restored = command.restore(WORKDIR.value, STEP.value)

    def job() -> None:
        import tqdm

        from scorejax.data.picture_files import load_image

        out = pathlib.Path(command.output(OUT.value, WORKDIR.value, "segmented"))
        variables = restored.params, restored.model_state
        out.mkdir(exist_ok=True)
        for path in tqdm.tqdm(found.paths, unit=" pictures", file=sys.stderr, disable=None):
            image = load_image(path)
            instances = segment(variables, image).instances
            segmented_folder.save(out / path.stem, image, instances)
        for line in found.skipped:
            print(f"left out: {line}")
        print(f"{len(found.paths)} pictures segmented: {out}")

    return job


def require_apart(images: str, out: str | pathlib.Path) -> None:
    """Raises ValueError if what is written to `out` would lie among the pictures of `images`."""
    if pathlib.Path(out).resolve() == pathlib.Path(images).expanduser().resolve():
        raise ValueError(
            f"--out needs to be another folder than --images; both are {images}. Masks there would "
            "be taken for pictures the next time."
        )


def class_condition(config):
    """What makes scores class-conditional, and the classifier's weights. Raises: ValueError."""
    from scorejax import systems
    from scorejax.guidance import class_guided

    if not CLASSIFIER.value or LABEL.value is None:
        raise ValueError("--classifier and --label need each other; only one is given")
    theirs = command.saved_config(CLASSIFIER.value)
    logits, label = systems.capability(theirs, "classifier")(theirs), LABEL.value
    for key in ("dataset", "image_size", "centered"):
        if theirs.get(key) != config.get(key):
            raise ValueError(
                f"the classifier in {CLASSIFIER.value} has {key}={theirs.get(key)!r}, the run has "
                f"{config.get(key)!r}"
            )
    if label >= theirs.num_classes:
        raise ValueError(f"--label needs to be below {theirs.num_classes}; got {label}")
    restored = command.restore(CLASSIFIER.value, None)

    def condition(score_fn, sde, num, variables):
        import jax.numpy as jnp

        guide = lambda x, t: logits(variables, sde, x, t)
        labels = jnp.full(num, label)
        return class_guided(score_fn, guide, labels, guidance=GUIDANCE.value)

    return condition, (restored.params, restored.model_state)


if __name__ == "__main__":
    command.run(prepare)
