# SPDX-License-Identifier: Apache-2.0
"""Trains the system that a config describes; resumes the run in the workdir if there is one.

    python -m launch.train --config=configs/score_sde/digits.py --workdir=runs/digits
    python -m launch.train --config=configs/score_sde/digits.py:ve,debug --workdir=runs/ve \
        --config.batch_size=64
"""

from absl import flags
from ml_collections import config_flags

from launch import command

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, and :its,variant.")
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Directory for config, checkpoints, metrics and pictures.", required=True
)


def prepare() -> command.Job:
    config = command.config(CONFIG)
    from scorejax import capabilities, systems
    from scorejax.train import banner, lock
    from scorejax.train.preflight import preflight
    from scorejax.train.settings import Settings

    lock.require_free(WORKDIR.value)  # before any data are read, as the settings
    Settings.from_config(config)
    system = systems.load(config)
    with lock.held(WORKDIR.value):
        settings, path = preflight(system, config, WORKDIR.value)

    def job() -> None:
        step = banner.finished(path, settings)
        if step is not None:
            print(banner.step_line(step, settings))
        else:
            from scorejax.train import loop  # Its writers of metrics take seconds to import.

            step = int(loop.train(system, config, WORKDIR.value).step)
        if step >= settings.num_train_steps and command.writes():
            print(f"Step {step} is in {WORKDIR.value}. Next, for example:")
            for line in capabilities.commands(systems.load_model(config), WORKDIR.value):
                print(f"  python -m {line}")

    return job


if __name__ == "__main__":
    command.run(prepare, shares_work=True)
