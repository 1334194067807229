# SPDX-License-Identifier: Apache-2.0
"""Diffusion recovery likelihood in PyTorch: the network `net_res_temb2` and its training step.

The network is a function of its weights, which bear the names of our parameters, so that the
kernels, divided by their largest singular values, can be computed once and held. Images are
(b, c, h, w). Source: Gao et al. 2021, arXiv:2012.08125, and its code.
"""

import math
from collections.abc import Callable

import flax.traverse_util
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from scorejax.models.recovery_resnet import RecoveryResNet
from scorejax.schedules import RecoveryLevels
from scorejax.typing import Params, PyTree

Weights = dict[str, Tensor]
Body = Callable[[Weights, Tensor, Tensor], Tensor]


def copied(params: Params, spectral: PyTree) -> tuple[Weights, Weights]:
    """Our parameters as leaves of PyTorch, and the vectors u by the names of their kernels."""
    weights, vectors = {}, {}
    for path, value in flax.traverse_util.flatten_dict(params).items():
        value = np.asarray(value)
        if path[-1] == "kernel":
            value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
        weights["/".join(path)] = torch.from_numpy(value.copy()).requires_grad_()
    for path, value in flax.traverse_util.flatten_dict(spectral).items():
        vectors["/".join((*path[:-1], "kernel"))] = torch.tensor(np.asarray(value))
    return weights, vectors


def as_ours(name: str, value: Tensor) -> np.ndarray:
    """A weight, or its gradient, with our axes."""
    if not name.endswith("kernel"):
        return value.numpy()
    return value.permute(2, 3, 1, 0).numpy() if value.ndim == 4 else value.T.numpy()


def normalised(weights: Weights, vectors: Weights) -> tuple[Weights, Weights]:
    """The weights with their kernels divided, and u after one power iteration.

    The second kernels of blocks are only ever shrunk.
    """
    applied, moved = dict(weights), {}
    for name, u in vectors.items():
        matrix = weights[name].flatten(1)
        with torch.no_grad():
            v = _unit(u @ matrix)
            moved[name] = u = _unit(matrix @ v)
        sigma = torch.dot(u, matrix @ v)
        divisor = (sigma + 1e-6).clamp(min=1) if name.endswith("conv_1/kernel") else sigma
        applied[name] = weights[name] / divisor
    return applied, moved


def embed(weights: Weights, t: Tensor) -> Tensor:
    """The activated embedding of levels (b,)."""
    half = weights["temb_0/kernel"].shape[1] // 2
    rates = torch.exp(torch.arange(half) * (-math.log(10_000) / (half - 1)))
    angles = t[:, None] * rates
    h = torch.cat([torch.sin(angles), torch.cos(angles)], dim=1)
    h = _linear(weights, "temb_0", h)
    return _activation(_linear(weights, "temb_1", _activation(h)))


def make_body(network: RecoveryResNet) -> Body:
    """Returns F(weights, x, temb) -> (b,), without attention, of the published options."""
    last = len(network.ch_mult) - 1

    def body(weights: Weights, x: Tensor, temb: Tensor) -> Tensor:
        h = _conv(weights, "conv_in", x)
        for level in range(last + 1):
            for i in range(network.num_res_blocks):
                h = _block(weights, f"level_{level}_block_{i}", h, temb)
            if level < last:
                h = F.avg_pool2d(h, 2)
        return (F.relu(h).sum((2, 3)) * _linear(weights, "readout", temb)).sum(1)

    return body


class Step:
    """One update by the recovery likelihood; the weights, u and the average change in place.

    `held` makes one power iteration a step and holds the kernels and the embedding of the level
    within it. Otherwise each call of the network makes one, as in the published code.
    """

    def __init__(
        self,
        body: Body,
        weights: Weights,
        vectors: Weights,
        levels: RecoveryLevels,
        *,
        num_steps: int,
        held: bool,
        learning_rate: float = 1e-4,
        ema_rate: float = 0.999,
    ):
        self.body, self.weights, self.vectors = body, weights, vectors
        self.num_steps, self.held, self.ema_rate = num_steps, held, ema_rate
        self.leaves = list(weights.values())
        self.average = [leaf.detach().clone() for leaf in self.leaves]
        self.optimizer = torch.optim.Adam(self.leaves, lr=learning_rate, eps=1e-7, fused=True)
        table = lambda values: torch.tensor(values, dtype=torch.get_default_dtype())[
            :, None, None, None
        ]
        self.scales, self.stds = table(levels.scales[:-1]), table(levels.stds[:-1])
        self.decays, self.sigmas = table(levels.decays[1:]), table(levels.sigmas[1:])
        self.energy_scales = table(levels.energy_scales)
        self.step_sizes, self.precisions = (
            table(levels.step_sizes), table(levels.recovery_precisions)
        )  # fmt: skip
        self.loss_weights = table(levels.loss_weights)[:, 0, 0, 0]

    def __call__(self, x: Tensor) -> Tensor:
        t = torch.randint(len(self.scales), x.shape[:1])
        x_t = self.scales[t] * x + self.stds[t] * torch.randn_like(x)
        x_next = self.decays[t] * x_t + self.sigmas[t] * torch.randn_like(x)
        noise = lambda k: torch.randn_like(x)
        loss = self.loss(self.energy_scales[t] * x_t, x_next, t, noise)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.leaves, 1 - self.ema_rate)
        return loss.detach()

    def loss(
        self, positive: Tensor, x_next: Tensor, t: Tensor, noise: Callable[[int], Tensor]
    ) -> Tensor:
        """The loss at the positives and at negatives drawn with noise(k); moves u."""
        if self.held:
            applied, self.vectors = normalised(self.weights, self.vectors)
            still = {name: value.detach() for name, value in applied.items()}
            temb = embed(still, t)
            negative = self.chain(lambda y: self.body(still, y, temb), x_next, t, noise)
            temb = embed(applied, t)
            both = self.body(applied, positive, temb), self.body(applied, negative, temb)
        else:
            constants = {name: value.detach() for name, value in self.weights.items()}
            negative = self.chain(lambda y: self.call(constants, y, t), x_next, t, noise)
            both = self.call(self.weights, positive, t), self.call(self.weights, negative, t)
        return (self.loss_weights[t] * (both[1] - both[0])).mean()

    def call(self, weights: Weights, x: Tensor, t: Tensor) -> Tensor:
        """F (b,) after a power iteration, which is kept."""
        applied, self.vectors = normalised(weights, self.vectors)
        return self.body(applied, x, embed(applied, t))

    def chain(
        self,
        network: Callable[[Tensor], Tensor],
        x_next: Tensor,
        t: Tensor,
        noise: Callable[[int], Tensor],
    ) -> Tensor:
        """y after the Langevin steps from x_next."""
        step_size, precision = self.step_sizes[t], self.precisions[t]
        pull, width, y = step_size * precision / 2, step_size.sqrt(), x_next
        for k in range(self.num_steps):
            slope = gradient(network, y)
            y = y + slope / 2 - pull * (y - x_next) + width * noise(k)
        return y


def gradient(network: Callable[[Tensor], Tensor], y: Tensor) -> Tensor:
    """d F / d y (b, c, h, w)."""
    y = y.detach().requires_grad_()
    return torch.autograd.grad(network(y).sum(), y)[0]


def _block(weights: Weights, name: str, x: Tensor, temb: Tensor) -> Tensor:
    h = _conv(weights, f"{name}/conv_0", _activation(x))
    h = h + _linear(weights, f"{name}/temb", temb)[:, :, None, None]
    h = _conv(weights, f"{name}/conv_1", _activation(h))
    h = h * weights[f"{name}/gain"][:, None, None]
    if f"{name}/shortcut/kernel" in weights:
        x = _conv(weights, f"{name}/shortcut", x)
    return x + h


def _conv(weights: Weights, name: str, x: Tensor) -> Tensor:
    return F.conv2d(x, weights[f"{name}/kernel"], weights[f"{name}/bias"], padding=1)


def _linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, weights[f"{name}/kernel"], weights[f"{name}/bias"])


def _activation(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2)


def _unit(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().sum().clamp(min=1e-12))
