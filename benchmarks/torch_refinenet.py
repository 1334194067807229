# SPDX-License-Identifier: Apache-2.0
"""NCSNv2's RefineNet and its annealed Langevin dynamics in PyTorch, for comparisons of speed.

Images are (b, c, h, w). Modules bear the names of our Flax modules, as
`score_matching_torch.copy_weights` needs them.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scorejax.models.refinenet import NCSNV2, Stage


class InstanceNormPlus(nn.Module):
    """Instance normalisation that keeps the means of the channels, normalised over the channels."""

    def __init__(self, channels: int):
        super().__init__()
        self.alpha, self.gamma, self.beta = (nn.Parameter(torch.ones(channels)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(dim=(2, 3))
        spread = mean.var(dim=1, keepdim=True)
        kept = self.alpha * (mean - mean.mean(dim=1, keepdim=True)) * torch.rsqrt(spread + 1e-5)
        h = F.instance_norm(x) + _as_image(kept)
        return _as_image(self.gamma) * h + _as_image(self.beta)


class ResidualBlock(nn.Module):
    """Two normalised convolutions and a shortcut; the image may shrink."""

    def __init__(self, channels: int, features: int, down: bool, dilation: int):
        super().__init__()
        self.shrink = nn.AvgPool2d(2) if down and dilation == 1 else nn.Identity()
        self.norm_0, self.norm_1 = InstanceNormPlus(channels), InstanceNormPlus(channels)
        self.conv_0 = _conv(channels, channels, dilation=dilation)
        self.conv_1 = _conv(channels, features, dilation=dilation)
        size = 3 if dilation > 1 else 1
        changes = down or channels != features
        self.shortcut = _conv(channels, features, size, dilation) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_0(F.elu(self.norm_0(x)))
        h = self.shrink(self.conv_1(F.elu(self.norm_1(h))))
        return h + (x if self.shortcut is None else self.shrink(self.shortcut(x)))


class ResidualConvUnit(nn.Module):
    """Residual branches, one after the other, of two times (ELU, convolution)."""

    def __init__(self, channels: int, num_blocks: int):
        super().__init__()
        self.names = [(f"block_{i}_conv_0", f"block_{i}_conv_1") for i in range(num_blocks)]
        for name in sum(self.names, ()):
            self.add_module(name, _conv(channels, channels, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        for first, second in self.names:
            h = getattr(self, first)(F.elu(x))
            x = x + getattr(self, second)(F.elu(h))
        return x


class Fusion(nn.Module):
    """Sum of two images, each convolved, the second resized to the first."""

    def __init__(self, channels: tuple[int, int], features: int):
        super().__init__()
        self.conv_0, self.conv_1 = (_conv(width, features) for width in channels)

    def forward(self, skip: Tensor, h: Tensor) -> Tensor:
        skip, h = self.conv_0(skip), self.conv_1(h)
        if h.shape[2:] != skip.shape[2:]:
            h = F.interpolate(h, size=skip.shape[2:], mode="bilinear", align_corners=True)
        return skip + h


class Pooling(nn.Module):
    """Adds to ELU(x) the results of a chain of two 5x5 poolings and convolutions."""

    def __init__(self, features: int):
        super().__init__()
        self.conv_0, self.conv_1 = (_conv(features, features, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = path = F.elu(x)
        for conv in (self.conv_0, self.conv_1):
            path = conv(F.max_pool2d(path, 5, stride=1, padding=2))
            x = x + path
        return x


class RefineBlock(nn.Module):
    """Joins one or two images at the size of the first."""

    def __init__(self, channels: tuple[int, ...], features: int, num_output_units: int):
        super().__init__()
        for i, width in enumerate(channels):
            self.add_module(f"adapt_{i}", ResidualConvUnit(width, 2))
        self.fusion = Fusion(channels, features) if len(channels) > 1 else None
        self.pooling, self.output = Pooling(features), ResidualConvUnit(features, num_output_units)

    def forward(self, *images: Tensor) -> Tensor:
        adapted = [getattr(self, f"adapt_{i}")(image) for i, image in enumerate(images)]
        h = self.fusion(*adapted) if self.fusion is not None else adapted[0]
        return self.output(self.pooling(h))


class TorchNCSNv2(nn.Module):
    """The twin of `NCSNv2`: x (b, c, h, w) in [0, 1] -> what is to be divided by sigma."""

    def __init__(self, features: int, channels: int, stages: tuple[Stage, ...] = NCSNV2):
        super().__init__()
        self.num_stages = len(stages)
        widths = [stage.width * features for stage in stages]
        self.conv_in, width = _conv(channels, features), features
        for i, stage in enumerate(stages):
            for j, down in enumerate((stage.down, False)):
                block = ResidualBlock(width, widths[i], down, stage.dilation)
                self.add_module(f"stage_{i}_block_{j}", block)
                width = widths[i]
        for i in reversed(range(len(stages))):
            of_images = (widths[i],) if i + 1 == len(stages) else (widths[i], width)
            width = widths[max(i - 1, 0)]
            self.add_module(f"refine_{i}", RefineBlock(of_images, width, 1 if i else 3))
        self.norm_out, self.conv_out = InstanceNormPlus(width), _conv(width, channels)

    def forward(self, x: Tensor) -> Tensor:
        h, skips = self.conv_in(2 * x - 1), []
        for i in range(self.num_stages):
            for j in range(2):
                h = getattr(self, f"stage_{i}_block_{j}")(h)
            skips.append(h)
        h = getattr(self, f"refine_{self.num_stages - 1}")(skips[-1])
        for i in reversed(range(self.num_stages - 1)):
            h = getattr(self, f"refine_{i}")(skips[i], h)
        return self.conv_out(F.elu(self.norm_out(h)))


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
