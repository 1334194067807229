# SPDX-License-Identifier: Apache-2.0
"""The published weights of the Fréchet Inception distance's network, for ours."""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from scorejax.interop.checkpoint_files import read_checkpoint
from scorejax.interop.fit import require_fit
from scorejax.interop.torch_weights import CONV, LINEAR, SAME, Turn
from scorejax.models.inception import Inception

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

    Raises: FileNotFoundError that says where to get them; ValueError for other tensors.
    """
    try:
        state = read_checkpoint(path).weights(averaged=False)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is not there: get {WHERE}") from None
    table, counters = _correspondence(), {key for key in state if key.endswith("batches_tracked")}
    shapes = {official: turn.shape(shape) for official, (_, turn, shape) in table.items()}
    require_fit("FID's InceptionV3", state, shapes, counters | {"fc.bias"})
    flat = {
        ours: jnp.asarray(turn.tensor(np.asarray(state[official])), float)
        for official, (ours, turn, _) in table.items()
    }
    return Inception(), {"params": unflatten_dict(flat, sep="/")}


@functools.cache
def _correspondence() -> dict[str, tuple[str, Turn, tuple[int, ...]]]:
    """Official name -> (path of our parameter, how its axes turn, our shape)."""
    image = jax.ShapeDtypeStruct((1, 299, 299, 3), jnp.float32)
    init = lambda image: Inception().init(jax.random.key(0), image)["params"]
    found = {}
    for path, leaf in flatten_dict(jax.eval_shape(init, image), sep="/").items():
        layer, _, kind = path.rpartition("/")
        if not layer:
            found["fc.weight"] = (path, LINEAR, leaf.shape)
            continue
        tensor, turn = _TENSORS[kind]
        found[f"{layer.replace('/', '.')}.{tensor}"] = (path, turn, leaf.shape)
    return found
