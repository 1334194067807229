# SPDX-License-Identifier: Apache-2.0
"""Makes a run of a published checkpoint, from which launch.sample and the others go on.

    python -m launch.import_weights --architecture=score_sde/ncsnpp --weights=ckpt.pth \
        --config=configs/score_sde/digits.py:ve --workdir=runs/published
    python -m launch.import_weights --architecture=bionet/bionet --weights=iter_3_mul_1_int.pt \
        --config=configs/bionet/monuseg.py --workdir=runs/bionet

Nothing in the file is executed. Its tensors have to be those of the config's network; what does not
show in their shapes (fir, skip_rescale, centered, the SDE) is the config's word alone. BiO-Net's
running statistics come with its weights.
"""

from absl import flags
from ml_collections import config_flags

from launch import command

ARCHITECTURE = flags.DEFINE_string(
    "architecture", None, "Whose names, such as score_sde/ncsnpp or ncsnv2/ncsnv2.", required=True
)
WEIGHTS = flags.DEFINE_string("weights", None, "The file, of any known kind.", required=True)
CONFIG = config_flags.DEFINE_config_file("config", None, "The config file, and :its,variant.")
WORKDIR = flags.DEFINE_string("workdir", None, "Of the new run; it has none yet.", required=True)


def prepare() -> command.Job:
    config = command.config(CONFIG)
    import jax
    import numpy as np

    from scorejax import interop, systems
    from scorejax.interop import published
    from scorejax.train import checkpoint, state, workdir

    network, optimizer = (
        systems.capability(config, name)(config) for name in ("make_network", "make_optimizer")
    )
    found = interop.read_checkpoint(WEIGHTS.value)
    settings = {**config, "num_channels": num_channels(config)}
    weights = published.variables_for(network, ARCHITECTURE.value, found, settings)
    path = workdir.require_new_workdir(WORKDIR.value)

    def job() -> None:
        create = jax.jit(lambda *given: state.TrainState.create(*given, optimizer))
        imported = jax.device_get(create(weights.params, weights.model_state))
        averaged = jax.device_get(weights.averaged)
        imported = imported.replace(step=np.int32(found.step), ema_params=averaged)
        with (
            workdir.new_workdir(path, config) as building,
            checkpoint.Checkpoints(building) as checkpoints,
        ):
            checkpoints.save(imported, {})
        kinds = [kind for kind in ("raw", "averaged") if getattr(found, kind) is not None]
        print(f"step {found.step}, {' and '.join(kinds)} weights: {path}")

    return job


def num_channels(config) -> int:
    """Of the images that the config's network sees; those that BiO-Net segments are in colour."""
    from scorejax import systems
    from scorejax.interop.networks import bionet

    if ARCHITECTURE.value in bionet.ARCHITECTURES:
        return 3
    return systems.capability(config, "image_view")(config).shape[-1]


if __name__ == "__main__":
    command.run(prepare)
