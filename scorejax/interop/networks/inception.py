# SPDX-License-Identifier: Apache-2.0
"""Weights of the InceptionV3 network with which Fréchet Inception distances are published."""

import functools
import os

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from scorejax.interop.readers.checkpoint import read_checkpoint
from scorejax.interop.tensors import CONV, LINEAR, SAME, Correspondence, Match, correspond, fill
from scorejax.models.inception import SIZE, Inception

WHERE = (
    "the weights of FID's InceptionV3: pt_inception-2015-12-05-6726825d.pth, which "
    "github.com/mseitzer/pytorch-fid publishes among its releases"
)
_TENSORS = {
    "kernel": ("conv.weight", CONV),
    "scale": ("bn.weight", SAME),
    "bias": ("bn.bias", SAME),
    "mean": ("bn.running_mean", SAME),
    "var": ("bn.running_var", SAME),
}


def load_inception(path: str | os.PathLike) -> tuple[Inception, dict]:
    """The network and its variables, from a `.pth` or `.safetensors` file.

    Raises: FileNotFoundError that says where to get the file; ValueError if its tensors do not fit.
    """
    try:
        state = read_checkpoint(path).weights(averaged=False)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is not there: get {WHERE}") from None
    counters = {key for key in state if key.endswith("batches_tracked")}
    table = correspondence()._replace(tolerated=counters | {"fc.bias"})
    return Inception(), {"params": fill("FID's InceptionV3", state, table)}


@functools.cache
def correspondence() -> Correspondence:
    """Pairs the official tensors that the network uses with its parameters."""
    image = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
    init = lambda image: Inception().init(jax.random.key(0), image)["params"]
    shapes = jax.eval_shape(init, image)
    targets = {path: leaf.shape for path, leaf in flatten_dict(shapes, sep="/").items()}
    matches = []
    for path in targets:
        layer, _, leaf = path.rpartition("/")
        tensor, turn = _TENSORS[leaf] if layer else ("weight", LINEAR)
        matches.append(Match(f"{layer.replace('/', '.') or path}.{tensor}", path, turn))
    return correspond(matches, targets)
