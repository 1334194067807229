# SPDX-License-Identifier: Apache-2.0
"""The published weights of the Fréchet Inception distance's network, for ours."""

import functools
import os

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from scorejax.interop.checkpoint_files import read_checkpoint
from scorejax.interop.torch_weights import CONV, LINEAR, SAME, Correspondence, fill
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

    Raises: FileNotFoundError that says where to get them; ValueError for other tensors.
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
    """The official tensors that the network uses, and what each is for us."""
    image = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
    init = lambda image: Inception().init(jax.random.key(0), image)["params"]
    ours, shapes = {}, {}
    for path, leaf in flatten_dict(jax.eval_shape(init, image), sep="/").items():
        layer, _, kind = path.rpartition("/")
        tensor, turn = _TENSORS[kind] if layer else ("weight", LINEAR)
        official = f"{layer.replace('/', '.') or path}.{tensor}"
        ours[official], shapes[official] = (path, turn), turn.shape(leaf.shape)
    return Correspondence(ours, shapes, set())
