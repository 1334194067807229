# SPDX-License-Identifier: Apache-2.0
"""A computation that several processes share, for test_shared_work.py.

python tests/shared_work.py PORT INDEX DIRECTORY
"""

import pathlib
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image

from scorejax.data.images import Records, Streamed
from scorejax.evaluate import chunks, frechet, parts, segmented_folder
from scorejax.evaluate.progress import held_out_loss
from scorejax.evaluate.segmented_folder import readable, segment_pictures
from scorejax.random import normal
from scorejax.train import parallel

NUM, CHUNK = 11, 4


class Pictures:
    """Eleven pictures that remember who was read."""

    def __init__(self):
        self.read = []

    def __len__(self):
        return NUM

    def __getitem__(self, row):
        self.read.append(row)
        return {"image": np.full((2, 2, 1), row, np.uint8)}


def noisy(variables, rows):
    """Each picture by a factor, with noise of its own."""
    x = variables["factor"] * jnp.asarray(rows["image"], jnp.float32)
    return {"x": x + normal(rows["rng"], x.shape)}


def ones(variables, tiles):
    """A network that segments everything."""
    return variables["factor"] / 3 + 0 * tiles[..., 0]


def whiten(variables, image):
    """One instance, found tile by tile."""
    network = parallel.map_over_devices(ones)
    tiles = np.float32(image.reshape(2, 4, 8, 3))
    found = network(variables, tiles).reshape(8, 8)
    return SimpleNamespace(probability=found, instances=np.int32(found), classes=None)


def work(directory):
    """Everything that is computed, and the pictures that this process read."""
    pictures = Pictures()
    rows = {"image": Streamed(Records(pictures, lambda image, size: image, 2))}
    rows["rng"] = jax.random.split(jax.random.key(0), NUM)
    variables, stream = {"factor": np.float32(3)}, chunks.make_stream(noisy)
    kept = parts.Parts(pathlib.Path(directory) / "out", {"seed": 0}, variables)
    running, streamed = frechet.RunningMoments(), []
    for chunk in stream(variables, rows, CHUNK, parts=kept):
        streamed.append(chunk["x"])
        running.add(chunk["x"].reshape(-1, 4))
    read, pictures.read = sorted(pictures.read), []
    again = chunks.joined(stream(variables, rows, CHUNK, parts=kept))["x"]
    assert not pictures.read
    loss = held_out_loss(
        lambda factor, rngs, x: jnp.mean((factor * x + normal(rngs, x.shape)) ** 2, axis=1),
        np.arange(15, dtype=np.float32).reshape(5, 3),
        batch_size=2,
    )
    scalars = loss(jax.random.key(1), jnp.float32(2)).scalars
    kept.remove()
    picture, out = pathlib.Path(directory) / f"{jax.process_index()}.png", pathlib.Path(directory)
    PIL.Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(picture)
    segment_pictures(whiten, variables, readable(picture), out / "segmented")
    computed = {"x": np.concatenate(streamed), "again": again, "loss": scalars["loss"]}
    return computed | running.moments()._asdict(), read


def refuse(*_, **__):
    raise AssertionError("a process that is not the first writes")


def main(port, index, directory):
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 1)
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(index))
    if jax.process_index():
        parts.save_npz = segmented_folder.save = refuse
    computed, read = work(directory)
    np.savez(pathlib.Path(directory) / f"process_{index}.npz", read=read, **computed)


if __name__ == "__main__":
    main(*sys.argv[1:])
