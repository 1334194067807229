# SPDX-License-Identifier: Apache-2.0
"""Evaluates a trained model: numbers in <out>.json, and pictures beside it, <out>_<name>.png.

python -m launch.evaluate --workdir=runs/digits
python -m launch.evaluate --workdir=runs/digits --metrics=loss,bits_per_dim
python -m launch.evaluate --config=configs/ncsnv2/digits.py --metrics=ladder
python -m launch.evaluate --workdir=runs/x --metrics=fid,is,kid --inception=weights.pth \\
    --num_samples=50000 --sampler=heun --nfe=35 --reference=cifar10.npz

fid, fid_infinity, is, kid and precision_recall compare samples with real images in the features of
FID's InceptionV3. The reference is a file of mu and sigma, or else all training images, whose
statistics are then saved to <out>_reference.npz. A killed call resumes at its last chunk of images.
A sample that is not finite counts as a black image, and is reported.

Pictures of training, such as which rows peers chose, are drawn from the run's metrics.jsonl.

With --config in place of a run, only metrics of the data set are available, such as ladder.
"""

from absl import flags
from ml_collections import config_flags

from launch import command

WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.")
CONFIG = config_flags.DEFINE_config_file("config", None, "Instead of a run: a config file.")
METRICS = flags.DEFINE_list("metrics", "", "Names, such as loss,bits_per_dim; all by default.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of the noise.", lower_bound=0)
STEP = flags.DEFINE_integer("step", None, "Step of the checkpoint; the newest by default.")
INCEPTION = flags.DEFINE_string("inception", "", "File with the weights of FID's InceptionV3.")
REFERENCE = flags.DEFINE_string("reference", "", "Statistics of real images, an npz file.")
NUM_SAMPLES = flags.DEFINE_integer("num_samples", 50_000, "Number of samples.", lower_bound=10)
SAMPLER = flags.DEFINE_string("sampler", "", "As in launch.sample.")
NFE = flags.DEFINE_integer("nfe", 0, "As in launch.sample.", lower_bound=0)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 256, "Samples at a time, on all devices.")
OUT = flags.DEFINE_string(
    "out", "", "Folder, or path without suffix; <workdir>/evaluation by default."
)


def prepare() -> command.Job:
    command.require_positive(batch_size=BATCH_SIZE.value)
    if (WORKDIR.value is None) == (CONFIG.value is None):
        raise ValueError("give either --workdir, a run, or --config, for metrics of the data alone")
    from scorejax import capabilities, runs, systems
    from scorejax.evaluate import sample_report

    if CONFIG.value is not None:
        config = command.config(CONFIG)
        model = systems.require(config, capabilities.DescribesData)
        builders, further = model.data_metrics(), ()
    else:
        config, further = runs.read_config(WORKDIR.value), sample_report.METRICS
        model = systems.require(config, capabilities.IsEvaluated)
        if isinstance(model, capabilities.HasInputs):
            runs.require_same_inputs(WORKDIR.value, model.inputs(), model.origins())
        builders = model.metrics()
    metrics, judged = sample_report.choose_metrics(METRICS.value, builders, further)
    if judged:
        model = systems.require(config, capabilities.DrawsSamples)
        files = {"weights": INCEPTION.value, "reference": REFERENCE.value}
        judge = sample_report.load_judge(judged, model, SAMPLER.value, NFE.value, **files)
    workdir = WORKDIR.value or f"runs/{config.system}_{config.dataset}"
    out = command.output(OUT.value, workdir, "evaluation")
    run = runs.open(WORKDIR.value, STEP.value) if WORKDIR.value is not None else None

    def job() -> None:
        from scorejax.evaluate import reports

        parts = []
        report = {"step": run.step} if run else {}
        trained = (run.variables, run.step) if run else (None, None)
        report |= reports.metrics_report(SEED.value, metrics, *trained, out)
        if judged:
            options = {"seed": SEED.value, "batch_size": BATCH_SIZE.value, "out": out}
            scores, parts = sample_report.sample_report(judge, run, NUM_SAMPLES.value, **options)
            report |= scores
        if run and command.writes() and isinstance(model, capabilities.DrawsTraining):
            drawn = model.training_pictures(runs.read_metrics(WORKDIR.value))
            reports.save_pictures(out, drawn)
        if command.writes():
            reports.save_and_print(f"{out}.json", report)
        for part in parts:
            part.remove()

    return job


if __name__ == "__main__":
    command.run(prepare, shares_work=True)
