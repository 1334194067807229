# SPDX-License-Identifier: Apache-2.0
"""A trained segmenter as one file, for programs that have JAX and not this library."""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from scorejax.typing import Variables

if TYPE_CHECKING:
    from scorejax.systems.bionet import Segmentation


def export_segmenter(
    model: "Segmentation", variables: Variables, *, platforms: tuple[str, ...] = ("cpu", "cuda")
) -> bytes:
    """Serialises tiles (b, tile, tile, c) float32 -> probabilities (b, tile, tile, k) float32.

    The weights are in it. b is any number and tile that of the config; tiles have the range that
    pictures have in training, [0, 1] with `normalisation="levels"`. It is read by

        jax.export.deserialize(bytearray(data)).call(tiles)

    on the given platforms of JAX ("cpu", "cuda", "rocm", "tpu"), by this version of JAX and, as
    JAX promises, by those of the six months that follow. Cutting into tiles and instances are not
    in it: `evaluate.sliding_window` and `evaluate.segmentation.separate`.
    Raises: ValueError, one line, without the package flatbuffers, in which JAX writes such files.
    """
    from jax import export  # slow to import

    params, model_state = jax.device_get(variables)
    passes, side = model.passes.trained(model_state), model.window["tile"]
    predict = lambda x: model.probability((params, model_state), x, passes=passes)
    (batch,) = export.symbolic_shape("b")
    shape = (batch, side, side, model.task.options.num_channels)
    exported = export.export(jax.jit(predict), platforms=platforms)(
        jax.ShapeDtypeStruct(shape, jnp.float32)
    )
    try:
        return bytes(exported.serialize())
    except ImportError:
        raise ValueError(
            "exporting needs the package flatbuffers: pip install 'scorejax[export]'"
        ) from None
