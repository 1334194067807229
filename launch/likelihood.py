# SPDX-License-Identifier: Apache-2.0
"""Measures bits per dimension of real images: <out>.json, and <out>.npz with every image's.

python -m launch.likelihood --workdir=runs/digits --split=test
python -m launch.likelihood --workdir=runs/digits --split=train --num=200 --repeats=5
python -m launch.likelihood --workdir=runs/digits --num=100 --repeats=20 --importance_weighted

A call that was killed goes on from its last chunk of images.
"""

from absl import flags

from launch import command

WORKDIR = flags.DEFINE_string("workdir", None, "The run whose model measures.", required=True)
SPLIT = flags.DEFINE_string("split", "test", "test or train.")
NUM = flags.DEFINE_integer("num", 0, "The first so many images; 0: all.", lower_bound=0)
REPEATS = flags.DEFINE_integer("repeats", 1, "Draws of dequantisation and probe noise per image.")
IMPORTANCE_WEIGHTED = flags.DEFINE_bool(
    "importance_weighted", False, "Also the tighter bound, by exact divergences: slower."
)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "At most so many at a time, on all devices.")
SEED = flags.DEFINE_integer("seed", 0, "Of the noise.")
STEP = flags.DEFINE_integer("step", None, "Which checkpoint; the newest by default.")
OUT = flags.DEFINE_string(
    "out", "", "Path without ending; <workdir>/likelihood_<split> by default."
)


def prepare() -> command.Job:
    command.require_positive(repeats=REPEATS.value, batch_size=BATCH_SIZE.value)
    config = command.saved_config(WORKDIR.value)
    import numpy as np

    from scorejax import systems
    from scorejax.evaluate import progress
    from scorejax.evaluate.parts import Parts
    from scorejax.files import save_npz

    exact = IMPORTANCE_WEIGHTED.value
    measure = systems.capability(config, "likelihood")(config, exact=exact)
    view = systems.capability(config, "image_view")(config)
    stored = view.stored(SPLIT.value, NUM.value or None)
    restored = command.restore(WORKDIR.value, STEP.value)

    def job() -> None:
        from scorejax.likelihood import importance_weighted

        repeated = np.tile(stored.image, (REPEATS.value, 1, 1, 1))
        x = view.dequantized(np.random.default_rng(SEED.value), repeated)
        rows = {"image": x, "rng": command.keys(SEED.value, len(x))}
        variables = restored.params, restored.model_state
        out = command.output(OUT.value, WORKDIR.value, f"likelihood_{SPLIT.value}")
        report = {"split": SPLIT.value, "step": restored.step, "repeats": REPEATS.value}
        report |= {
            "num_images": len(stored.image),
            "divergence": "exact" if exact else "hutchinson",
        }
        asked = {"config": config.to_dict(), "exact": exact, "batch_size": BATCH_SIZE.value}
        parts = Parts(out, asked | {"seed": SEED.value}, (variables, x))
        found = command.in_chunks(measure, variables, rows, BATCH_SIZE.value, "images", parts)
        bits = found["bits_per_dim"].reshape(REPEATS.value, -1)
        save_npz(f"{out}.npz", bits_per_dim=bits, nfe=found["nfe"].reshape(bits.shape))
        report |= {"nfe": float(found["nfe"].mean())}
        report |= progress.summary("bits_per_dim", bits)
        if exact:
            weighted = importance_weighted(bits, x[0].size)[None]
            report |= progress.summary("bits_per_dim_importance_weighted", weighted)
        command.write_json(f"{out}.json", report)
        parts.remove()

    return job


if __name__ == "__main__":
    command.run(prepare)
