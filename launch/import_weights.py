# SPDX-License-Identifier: Apache-2.0
"""Makes a run from a published checkpoint, for launch.sample and the other commands.

    python -m launch.import_weights --architecture=score_sde/ncsnpp --weights=ckpt.pth \
        --config=configs/score_sde/digits.py:ve --workdir=runs/published
    python -m launch.import_weights --architecture=bionet/bionet --weights=iter_3_mul_1_int.pt \
        --config=configs/bionet/monuseg.py --workdir=runs/bionet

A TensorFlow checkpoint is named by its index, `ckpt-iter100000.index`; its shards lie beside it.
Nothing in the file is executed. Its tensors need to have the shapes of the config's network. The
config alone decides what shapes do not show (fir, skip_rescale, centered, the SDE). Running
statistics are imported with the weights.
"""

from absl import flags
from ml_collections import config_flags

from launch import command

ARCHITECTURE = flags.DEFINE_string(
    "architecture", None, "Names of the tensors, such as score_sde/ncsnpp.", required=True
)
WEIGHTS = flags.DEFINE_string(
    "weights", None, "Checkpoint file, of any known format.", required=True
)
CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, and :its,variant.")
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Directory for the new run; must not exist.", required=True
)


def prepare() -> command.Job:
    config = command.config(CONFIG)
    import jax
    import numpy as np

    from scorejax import interop, systems
    from scorejax.capabilities import TakesWeights
    from scorejax.interop import published
    from scorejax.train import checkpoint, state, workdir

    network, tx, num_channels = systems.require(config, TakesWeights).import_target()
    file = interop.read_checkpoint(WEIGHTS.value)
    settings = {**config, "num_channels": num_channels}
    weights = published.variables_for(network, ARCHITECTURE.value, file, settings)
    path = workdir.require_new_workdir(WORKDIR.value)

    def job() -> None:
        create = jax.jit(lambda *variables: state.TrainState.create(*variables, tx))
        imported = jax.device_get(create(weights.params, weights.model_state))
        averaged = jax.device_get(weights.averaged)
        imported = imported.replace(step=np.int32(file.step), ema_params=averaged)
        with (
            workdir.new_workdir(path, config) as building,
            checkpoint.Checkpoints(building) as checkpoints,
        ):
            checkpoints.save(imported)
        kinds = [kind for kind in ("raw", "averaged") if getattr(file, kind) is not None]
        print(f"step {file.step}, {' and '.join(kinds)} weights: {path}")

    return job


if __name__ == "__main__":
    command.run(prepare)
