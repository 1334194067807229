# SPDX-License-Identifier: Apache-2.0
"""BiO-Net and its training step in PyTorch, for comparisons of speed.

Images are (b, c, h, w). Modules bear the official names (arXiv:2007.00243, published code), so that
the state dictionary is what `scorejax.interop.export_torch` writes; a convolution has a name for
each pass, and is one module.
"""

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TorchBiONet(nn.Module):
    """The twin of `scorejax.models.bionet.torch_bionet` without INT: images -> logits."""

    def __init__(self, widths: tuple[int, ...], num_passes: int):
        super().__init__()
        self.num_levels, self.num_passes = len(widths) - 1, num_passes
        first, last = widths[0], widths[-1]
        self.pre_transform_conv_block = nn.Sequential(
            *_units(_conv(3, first), _conv(first, first), _conv(first, first))
        )
        encoder = [
            (_conv(2 * width, width), _conv(width, width), _conv(width, below))
            for width, below in itertools.pairwise(widths)
        ]
        decoder = [
            (_conv(below + width, width), _conv(width, width), _up(width))
            for width, below in itertools.pairwise(widths)
        ]
        for number, level in itertools.product(range(num_passes), range(self.num_levels)):
            # The official code counts levels of the decoder from the coarsest.
            for part, convs, change in (
                ("encoder", encoder[level], "down"),
                ("decoder", decoder[self.num_levels - 1 - level], "up"),
            ):
                name = f"iteration{number}_layer{level}_{part}"
                self.add_module(f"{name}_convs", nn.Sequential(*_units(*convs[:2])))
                self.add_module(f"{name}_{change}", nn.Sequential(*_units(convs[2])))
        self.middles = nn.Sequential(*_units(_conv(last, last), _conv(last, last), _up(last)))
        self.post_transform_conv_block = nn.Sequential(
            *_units(_conv(first, first), _conv(first, first)), nn.Conv2d(first, 1, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.pre_transform_conv_block(x), 2)
        backward: list[Tensor | None] = [None] * self.num_levels
        for number in range(self.num_passes):
            h, backward = self._run(x, backward, f"iteration{number}_layer")
        return self.post_transform_conv_block(h)

    def _run(
        self, h: Tensor, backward: list[Tensor | None], prefix: str
    ) -> tuple[Tensor, list[Tensor | None]]:
        """What a pass decodes in the end, and at each level, the coarsest first."""
        forward, decoded = [], []
        for level in range(self.num_levels):
            back = backward[self.num_levels - 1 - level]
            h = torch.cat([h, h if back is None else back], dim=1)
            h = getattr(self, f"{prefix}{level}_encoder_convs")(h)
            forward.append(h)
            h = F.max_pool2d(getattr(self, f"{prefix}{level}_encoder_down")(h), 2)
        h = self.middles(h)
        for level in range(self.num_levels):
            h = torch.cat([h, forward.pop()], dim=1)
            h = getattr(self, f"{prefix}{level}_decoder_convs")(h)
            decoded.append(h)
            h = getattr(self, f"{prefix}{level}_decoder_up")(h)
        return h, decoded


def make_step(
    network: nn.Module, *, learning_rate: float, decay: float
) -> Callable[[Tensor, Tensor], Tensor]:
    """One training step on images and masks, which returns the loss: Adam, whose rate falls."""
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda count: 1 / (1 + decay * count))

    def step(x: Tensor, mask: Tensor) -> Tensor:
        loss = F.binary_cross_entropy_with_logits(network(x), mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        return loss.detach()

    return step


def _units(*convs: nn.Module) -> list[nn.Module]:
    """Convolutions, each with its ReLU and its batch normalisation, in this order."""
    norms = [nn.BatchNorm2d(conv.out_channels, momentum=0.01) for conv in convs]
    return [
        layer for conv, norm in zip(convs, norms, strict=True) for layer in (conv, nn.ReLU(), norm)
    ]


def _conv(channels: int, features: int) -> nn.Conv2d:
    return nn.Conv2d(channels, features, 3, padding=1)


def _up(channels: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(channels, channels, 3, stride=2, padding=1, output_padding=1)
