# SPDX-License-Identifier: Apache-2.0
"""Draws samples from a trained model: <out>.png, a grid, and <out>.npz, images and evaluations.

python -m launch.sample --workdir=runs/digits --num=64 --sampler=pc
python -m launch.sample --workdir=runs/digits --sampler=ode --out=runs/digits/ode
python -m launch.sample --workdir=runs/digits --sampler=heun --nfe=35
python -m launch.sample --workdir=runs/digits --classifier=runs/guide --label=3
"""

from absl import flags

from launch import command

WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.", required=True)
SAMPLER = flags.DEFINE_string(
    "sampler", "", "pc (predictor-corrector), ode, heun, dpm++, sde-dpm++ (DPM-Solver++), or ald "
    "(annealed Langevin dynamics) if the model has noise levels; langevin for energies; by default "
    "the paper's own."
)  # fmt: skip
NUM = flags.DEFINE_integer("num", 64, "Number of samples.")
NUM_STEPS = flags.DEFINE_integer("num_steps", 0, "Steps; 0: the sampler's default.", lower_bound=0)
NFE = flags.DEFINE_integer("nfe", 0, "Network evaluations, at most.", lower_bound=0)
CLASSIFIER = flags.DEFINE_string("classifier", "", "Directory of a classifier's run, to guide by.")
LABEL = flags.DEFINE_integer("label", None, "Class to guide to.", lower_bound=0)
GUIDANCE = flags.DEFINE_float("guidance", 1.0, "Strength; 1 is Bayes' rule.", lower_bound=0)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 256, "Samples at a time, on all devices.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of the noise.", lower_bound=0)
STEP = flags.DEFINE_integer("step", None, "Step of the checkpoint; the newest by default.")
OUT = flags.DEFINE_string(
    "out", "", "Folder, or path without suffix; <workdir>/samples by default."
)
MOVED = [flags.DEFINE_string(name, "", "See launch.segment.") for name in ("images", "damaged")]


def prepare() -> command.Job:
    if any(flag.value for flag in MOVED):
        raise ValueError("--images and --damaged are flags of launch.segment")
    command.require_positive(num=NUM.value, batch_size=BATCH_SIZE.value)
    import jax

    from scorejax import runs, systems
    from scorejax.capabilities import DrawsSamples, Guides, sampler_name
    from scorejax.score_model import control

    model = systems.require(runs.read_config(WORKDIR.value), DrawsSamples)
    options, arguments = {"num_steps": NUM_STEPS.value, "nfe": NFE.value}, ()
    if CLASSIFIER.value or LABEL.value is not None:
        if not CLASSIFIER.value or LABEL.value is None:
            raise ValueError("--classifier and --label need each other; only one is given")
        guide = systems.require(runs.read_config(CLASSIFIER.value), Guides)
        options["condition"] = control.class_condition(model, guide, LABEL.value, GUIDANCE.value)
        arguments = (runs.open(CLASSIFIER.value).variables,)
    draw = model.sampler(SAMPLER.value, **options)
    out = command.output(OUT.value, WORKDIR.value, "samples")
    run = runs.open(WORKDIR.value, STEP.value)

    def job() -> None:
        from scorejax.evaluate import chunks, reports

        rows = {"arguments": arguments, "batch_size": BATCH_SIZE.value}
        rng = jax.random.key(SEED.value)
        samples = chunks.draw_in_chunks(rng, draw, run.variables, NUM.value, **rows)
        if command.writes():
            name = sampler_name(model, SAMPLER.value)
            paths = reports.save_samples(out, samples, step=run.step, sampler=name)
            print(f"{NUM.value} samples, {samples['nfe'].mean():.0f} evaluations each: {paths}")
        reports.require_finite(samples, "samples", out)

    return job


if __name__ == "__main__":
    command.run(prepare, shares_work=True)
