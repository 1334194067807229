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
    from scorejax import systems
    from scorejax.train import lock
    from scorejax.train.preflight import preflight
    from scorejax.train.settings import Settings

    lock.require_free(WORKDIR.value)  # before any data are read, as the settings
    Settings.from_config(config)
    system = systems.load(config)
    with lock.held(WORKDIR.value):
        preflight(system, config, WORKDIR.value)

    def job() -> None:
        from scorejax.train import loop  # Its writers of metrics take seconds to import.

        loop.train(system, config, WORKDIR.value)

    return job


if __name__ == "__main__":
    command.run(prepare, shares_work=True)
