# SPDX-License-Identifier: Apache-2.0
"""The energies of `benchmarks/score_matching.py`, and what trains energies and scores, in PyTorch.

Written as a careful PyTorch user would: second derivatives by double backward, as the papers'
authors do, and the members of a finite difference in one batch. Images are (b, c, h, w). Modules
bear the names of our parameters, so that copying weights is a walk over names.
"""

import math
from collections.abc import Callable

import flax.traverse_util
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scorejax.typing import Params

Energy = Callable[[Tensor], Tensor]
Score = Callable[[Tensor], Tensor]
Objective = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]


class MLP(nn.Module):
    """Hyperbolic tangents, linear_0 to linear_<n>, and 0.15 |x|^2."""

    def __init__(self, widths: tuple[int, ...]):
        super().__init__()
        for i, (before, after) in enumerate(zip(widths, (*widths[1:], 1), strict=True)):
            setattr(self, f"linear_{i}", nn.Linear(before, after))
        self.depth = len(widths)

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for i in range(self.depth - 1):
            h = torch.tanh(getattr(self, f"linear_{i}")(h))
        return getattr(self, f"linear_{self.depth - 1}")(h)[:, 0] + 0.15 * x.square().sum(1)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions after softplus - log 2; `down` means 2 x 2 pixels."""

    def __init__(self, before: int, after: int, down: bool):
        super().__init__()
        self.conv_0 = nn.Conv2d(before, before, 3, padding=1)
        self.conv_1 = nn.Conv2d(before, after, 3, padding=1)
        if before != after:
            self.shortcut = nn.Conv2d(before, after, 1)
        self.down = down

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_1(centred_softplus(self.conv_0(centred_softplus(x))))
        x = self.shortcut(x) if hasattr(self, "shortcut") else x
        return F.avg_pool2d(x, 2) + F.avg_pool2d(h, 2) if self.down else x + h


class Trunk(nn.Module):
    """A convolution, then stages of blocks whose first halves the image."""

    def __init__(self, features: int, multipliers: tuple[int, ...], num_blocks: int):
        super().__init__()
        self.conv_in = nn.Conv2d(3, features, 3, padding=1)
        width, self.names = features, []
        for stage, multiplier in enumerate(multipliers):
            for i in range(num_blocks):
                self.names.append(f"stage_{stage}_block_{i}")
                block = ResidualBlock(width, multiplier * features, i == 0)
                setattr(self, self.names[-1], block)
                width = multiplier * features

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for name in self.names:
            h = getattr(self, name)(h)
        return h


class QuadraticHead(nn.Module):
    """(w_1 . h)(w_2 . h) + w_3 . h^2, each with a bias."""

    def __init__(self, width: int):
        super().__init__()
        self.linear_0, self.linear_1 = nn.Linear(width, 1), nn.Linear(width, 1)
        self.square = nn.Linear(width, 1)

    def forward(self, h: Tensor) -> Tensor:
        return (self.linear_0(h) * self.linear_1(h) + self.square(h * h))[:, 0]


class EnergyResNet(nn.Module):
    """`scorejax.models.energy_resnet.EnergyResNet` of 32 x 32 images of three channels."""

    def __init__(self, features: int, multipliers: tuple[int, ...], num_blocks: int):
        super().__init__()
        self.trunk = Trunk(features, multipliers, num_blocks)
        size = 32 // 2 ** len(multipliers)
        self.head = QuadraticHead(size * size * multipliers[-1] * features)

    def forward(self, x: Tensor) -> Tensor:
        # Features of an example in the order of channels-last images, for the head's weights.
        return self.head(self.trunk(x).permute(0, 2, 3, 1).flatten(1))


def centred_softplus(x: Tensor) -> Tensor:
    return F.softplus(x) - math.log(2)


def copy_weights(params: Params, network: nn.Module) -> None:
    """Copies Flax parameters by name; kernels (in, out) and (h, w, in, out) become PyTorch's."""
    flat = flax.traverse_util.flatten_dict(params)
    state = {}
    for path, value in flat.items():
        value = np.asarray(value)
        if path[-1] == "kernel":
            value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
        name = ".".join((*path[:-1], {"kernel": "weight"}.get(path[-1], path[-1])))
        state[name] = torch.from_numpy(value.copy())
    network.load_state_dict(state)


def sphere(x: Tensor) -> Tensor:
    u = torch.randn_like(x)
    return u / u.flatten(1).norm(dim=1).view(-1, *[1] * (x.ndim - 1))


def dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)


def score(energy: Energy, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    return x, -torch.autograd.grad(energy(x).sum(), x, create_graph=True)[0]


def ssm(energy: Energy, x: Tensor) -> Tensor:
    u = sphere(x)
    x, s = score(energy, x)
    slope = dot(s, u)
    curvature = dot(torch.autograd.grad(slope.sum(), x, create_graph=True)[0], u)
    return (curvature + slope.square() / 2).mean()


def ssm_vr(energy: Energy, x: Tensor) -> Tensor:
    u = sphere(x)
    x, s = score(energy, x)
    hessian_u = torch.autograd.grad(dot(s, u).sum(), x, create_graph=True)[0]
    return (math.prod(x.shape[1:]) * dot(hessian_u, u) + dot(s, s) / 2).mean()


def dsm(energy: Energy, x: Tensor, *, sigma: float) -> Tensor:
    noise = torch.randn_like(x)
    _, s = score(energy, x + sigma * noise)
    return (s + noise / sigma).square().flatten(1).sum(1).mean() / 2


def fd_ssm(energy: Energy, x: Tensor, *, eps: float) -> Tensor:
    v = eps * sphere(x)
    centre, plus, minus = (-energy(torch.cat([x, x + v, x - v]))).chunk(3)
    return ((plus - centre) + (minus - centre) + (plus - minus).square() / 8).mean() / eps**2


def fd_dsm(energy: Energy, x: Tensor, *, sigma: float, eps: float) -> Tensor:
    noise, v = torch.randn_like(x), eps * sphere(x)
    y = x + sigma * noise
    plus, minus = (-energy(torch.cat([y + v, y - v]))).chunk(2)
    return (plus - minus + 2 * dot(v, noise) / sigma).square().mean() / (4 * eps**2)


def score_ssm_vr(score: Score, x: Tensor) -> Tensor:
    u, x = sphere(x), x.detach().requires_grad_()
    s = score(x)
    product = torch.autograd.grad(dot(s, u).sum(), x, create_graph=True)[0]
    return (math.prod(x.shape[1:]) * dot(product, u) + dot(s, s) / 2).mean()


def score_fd_ssm_vr(score: Score, x: Tensor, *, eps: float) -> Tensor:
    v = eps * sphere(x)
    plus, minus = score(torch.cat([x + v, x - v])).chunk(2)
    square, dim = (plus + minus).square().flatten(1).sum(1), math.prod(x.shape[1:])
    return (square / 8 + dim / (2 * eps**2) * dot(plus - minus, v)).mean()


def score_dsm(score: Score, x: Tensor, *, sigma: float) -> Tensor:
    noise = torch.randn_like(x)
    return (score(x + sigma * noise) + noise / sigma).square().flatten(1).sum(1).mean() / 2


def make_step(
    network: nn.Module, objective: Objective, learning_rate: float
) -> Callable[[Tensor], None]:
    """One update by Adam."""
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate, fused=True)

    def step(x: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        objective(network, x).backward()
        optimizer.step()

    return step
