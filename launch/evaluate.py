# SPDX-License-Identifier: Apache-2.0
"""Judges a trained model: <out>.json with numbers, and pictures beside it, <out>_<name>.png.

python -m launch.evaluate --workdir=runs/digits
python -m launch.evaluate --workdir=runs/digits --metrics=loss,bits_per_dim
python -m launch.evaluate --config=configs/ncsnv2/digits.py --metrics=ladder
python -m launch.evaluate --workdir=runs/x --metrics=fid,is,kid --inception=weights.pth \\
    --num_samples=50000 --sampler=heun --nfe=35 --reference=cifar10.npz

fid, fid_infinity, is, kid and precision_recall draw samples and look at them with the network that
FID is about. The reference is a file of mu and sigma, or else the training images, all of them, and
then their statistics are kept in <out>_reference.npz. A call that was killed goes on from the last
chunk of images. A sample that is not finite counts as a black image, and is reported.

With --config in place of a run there are the metrics of its data set alone, such as ladder.
"""

import dataclasses

from absl import flags
from ml_collections import config_flags

from launch import command

WORKDIR = flags.DEFINE_string("workdir", None, "The run to judge.")
CONFIG = config_flags.DEFINE_config_file("config", None, "Instead of a run: what it would train.")
METRICS = flags.DEFINE_list("metrics", "", "Which, such as loss,bits_per_dim; all by default.")
SEED = flags.DEFINE_integer("seed", 0, "Of the noise.")
STEP = flags.DEFINE_integer("step", None, "Which checkpoint; the newest by default.")
INCEPTION = flags.DEFINE_string("inception", "", "The weights of FID's InceptionV3.")
REFERENCE = flags.DEFINE_string("reference", "", "Statistics of real images, an npz file.")
NUM_SAMPLES = flags.DEFINE_integer("num_samples", 50_000, "How many to draw.", lower_bound=10)
SAMPLER = flags.DEFINE_string("sampler", "", "As in launch.sample.")
NFE = flags.DEFINE_integer("nfe", 0, "As in launch.sample.", lower_bound=0)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 256, "At most so many at a time, on all devices.")
OUT = flags.DEFINE_string("out", "", "Path without ending; <workdir>/evaluation by default.")


def prepare() -> command.Job:
    command.require_positive(batch_size=BATCH_SIZE.value)
    if (WORKDIR.value is None) == (CONFIG.value is None):
        raise ValueError("give --workdir, a run to judge, or --config, for what needs no run")
    if WORKDIR.value is None:
        return prepare_data(command.config(CONFIG))
    config = command.saved_config(WORKDIR.value)
    from scorejax import systems
    from scorejax.choices import choose
    from scorejax.evaluate import sample_quality

    own = systems.capability(config, "metrics")(config)
    known = {**own, **sample_quality.METRICS}
    chosen = {name: choose("metric", name, known) for name in METRICS.value or own}
    looked_at = {name: chosen.pop(name) for name in [*chosen] if name in sample_quality.METRICS}
    judge = prepare_samples(config, looked_at) if looked_at else lambda restored, out: ({}, [])
    restored = command.restore(WORKDIR.value, STEP.value)

    def job() -> None:
        out = command.output(OUT.value, WORKDIR.value, "evaluation")
        report = {"step": restored.step}
        report |= measure(chosen, (restored.params, restored.model_state), out)
        of_samples, kept = judge(restored, out)
        command.write_json(f"{out}.json", report | of_samples)
        for parts in kept:
            parts.remove()

    return job


def prepare_data(config) -> command.Job:
    """The metrics that need no run. Raises: ValueError for one that there is not."""
    from scorejax import systems
    from scorejax.choices import choose

    known = systems.capability(config, "data_metrics")(config)
    chosen = {name: choose("metric", name, known) for name in METRICS.value or known}

    def job() -> None:
        out = command.output(OUT.value, f"runs/{config.system}_{config.dataset}", "evaluation")
        command.write_json(f"{out}.json", measure(chosen, None, out))

    return job


def measure(metrics: dict, variables, out: str) -> dict:
    """The scalars of metrics, whose pictures are written."""
    from scorejax.evaluate import pictures

    report = {}
    for rng, metric in zip(command.keys(SEED.value, len(metrics)), metrics.values(), strict=True):
        evaluation = metric(rng, variables)
        report |= evaluation.scalars
        for name, picture in evaluation.pictures.items():
            pictures.save_png(f"{out}_{name}.png", picture)
    return report


def prepare_samples(config, metrics):
    """judge(restored, out) -> the metrics of samples, and parts to remove once these are written.

    Raises: ValueError, FileNotFoundError.
    """
    from scorejax import systems
    from scorejax.evaluate import frechet, sample_quality
    from scorejax.interop.networks import inception

    if not INCEPTION.value:
        raise ValueError(f"--inception is missing: {inception.WHERE}")
    lacking = [name for name in metrics if name in sample_quality.NEED_FEATURES]
    if REFERENCE.value and lacking:
        raise ValueError(f"{lacking[0]} needs real images, not --reference: leave it out")
    draw = systems.capability(config, "sampler")(config, SAMPLER.value, nfe=NFE.value)
    known = sample_quality.load_reference(REFERENCE.value) if REFERENCE.value else None
    network, weights = inception.load_inception(INCEPTION.value)
    view = systems.capability(config, "image_view")(config)
    real = None if known else view.streamed("train")

    def judge(restored, out: str) -> tuple[dict, list]:
        samples, parts = look_at_samples(config, draw, network, weights, restored, out)
        reference, kept = known, [parts]
        if known is None:
            pool, parts = look_at_data(view, real, network, weights, out)
            reference = sample_quality.Reference(frechet.moments(pool), pool)
            frechet.save_statistics(f"{out}_reference.npz", reference.moments)
            kept.append(parts)
        failed = int((~samples["finite"]).sum())
        report = {"num_samples": NUM_SAMPLES.value, "num_not_finite": failed}
        for metric in metrics.values():
            report |= metric(reference, samples)
        return report, kept

    return judge


def look_at_samples(config, draw, network, weights, restored, out: str):
    """What Inception sees in samples, which are not kept, and the parts that this is made of."""
    import jax

    from scorejax.evaluate import sample_quality
    from scorejax.evaluate.parts import Parts

    look = sample_quality.look_at_samples(sample_quality.inception_features(network), draw)
    variables = weights, (restored.params, restored.model_state)
    asked = {"config": config.to_dict(), "sampler": SAMPLER.value, "nfe": NFE.value}
    asked |= {"seed": SEED.value, "num": NUM_SAMPLES.value, "batch_size": BATCH_SIZE.value}
    asked["devices"] = jax.local_device_count()  # each draws from the first key of its share
    parts = Parts(f"{out}_samples", asked, variables)
    rows = {"rng": command.keys(SEED.value, NUM_SAMPLES.value)}
    return command.in_chunks(look, variables, rows, BATCH_SIZE.value, "samples", parts), parts


def look_at_data(view, images, network, weights, out: str):
    """Inception's features of the training images, and the parts that this is made of."""
    from scorejax.evaluate import sample_quality
    from scorejax.evaluate.parts import Parts

    features = sample_quality.inception_features(network, view.levels)
    look = lambda weights, rows: features(weights, rows["image"])
    asked = {"data": dataclasses.asdict(view), "batch_size": BATCH_SIZE.value}
    parts, rows = Parts(f"{out}_reference", asked, weights), {"image": images}
    found = command.in_chunks(look, weights, rows, BATCH_SIZE.value, "images", parts)
    return found["pool"], parts


if __name__ == "__main__":
    command.run(prepare)
