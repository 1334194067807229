# SPDX-License-Identifier: Apache-2.0
"""The modules of the JAX score-SDE networks, without their arithmetic: Linen names them for us.

Source: what 2011.13456, Appendix H, and its published settings say of the order of layers.
"""

import functools

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict


class Skeleton(nn.Module):
    """The modules by class and order of action; what flows between them is widths."""

    options: dict
    ddpm: bool = False

    @nn.compact
    def __call__(self, size, channels):
        o = {"resamp_with_conv": True, "progressive": "none", "progressive_input": "none",
             "resblock_type": "biggan", "progressive_combine": "sum", **self.options}  # fmt: skip
        block = functools.partial(BLOCKS[o["resblock_type"], self.ddpm], 4 * o["nf"])
        attend = AttnBlock if self.ddpm else AttnBlockpp
        biggan, fir, convs = o["resblock_type"] == "biggan", o["fir"], o["resamp_with_conv"]
        pyramid = o["progressive_input"], o["progressive"]
        width = o["nf"]
        if o["embedding_type"] == "fourier":
            GaussianFourierProjection(width)()
            Dense(4 * width)(2 * width)
        else:
            Dense(4 * width)(width)
        Dense(4 * width)(4 * width)
        widths = [Conv(width)(channels)]
        num_levels, pyramid_width = len(o["ch_mult"]), channels
        for level, multiple in enumerate(o["ch_mult"]):
            for _ in range(o["num_res_blocks"]):
                widths.append(block(width * multiple)(widths[-1]))
                if size in o["attn_resolutions"]:
                    attend()(widths[-1])
            if level + 1 < num_levels:
                h = widths[-1]
                block(h, resamples=True)(h) if biggan else Downsample(fir, convs, h)(h)
                size //= 2
                if pyramid[0] == "input_skip":
                    Downsample(fir, False, pyramid_width)(pyramid_width)
                    Combine(h)(pyramid_width)
                    h = 2 * h if o["progressive_combine"] == "cat" else h
                elif pyramid[0] == "residual":
                    pyramid_width = Downsample(fir, True, h)(pyramid_width)
                widths.append(h)
        h = block(widths[-1])(widths[-1])
        attend()(h)
        block(h)(h)
        for level in reversed(range(num_levels)):
            for _ in range(o["num_res_blocks"] + 1):
                h = block(width * o["ch_mult"][level])(h + widths.pop())
            if size in o["attn_resolutions"]:
                attend()(h)
            coarsest = level + 1 == num_levels
            if pyramid[1] == "output_skip":
                if not coarsest:
                    Upsample(fir, False, channels)(channels)
                GroupNorm()(h)
                Conv(channels)(h)
            elif pyramid[1] == "residual":
                if coarsest:
                    GroupNorm()(h)
                    Conv(h)(h)
                else:
                    Upsample(fir, True, h)(pyramid_width)
                pyramid_width = h
            if level:
                block(h, resamples=True)(h) if biggan else Upsample(fir, convs, h)(h)
                size *= 2
        if pyramid[1] != "output_skip":
            GroupNorm()(h)
            Conv(channels)(h)


def zeros(module, name, *shape):
    module.param(name, lambda _: np.zeros(shape, np.float32))


class Conv(nn.Module):
    features: int
    size: int = 3

    @nn.compact
    def __call__(self, width):
        zeros(self, "kernel", self.size, self.size, width, self.features)
        zeros(self, "bias", self.features)
        return self.features


class Conv2d(nn.Module):
    features: int

    @nn.compact
    def __call__(self, width):
        zeros(self, "weight", 3, 3, width, self.features)
        zeros(self, "bias", self.features)


class Dense(nn.Module):
    features: int

    @nn.compact
    def __call__(self, width):
        zeros(self, "kernel", width, self.features)
        zeros(self, "bias", self.features)


class GroupNorm(nn.Module):
    @nn.compact
    def __call__(self, width):
        zeros(self, "scale", width)
        zeros(self, "bias", width)


class NIN(nn.Module):
    features: int

    @nn.compact
    def __call__(self, width):
        zeros(self, "W", width, self.features)
        zeros(self, "b", self.features)


class GaussianFourierProjection(nn.Module):
    features: int

    @nn.compact
    def __call__(self):
        zeros(self, "W", self.features)


class AttnBlockpp(nn.Module):
    @nn.compact
    def __call__(self, width):
        GroupNorm()(width)
        for _ in range(4):
            NIN(width)(width)


class AttnBlock(AttnBlockpp):
    pass


class ResnetBlockDDPMpp(nn.Module):
    label_width: int
    features: int
    resamples: bool = False

    @nn.compact
    def __call__(self, width):
        GroupNorm()(width)
        Conv(self.features)(width)
        Dense(self.features)(self.label_width)
        GroupNorm()(self.features)
        Conv(self.features)(self.features)
        if width != self.features or self.resamples:
            self.shortcut(width)
        return self.features

    def shortcut(self, width):
        NIN(self.features)(width)


class ResnetBlockDDPM(ResnetBlockDDPMpp):
    pass


class ResnetBlockBigGANpp(ResnetBlockDDPMpp):
    def shortcut(self, width):
        Conv(self.features, 1)(width)


class Combine(nn.Module):
    features: int

    @nn.compact
    def __call__(self, width):
        Conv(self.features, 1)(width)


class Downsample(nn.Module):
    fir: bool
    with_conv: bool
    features: int

    @nn.compact
    def __call__(self, width):
        if self.with_conv:
            (Conv2d if self.fir else Conv)(self.features)(width)
        return self.features


class Upsample(Downsample):
    pass


BLOCKS = {
    ("biggan", False): ResnetBlockBigGANpp,
    ("ddpm", False): ResnetBlockDDPMpp,
    ("ddpm", True): ResnetBlockDDPM,
}


def jax_layout(state, hyper, *, ddpm=False):
    """The tensors of the PyTorch port, in their order, as the tree that the JAX code saves."""
    fixed = {"resblock_type": "ddpm", "fir": False, "embedding_type": "positional"} if ddpm else {}
    tree = Skeleton(hyper | fixed, ddpm).init(
        jax.random.key(0), hyper["image_size"], hyper["num_channels"]
    )["params"]
    leaves = flatten_dict(tree, sep="/")
    tensors = [array for name, array in state.items() if name != "sigmas"]
    for (name, leaf), array in zip(leaves.items(), tensors, strict=True):
        if array.ndim == 4:
            array = array.transpose(2, 3, 1, 0)
        elif name.endswith("kernel"):
            array = array.T
        assert leaf.shape == array.shape, name
        leaves[name] = array
    return unflatten_dict(leaves, sep="/")
