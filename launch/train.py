# SPDX-License-Identifier: Apache-2.0
"""Trains the system that a config describes, from where the run in the workdir stands.

    python -m launch.train --config=configs/score_sde/digits.py --workdir=runs/digits
    python -m launch.train --config=configs/score_sde/digits.py:ve,debug --workdir=runs/ve \
        --config.batch_size=64
"""

from absl import flags
from ml_collections import config_flags

from launch import command

CONFIG = config_flags.DEFINE_config_file("config", None, "The config file, and :its,variant.")
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where config, checkpoints, metrics and pictures go.", required=True
)
DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "One of several processes, as on a TPU slice or under srun."
)


def prepare() -> command.Job:
    config = command.config(CONFIG)
    import jax

    from scorejax import systems
    from scorejax.train import settings, workdir

    if DISTRIBUTED.value:
        jax.distributed.initialize()
    settings.Settings.from_config(config)
    system = systems.load(config)
    workdir.open_workdir(WORKDIR.value, config)

    def job() -> None:
        from scorejax.train import loop  # Its writers of metrics take seconds to import.

        loop.train(system, config, WORKDIR.value)

    return job


if __name__ == "__main__":
    command.run(prepare)
