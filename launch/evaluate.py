# SPDX-License-Identifier: Apache-2.0
"""Judges a trained model: <out>.json with numbers, and pictures beside it, <out>_<name>.png.

python -m launch.evaluate --workdir=runs/digits
python -m launch.evaluate --workdir=runs/digits --metrics=loss,bits_per_dim
"""

from absl import flags

from launch import command

WORKDIR = flags.DEFINE_string("workdir", None, "The run to judge.", required=True)
METRICS = flags.DEFINE_list("metrics", "", "Which, such as loss,bits_per_dim; all by default.")
SEED = flags.DEFINE_integer("seed", 0, "Of the noise.")
STEP = flags.DEFINE_integer("step", None, "Which checkpoint; the newest by default.")
OUT = flags.DEFINE_string("out", "", "Path without ending; <workdir>/evaluation by default.")


def prepare() -> command.Job:
    config = command.saved_config(WORKDIR.value)
    from scorejax import systems
    from scorejax.choices import choose

    known = systems.capability(config, "metrics")(config)
    chosen = {name: choose("metric", name, known) for name in METRICS.value or known}
    restored = command.restore(WORKDIR.value, STEP.value)

    def job() -> None:
        from scorejax.evaluate import pictures

        out = command.output(OUT.value, WORKDIR.value, "evaluation")
        report = {"step": restored.step}
        for rng, metric in zip(command.keys(SEED.value, len(chosen)), chosen.values(), strict=True):
            evaluation = metric(rng, (restored.params, restored.model_state))
            report |= evaluation.scalars
            for name, picture in evaluation.pictures.items():
                pictures.save_png(f"{out}_{name}.png", picture)
        command.write_json(f"{out}.json", report)

    return job


if __name__ == "__main__":
    command.run(prepare)
