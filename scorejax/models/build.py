# SPDX-License-Identifier: Apache-2.0
"""Builds a network from its name and plain options, checked before anything is traced."""

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
"""Options of the recurrent network in addition to NCSNPP_OPTIONS."""

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
"""The networks of arXiv:2006.09011 (NCSNv2) and arXiv:1907.05600 (NCSN)."""


def build_refinenet(name: str, image_size: int, options: Mapping[str, Any]) -> refinenet.NCSNv2:
    """Builds the RefineNet `name` for square images. Raises: as `build_network`."""
    network = choose("model", name, REFINENETS)
    # The normalisation needs the variance of the channel means, hence two channels.
    require(options, ("nf",), lambda v: v >= 2, "to be at least 2")
    halvings = sum(stage.down and stage.dilation == 1 for stage in network.stages)
    require_halvings((1, image_size, image_size, 1), halvings)
    fields = {
        "features": options["nf"],
        "centered": options["centered"],
        "dtype": choose("dtype", options["dtype"], DTYPES),
        "remat": options["remat"],
    }
    if isinstance(network, refinenet.NCSN):
        fields["num_scales"] = options["num_scales"]
    return network.clone(**fields)


def build_network(name: str, image_size: int, options: Mapping[str, Any]) -> NCSNpp | Recurrent:
    """Builds the network `name` for square images; options it does not use are ignored.

    Raises: ValueError if the name is unknown, an option is invalid, or the architecture does not
    fit the image size.
    """
    return choose("model", name, NETWORKS)(image_size, options)


def build_song_unet(image_size: int, options: Mapping[str, Any]) -> SongUNet:
    """Builds EDM's unconditional network for square images. Raises: as `build_network`."""
    require(options, ("channel_mult_noise",), lambda v: v >= 1, "to be at least 1")
    require(options, ("augment_dim",), lambda v: v >= 0, "to be at least 0")
    require(options, ("fir_kernel",), lambda v: sum(v) > 0, "taps with a positive sum")
    fields = {option: options[option] for option in SONG_UNET_OPTIONS}
    fields |= {"fir_kernel": tuple(options["fir_kernel"])}
    return SongUNet(**fields | _unet_fields(image_size, options))


def _ncsnpp(image_size: int, options: Mapping[str, Any]) -> NCSNpp:
    require(options, ("fourier_scale",), lambda v: 0 < v < math.inf, "to be a positive number")
    fields = {option: options[option] for option in NCSNPP_OPTIONS}
    return NCSNpp(**fields | _unet_fields(image_size, options))


def _unet_fields(image_size: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """Checks the options that U-Nets share; returns those whose type changes.

    Raises: ValueError if an option is invalid or does not fit the image size.
    """
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
                f"model 'ddpm' needs {option}={DDPM.keywords[option]!r}; got {options[option]!r}"
            )
    return _ncsnpp(image_size, options).clone(num_groups=DDPM.keywords["num_groups"])


def _recurrent(image_size: int, options: Mapping[str, Any]) -> Recurrent:
    require_keys(options, RECURRENT_OPTIONS)
    network = _ncsnpp(image_size, options)
    fields = {option: getattr(network, option) for option in NCSNPP_OPTIONS}
    return Recurrent(RecurrentPass(**fields), recurrence=options["recurrence"])


NETWORKS = {"ncsnpp": _ncsnpp, "ddpm": _ddpm, "recurrent_ncsnpp": _recurrent}
