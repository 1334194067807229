# SPDX-License-Identifier: Apache-2.0
"""A network from its name and plain options, checked before anything is traced."""

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from scorejax.choices import choose, require, require_keys
from scorejax.models import refinenet
from scorejax.models.ddpm import DDPM
from scorejax.models.ncsnpp import NCSNpp, require_halvings
from scorejax.models.recurrent_ncsnpp import Recurrent, RecurrentPass
from scorejax.models.songunet import SongUNet

DTYPES = {"float32": None, "bfloat16": jnp.bfloat16}

NCSNPP_OPTIONS = (
    "nf", "ch_mult", "num_res_blocks", "attn_resolutions", "dropout", "conditional", "centered",
    "embedding_type", "fourier_scale", "resblock_type", "resamp_with_conv", "fir", "progressive",
    "progressive_input", "progressive_combine", "skip_rescale", "init_scale", "dtype", "remat",
)  # fmt: skip

RECURRENT_OPTIONS = ("recurrence",)
"""What the recurrent network has beside those."""

SONG_UNET_OPTIONS = (
    "nf", "ch_mult", "num_res_blocks", "attn_resolutions", "dropout", "embedding_type",
    "channel_mult_noise", "progressive", "progressive_input", "fir_kernel", "augment_dim", "dtype",
    "remat",
)  # fmt: skip

REFINENET_OPTIONS = ("nf", "centered", "num_scales", "dtype", "remat")
REFINENETS = {
    "ncsnv2": refinenet.NCSNv2(stages=refinenet.NCSNV2),
    "ncsnv2_deeper": refinenet.NCSNv2(stages=refinenet.NCSNV2_DEEPER),
    "ncsnv2_deepest": refinenet.NCSNv2(stages=refinenet.NCSNV2_DEEPEST),
    "ncsn": refinenet.NCSN(stages=refinenet.NCSNV2),
}
"""The networks of arXiv:2006.09011, and that of arXiv:1907.05600."""


def build_refinenet(name: str, image_size: int, options: Mapping[str, Any]) -> refinenet.NCSNv2:
    """The RefineNet `name` for square images. Raises: as `build_network`."""
    network = choose("model", name, REFINENETS)
    # Below two channels there is no variance of their means to normalise with.
    require(options, ("nf",), lambda v: v >= 2, "to be at least 2")
    halvings = sum(stage.down and stage.dilation == 1 for stage in network.stages)
    require_halvings((1, image_size, image_size, 1), halvings)
    given = {
        "features": options["nf"],
        "centered": options["centered"],
        "dtype": choose("dtype", options["dtype"], DTYPES),
        "remat": options["remat"],
    }
    if isinstance(network, refinenet.NCSN):
        given["num_scales"] = options["num_scales"]
    return network.clone(**given)


def build_network(name: str, image_size: int, options: Mapping[str, Any]) -> NCSNpp | Recurrent:
    """The network `name` for square images; options it does not know are left alone.

    Raises: ValueError for an unknown name, or options that are impossible for this size.
    """
    return choose("model", name, NETWORKS)(image_size, options)


def build_song_unet(image_size: int, options: Mapping[str, Any]) -> SongUNet:
    """EDM's network for square images, without labels of classes. Raises: as `build_network`."""
    require(options, ("channel_mult_noise",), lambda v: v >= 1, "to be at least 1")
    require(options, ("augment_dim",), lambda v: v >= 0, "to be at least 0")
    require(options, ("fir_kernel",), lambda v: sum(v) > 0, "taps with a positive sum")
    given = _levels(image_size, options) | {"fir_kernel": tuple(options["fir_kernel"])}
    return SongUNet(**{option: options[option] for option in SONG_UNET_OPTIONS} | given)


def _ncsnpp(image_size: int, options: Mapping[str, Any]) -> NCSNpp:
    require(options, ("fourier_scale",), lambda v: 0 < v < math.inf, "to be a positive number")
    given = _levels(image_size, options)
    return NCSNpp(**{option: options[option] for option in NCSNPP_OPTIONS} | given)


def _levels(image_size: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """The levels of a U-Net, as its fields. Raises: ValueError unless the image has them."""
    whole = lambda values: all(type(value) is int and value >= 1 for value in values)
    require(options, ("nf", "num_res_blocks"), lambda v: v >= 1, "to be at least 1")
    require(options, ("dropout",), lambda v: 0 <= v < 1, "to lie in [0, 1)")
    require(options, ("ch_mult",), lambda v: v and whole(v), "a whole number >= 1 for each level")
    require(options, ("attn_resolutions",), whole, "whole numbers >= 1, or none")
    ch_mult, resolutions = tuple(options["ch_mult"]), tuple(options["attn_resolutions"])
    require_halvings((1, image_size, image_size, 1), len(ch_mult) - 1)
    sizes = [image_size >> level for level in range(len(ch_mult))]
    if not set(resolutions) <= set(sizes):
        raise ValueError(
            f"attn_resolutions needs sizes that the network reaches, {sizes}; got {resolutions}"
        )
    return {
        "ch_mult": ch_mult,
        "attn_resolutions": resolutions,
        "dtype": choose("dtype", options["dtype"], DTYPES),
    }


def _ddpm(image_size: int, options: Mapping[str, Any]) -> NCSNpp:
    fixed = DDPM.keywords.keys() & set(NCSNPP_OPTIONS) - {"num_res_blocks"}
    for option in sorted(fixed):
        if options[option] != DDPM.keywords[option]:
            raise ValueError(
                f"model 'ddpm' has {option}={DDPM.keywords[option]!r}; got {options[option]!r}"
            )
    return _ncsnpp(image_size, options).clone(num_groups=DDPM.keywords["num_groups"])


def _recurrent(image_size: int, options: Mapping[str, Any]) -> Recurrent:
    require_keys(options, RECURRENT_OPTIONS)
    given = _ncsnpp(image_size, options)
    fields = {option: getattr(given, option) for option in NCSNPP_OPTIONS}
    return Recurrent(RecurrentPass(**fields), recurrence=options["recurrence"])


NETWORKS = {"ncsnpp": _ncsnpp, "ddpm": _ddpm, "recurrent_ncsnpp": _recurrent}
