# SPDX-License-Identifier: Apache-2.0
"""Measures bits per dimension of images, or nats of vectors: <out>.json, <out>.npz with each one's.

python -m launch.likelihood --workdir=runs/digits --split=test
python -m launch.likelihood --workdir=runs/digits --split=train --num=200 --repeats=5
python -m launch.likelihood --workdir=runs/digits --num=100 --repeats=20 --importance_weighted
python -m launch.likelihood --workdir=runs/photos --images=my/pictures
python -m launch.likelihood --workdir=runs/magic --split=valid

Densities of tables are in the units of the model, of standardised rows say.

A killed call resumes at its last chunk of examples.
"""

from absl import flags

from launch import command

WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.", required=True)
SPLIT = flags.DEFINE_string("split", "test", "test or train; valid, of tables.")
IMAGES = flags.DEFINE_string("images", "", "Folder of pictures, or a picture, in place of a split.")
NUM = flags.DEFINE_integer("num", 0, "Number of examples, from the first; 0: all.", lower_bound=0)
REPEATS = flags.DEFINE_integer("repeats", 1, "Draws of dequantisation and probe noise per example.")
IMPORTANCE_WEIGHTED = flags.DEFINE_bool(
    "importance_weighted", False, "Also the tighter bound, by exact divergences: slower."
)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "Examples at a time, on all devices.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of the noise.", lower_bound=0)
WALKS = flags.DEFINE_integer("num_walks", 256, "For energies: walks that bound the normaliser.")
TEMPERATURES = flags.DEFINE_integer("num_temperatures", 600, "For energies: steps of a walk.")
CHAIN_STEPS = flags.DEFINE_integer(
    "num_chain_steps", 1000, "For energies: steps of the chains that the walks back start from."
)
STEP = flags.DEFINE_integer("step", None, "Step of the checkpoint; the newest by default.")
OUT = flags.DEFINE_string(
    "out", "", "Folder, or path without suffix; <workdir>/likelihood_<split, or images> by default."
)


def prepare() -> command.Job:
    command.require_positive(repeats=REPEATS.value, batch_size=BATCH_SIZE.value)
    if IMAGES.value and flags.FLAGS["split"].present:
        raise ValueError("--images takes the place of --split; give one of them")
    from scorejax import runs, systems
    from scorejax.capabilities import MeasuresDensity, Normalizes
    from scorejax.evaluate.density_report import stored_examples

    model = systems.require(runs.read_config(WORKDIR.value), MeasuresDensity)
    num = NUM.value or None
    if IMAGES.value:
        command.require_images(model)
        name, origin = "images", {"images": IMAGES.value}
        examples = model.data.pictures(IMAGES.value, num)
    else:
        name, origin = SPLIT.value, {"split": SPLIT.value}
        examples = stored_examples(model.data, SPLIT.value, num)
    model.likelihood(exact=IMPORTANCE_WEIGHTED.value)  # Refuses what the model cannot.
    normalize = None
    if isinstance(model, Normalizes):
        normalize = model.normalizer(
            num_walks=WALKS.value,
            num_temperatures=TEMPERATURES.value,
            num_chain_steps=CHAIN_STEPS.value,
            chunk=BATCH_SIZE.value,
        )
    out = command.output(OUT.value, WORKDIR.value, f"likelihood_{name}")
    run = runs.open(WORKDIR.value, STEP.value)

    def job() -> None:
        from scorejax.evaluate.density_report import density_report
        from scorejax.evaluate.reports import save_and_print

        options = {"exact": IMPORTANCE_WEIGHTED.value, "seed": SEED.value}
        options |= {"batch_size": BATCH_SIZE.value, "out": out, "normalize": normalize}
        report, parts = density_report(model, run, examples, REPEATS.value, **options)
        if command.writes():
            save_and_print(f"{out}.json", {**origin, "step": run.step, **report})
        parts.remove()

    return job


if __name__ == "__main__":
    command.run(prepare, shares_work=True)
