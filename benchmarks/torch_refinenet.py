# SPDX-License-Identifier: Apache-2.0
"""The RefineNets of NCSN and NCSNv2, and annealed Langevin dynamics, in PyTorch, to compare speed.

Images are (b, c, h, w). Modules bear the names of our Flax modules, as
`score_matching_torch.copy_weights` needs them. The two networks differ in their norms, modules of
(x, label) that are made for a number of channels, and in what pools.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scorejax.models.refinenet import NCSNV2, Stage

Norm = Callable[[int], nn.Module]


class Parts(NamedTuple):
    """The norm of the body, that of the refining blocks, and what pools there."""

    norm: Norm
    refine_norm: Norm
    pool: Callable[[Tensor], Tensor]


def normalize_plus(x: Tensor, alpha: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """Instance normalisation that keeps the means of the channels, normalised over the channels."""
    mean = x.mean(dim=(2, 3))
    spread = mean.var(dim=1, keepdim=True)
    kept = alpha * (mean - mean.mean(dim=1, keepdim=True)) * torch.rsqrt(spread + 1e-5)
    return _as_image(gamma) * (F.instance_norm(x) + _as_image(kept)) + _as_image(beta)


class InstanceNormPlus(nn.Module):
    """`normalize_plus` with one set of parameters."""

    def __init__(self, channels: int):
        super().__init__()
        self.alpha, self.gamma, self.beta = (nn.Parameter(torch.ones(channels)) for _ in range(3))

    def forward(self, x: Tensor, label: Tensor | None) -> Tensor:
        return normalize_plus(x, self.alpha, self.gamma, self.beta)


class ConditionalInstanceNormPlus(nn.Module):
    """`normalize_plus` with parameters for each noise level."""

    def __init__(self, channels: int, num_scales: int):
        super().__init__()
        self.table = nn.Parameter(torch.ones(num_scales, 3 * channels))

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        gamma, alpha, beta = F.embedding(label, self.table).chunk(3, dim=1)
        return normalize_plus(x, alpha, gamma, beta)


class NoNorm(nn.Module):
    def __init__(self, channels: int):
        super().__init__()

    def forward(self, x: Tensor, label: Tensor | None) -> Tensor:
        return x


max_pool = functools.partial(F.max_pool2d, kernel_size=5, stride=1, padding=2)
mean_pool = functools.partial(F.avg_pool2d, kernel_size=5, stride=1, padding=2)


class ResidualBlock(nn.Module):
    """Two normalised convolutions and a shortcut; the image may shrink."""

    def __init__(self, channels: int, features: int, down: bool, dilation: int, norm: Norm):
        super().__init__()
        self.shrink = nn.AvgPool2d(2) if down and dilation == 1 else nn.Identity()
        self.norm_0, self.norm_1 = norm(channels), norm(channels)
        self.conv_0 = _conv(channels, channels, dilation=dilation)
        self.conv_1 = _conv(channels, features, dilation=dilation)
        size = 3 if dilation > 1 else 1
        changes = down or channels != features
        self.shortcut = _conv(channels, features, size, dilation) if changes else None

    def forward(self, x: Tensor, label: Tensor | None) -> Tensor:
        h = self.conv_0(F.elu(self.norm_0(x, label)))
        h = self.shrink(self.conv_1(F.elu(self.norm_1(h, label))))
        return h + (x if self.shortcut is None else self.shrink(self.shortcut(x)))


class ResidualConvUnit(nn.Module):
    """Residual branches, one after the other, of two times (norm, ELU, convolution)."""

    def __init__(self, channels: int, num_blocks: int, norm: Norm):
        super().__init__()
        self.num_blocks = num_blocks
        for i in range(num_blocks):
            for j in range(2):
                self.add_module(f"block_{i}_norm_{j}", norm(channels))
                self.add_module(f"block_{i}_conv_{j}", _conv(channels, channels, bias=False))

    def forward(self, x: Tensor, label: Tensor | None) -> Tensor:
        for i in range(self.num_blocks):
            h = x
            for j in range(2):
                h = F.elu(getattr(self, f"block_{i}_norm_{j}")(h, label))
                h = getattr(self, f"block_{i}_conv_{j}")(h)
            x = x + h
        return x


class Fusion(nn.Module):
    """Sum of two images, each normalised and convolved, the second resized to the first."""

    def __init__(self, channels: tuple[int, int], features: int, norm: Norm):
        super().__init__()
        self.norm_0, self.norm_1 = map(norm, channels)
        self.conv_0, self.conv_1 = (_conv(width, features) for width in channels)

    def forward(self, skip: Tensor, h: Tensor, label: Tensor | None) -> Tensor:
        skip, h = self.conv_0(self.norm_0(skip, label)), self.conv_1(self.norm_1(h, label))
        if h.shape[2:] != skip.shape[2:]:
            h = F.interpolate(h, size=skip.shape[2:], mode="bilinear", align_corners=True)
        return skip + h


class Pooling(nn.Module):
    """Adds to ELU(x) the results of a chain of two norms, 5x5 poolings and convolutions."""

    def __init__(self, features: int, parts: Parts):
        super().__init__()
        self.pool = parts.pool
        self.norm_0, self.norm_1 = (parts.refine_norm(features) for _ in range(2))
        self.conv_0, self.conv_1 = (_conv(features, features, bias=False) for _ in range(2))

    def forward(self, x: Tensor, label: Tensor | None) -> Tensor:
        x = path = F.elu(x)
        for norm, conv in ((self.norm_0, self.conv_0), (self.norm_1, self.conv_1)):
            path = conv(self.pool(norm(path, label)))
            x = x + path
        return x


class RefineBlock(nn.Module):
    """Joins one or two images at the size of the first."""

    def __init__(
        self, channels: tuple[int, ...], features: int, num_output_units: int, parts: Parts
    ):
        super().__init__()
        norm = parts.refine_norm
        for i, width in enumerate(channels):
            self.add_module(f"adapt_{i}", ResidualConvUnit(width, 2, norm))
        self.fusion = Fusion(channels, features, norm) if len(channels) > 1 else None
        self.pooling = Pooling(features, parts)
        self.output = ResidualConvUnit(features, num_output_units, norm)

    def forward(self, *images: Tensor, label: Tensor | None) -> Tensor:
        adapted = [getattr(self, f"adapt_{i}")(image, label) for i, image in enumerate(images)]
        h = self.fusion(*adapted, label) if self.fusion is not None else adapted[0]
        return self.output(self.pooling(h, label), label)


class RefineNet(nn.Module):
    """x (b, c, h, w) in [0, 1] and a label (b,) or none -> (b, c, h, w)."""

    def __init__(self, features: int, channels: int, stages: tuple[Stage, ...], parts: Parts):
        super().__init__()
        self.num_stages = len(stages)
        widths = [stage.width * features for stage in stages]
        self.conv_in, width = _conv(channels, features), features
        for i, stage in enumerate(stages):
            for j, down in enumerate((stage.down, False)):
                block = ResidualBlock(width, widths[i], down, stage.dilation, parts.norm)
                self.add_module(f"stage_{i}_block_{j}", block)
                width = widths[i]
        for i in reversed(range(len(stages))):
            of_images = (widths[i],) if i + 1 == len(stages) else (widths[i], width)
            width = widths[max(i - 1, 0)]
            self.add_module(f"refine_{i}", RefineBlock(of_images, width, 1 if i else 3, parts))
        self.norm_out, self.conv_out = parts.norm(width), _conv(width, channels)

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        h, skips = self.conv_in(2 * x - 1), []
        for i in range(self.num_stages):
            for j in range(2):
                h = getattr(self, f"stage_{i}_block_{j}")(h, label)
            skips.append(h)
        h = getattr(self, f"refine_{self.num_stages - 1}")(skips[-1], label=label)
        for i in reversed(range(self.num_stages - 1)):
            h = getattr(self, f"refine_{i}")(skips[i], h, label=label)
        return self.conv_out(F.elu(self.norm_out(h, label)))


class TorchNCSNv2(RefineNet):
    """The twin of `NCSNv2`, whose output is to be divided by sigma."""

    def __init__(self, features: int, channels: int, stages: tuple[Stage, ...] = NCSNV2):
        super().__init__(features, channels, stages, Parts(InstanceNormPlus, NoNorm, max_pool))


class TorchNCSN(RefineNet):
    """The twin of `NCSN`, whose output is the score at the noise level that the label counts."""

    def __init__(self, features: int, channels: int, num_scales: int = 10):
        norm = functools.partial(ConditionalInstanceNormPlus, num_scales=num_scales)
        super().__init__(features, channels, NCSNV2, Parts(norm, norm, mean_pool))


@torch.no_grad()
def annealed_langevin(
    network: nn.Module, x: Tensor, sigmas: np.ndarray, *, step_size: float, steps_per_level: int
) -> Tensor:
    """Algorithm 1 of arXiv:2006.09011 from x, and the last denoising step."""
    for sigma in map(float, sigmas):
        alpha = step_size * (sigma / sigmas[-1]) ** 2
        for _ in range(steps_per_level):
            x = x + alpha / sigma * network(x) + math.sqrt(2 * alpha) * torch.randn_like(x)
    return x + sigma * network(x)


def _conv(
    channels: int, features: int, size: int = 3, dilation: int = 1, bias: bool = True
) -> nn.Conv2d:
    padding = dilation * (size // 2)
    return nn.Conv2d(channels, features, size, padding=padding, dilation=dilation, bias=bias)


def _as_image(values: Tensor) -> Tensor:
    return values[..., None, None]
