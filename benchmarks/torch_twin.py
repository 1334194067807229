# SPDX-License-Identifier: Apache-2.0
"""The same network and the same algorithms in PyTorch, for comparisons of speed.

DDPM++ and NCSN++ of arXiv:2011.13456, Appendix H: positional embedding, BigGAN residual blocks,
skips divided by sqrt(2), attention of one head; NCSN++ resamples with FIR filters and has a
residual pyramid of the input. Images are (b, c, h, w). Modules bear the names of our Flax modules,
so that copying weights is a walk over names.

It is meant to be what a careful PyTorch user would write: fused attention, fused Adam, one foreach
call for the moving average, no synchronisation inside a step.
"""

import math
from collections.abc import Callable

import flax.traverse_util
import numpy as np
import scipy.integrate
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scorejax.typing import Params

BETA_MIN, BETA_MAX, T_MIN, SAMPLING_T_MIN = 0.1, 20.0, 1e-5, 1e-3
ScoreFn = Callable[[Tensor, Tensor], Tensor]


class ResidualBlock(nn.Module):
    """BigGAN residual block; `resample` acts on the activations and on the shortcut."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        embedding: int,
        resample: Callable[[Tensor], Tensor] | None = None,
    ):
        super().__init__()
        self.resample = resample
        self.norm_0 = group_norm(in_channels)
        self.conv_0 = conv3x3(in_channels, channels)
        self.temb = nn.Linear(embedding, channels)
        self.norm_1 = group_norm(channels)
        self.conv_1 = conv3x3(channels, channels)
        changes = resample is not None or in_channels != channels
        self.shortcut = nn.Conv2d(in_channels, channels, 1) if changes else nn.Identity()

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        h = F.silu(self.norm_0(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self.conv_0(h) + self.temb(F.silu(temb))[:, :, None, None]
        h = self.conv_1(F.silu(self.norm_1(h)))
        return (self.shortcut(x) + h) / math.sqrt(2)


class Attention(nn.Module):
    """Residual self-attention over all pixels, one head."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = group_norm(channels)
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x).flatten(2).transpose(1, 2)
        h = F.scaled_dot_product_attention(self.query(h), self.key(h), self.value(h))
        return (x + self.out(h).transpose(1, 2).reshape(x.shape)) / math.sqrt(2)


class TimeEmbedding(nn.Module):
    """Sines and cosines of the label, then two dense layers."""

    def __init__(self, nf: int):
        super().__init__()
        self.nf = nf
        self.dense_0, self.dense_1 = nn.Linear(nf, 4 * nf), nn.Linear(4 * nf, 4 * nf)

    def forward(self, label: Tensor) -> Tensor:
        half = self.nf // 2
        rates = torch.exp(torch.arange(half, dtype=label.dtype) * (-math.log(10_000) / (half - 1)))
        angles = label[:, None] * rates
        embedding = torch.cat([torch.sin(angles), torch.cos(angles)], dim=1)
        return self.dense_1(F.silu(self.dense_0(embedding)))


class FIR(nn.Module):
    """Resampling by two with the filter [1, 3, 3, 1], as one depthwise convolution."""

    def __init__(self, *, up: bool):
        super().__init__()
        self.up = up
        self.register_buffer("taps", filter_taps(4.0 if up else 1.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        taps = self.taps.expand(x.shape[1], 1, 4, 4)
        resample = F.conv_transpose2d if self.up else F.conv2d
        return resample(x, taps, stride=2, padding=1, groups=x.shape[1])


class PyramidStep(nn.Conv2d):
    """Half the size: filtered, then a 3x3 convolution of stride 2."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__(in_channels, channels, 3, stride=2)
        self.register_buffer("taps", filter_taps(1.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        taps = self.taps.expand(x.shape[1], 1, 4, 4)
        return super().forward(F.conv2d(x, taps, padding=2, groups=x.shape[1]))


def filter_taps(gain: float) -> Tensor:
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    return gain * torch.outer(taps, taps)


class TorchNCSNpp(nn.Module):
    """The twin of `NCSNpp(embedding_type="positional", dropout=0)`: DDPM++, or with `fir` NCSN++.

    forward(x (b, c, h, w), label (b,)) -> (b, c, h, w), the raw head.
    """

    def __init__(
        self, *, nf: int, ch_mult: tuple[int, ...], num_res_blocks: int,
        attn_resolutions: tuple[int, ...], image_size: int, channels: int, fir: bool = False,
    ):  # fmt: skip
        super().__init__()
        halve, double = (FIR(up=False), FIR(up=True)) if fir else (mean_2x2, nearest_2x2)
        pyramid_width = channels
        self.temb, self.conv_in = TimeEmbedding(nf), conv3x3(channels, nf)
        self.down, self.up = nn.ModuleDict(), nn.ModuleDict()
        skips, width, size = [nf], nf, image_size
        for level, multiple in enumerate(ch_mult):
            for i in range(num_res_blocks):
                self.down[f"{level}_block_{i}"] = ResidualBlock(width, nf * multiple, 4 * nf)
                width = nf * multiple
                if size in attn_resolutions:
                    self.down[f"{level}_attn_{i}"] = Attention(width)
                skips.append(width)
            if level + 1 < len(ch_mult):
                self.down[f"{level}_resample"] = ResidualBlock(width, width, 4 * nf, halve)
                if fir:
                    self.down[f"{level}_pyramid"] = PyramidStep(pyramid_width, width)
                    pyramid_width = width
                skips.append(width)
                size //= 2
        self.middle_block_0 = ResidualBlock(width, width, 4 * nf)
        self.middle_attn = Attention(width)
        self.middle_block_1 = ResidualBlock(width, width, 4 * nf)
        for level, multiple in reversed(list(enumerate(ch_mult))):
            for i in range(num_res_blocks + 1):
                block = ResidualBlock(width + skips.pop(), nf * multiple, 4 * nf)
                self.up[f"{level}_block_{i}"] = block
                width = nf * multiple
            if size in attn_resolutions:
                self.up[f"{level}_attn"] = Attention(width)
            if level:
                self.up[f"{level}_resample"] = ResidualBlock(width, width, 4 * nf, double)
                size *= 2
        self.out_norm, self.out_conv = group_norm(width), conv3x3(width, channels)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        temb = self.temb(label)
        h = self.conv_in(x)
        skips, pyramid = [h], x
        for layer in self.down.values():
            if isinstance(layer, Attention):
                h = skips[-1] = layer(h)
            elif isinstance(layer, PyramidStep):
                h = skips[-1] = pyramid = (layer(pyramid) + h) / math.sqrt(2)
            else:
                h = layer(h, temb)
                skips.append(h)
        h = self.middle_block_1(self.middle_attn(self.middle_block_0(h, temb)), temb)
        for name, layer in self.up.items():
            if isinstance(layer, Attention):
                h = layer(h)
            elif name.endswith("resample"):
                h = layer(h, temb)
            else:
                h = layer(torch.cat([h, skips.pop()], dim=1), temb)
        return self.out_conv(F.silu(self.out_norm(h)))


def conv3x3(in_channels: int, channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, channels, 3, padding=1)


def group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(channels // 4, 32), channels, eps=1e-6)


def mean_2x2(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 2)


def nearest_2x2(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


def copy_weights(params: Params, twin: TorchNCSNpp) -> None:
    """Gives the twin the parameters of the Flax module; each must find its place."""
    ours = flax.traverse_util.flatten_dict(params, sep="/")
    state = {}
    for name, tensor in twin.state_dict().items():
        value = np.asarray(ours.pop(_flax_name(name, tensor)))
        if value.ndim == 4:
            value = value.transpose(3, 2, 0, 1)
        elif value.ndim == 2:
            value = value.T
        state[name] = torch.tensor(value).reshape(tensor.shape)
    if ours:
        raise ValueError(f"the twin has no place for {sorted(ours)}")
    twin.load_state_dict(state)


def require_same(ours: np.ndarray, theirs: Tensor, *, tolerance: float = 2e-5) -> None:
    """Raises AssertionError unless both networks computed the same, to a share of the largest.

    Float32 through some 60 layers in another order of summation: about 1e-6 of the largest value.
    """
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * float(theirs.abs().max()))


def _flax_name(name: str, tensor: Tensor) -> str:
    *path, leaf = name.replace("down.", "down_").replace("up.", "up_").split(".")
    if path[-1] == "conv_0" and leaf == "bias":
        return "/".join([*path[:-1], "conv_0_bias"])
    kernel = "kernel" if tensor.ndim > 1 else "scale"
    return "/".join([*path, kernel if leaf == "weight" else leaf])


def make_step(
    network: nn.Module, *, learning_rate: float, clip_norm: float, ema_rate: float
) -> Callable[[Tensor], Tensor]:
    """One training step of the VP noise-prediction loss on a batch of images, which returns it."""
    params = list(network.parameters())
    average = [param.detach().clone() for param in params]
    optimizer = torch.optim.Adam(params, lr=learning_rate, fused=True)

    def step(x: Tensor) -> Tensor:
        t = T_MIN + (1 - T_MIN) * torch.rand(len(x))
        noise = torch.randn_like(x)
        scale, std = (expand(value) for value in marginal(t))
        loss = torch.mean((network(scale * x + std * noise, 999 * t) - noise) ** 2)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(params, clip_norm)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, params, 1 - ema_rate)
        return loss.detach()

    return step


def expand(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def marginal(t: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and std of x_t given x_0 under the VP SDE."""
    integral = t * (BETA_MIN + t * (BETA_MAX - BETA_MIN) / 2)
    return torch.exp(-integral / 2), torch.sqrt(-torch.expm1(-integral))


def noise_prediction(network: nn.Module) -> ScoreFn:
    return lambda x, t: -network(x, 999 * t) / expand(marginal(t)[1])


@torch.no_grad()
def predictor_corrector(
    score_fn: ScoreFn, shape: tuple[int, ...], *, num_steps: int, snr: float
) -> Tensor:
    """Reverse diffusion, each step after one Langevin move: 2 num_steps evaluations."""
    x = x_mean = torch.randn(shape)
    betas = torch.linspace(BETA_MIN / num_steps, BETA_MAX / num_steps, num_steps).flip(0)
    for time, beta in zip(torch.linspace(1, SAMPLING_T_MIN, num_steps), betas, strict=True):
        t = time.expand(shape[0])
        score, z = score_fn(x, t), torch.randn(shape)
        ratio = z.flatten(1).norm(dim=1) / score.flatten(1).norm(dim=1)
        size = expand(2 * (1 - beta) * (snr * ratio) ** 2)
        x = x + size * score + torch.sqrt(2 * size) * z
        x_mean = (2 - torch.sqrt(1 - beta)) * x + beta * score_fn(x, t)
        x = x_mean + torch.sqrt(beta) * torch.randn(shape)
    return x_mean


@torch.no_grad()
def heun(score_fn: ScoreFn, shape: tuple[int, ...], sigmas: np.ndarray) -> Tensor:
    """EDM's second-order steps without churn down the noise levels, of which the last is zero.

    On x / scale, whose denoiser is x / scale + sigma^2 scale score: 2 len(sigmas) - 3 evaluations.
    """

    def slope(x: Tensor, sigma: float) -> Tensor:
        log_mean = 0.5 * math.log1p(sigma**2)  # minus the logarithm of the scale
        t = (math.sqrt(BETA_MIN**2 + 4 * (BETA_MAX - BETA_MIN) * log_mean) - BETA_MIN) / (
            BETA_MAX - BETA_MIN
        )
        scale = math.exp(-log_mean)
        return -sigma * scale * score_fn(scale * x, torch.full((len(x),), t))

    x = float(sigmas[0]) * torch.randn(shape)
    for sigma, following in zip(map(float, sigmas[:-1]), map(float, sigmas[1:]), strict=True):
        first = slope(x, sigma)
        ahead = x + (following - sigma) * first
        if following == 0:
            return ahead
        x = x + (following - sigma) * (first + slope(ahead, following)) / 2
    return x


def flow_and_divergence(
    score_fn: ScoreFn, x: Tensor, t: Tensor, probe: Tensor
) -> tuple[Tensor, Tensor]:
    """Probability-flow drift and its Hutchinson divergence, from one forward and one vjp."""
    with torch.enable_grad():
        x = x.requires_grad_()
        drift = _flow(score_fn, x, t)
        (product,) = torch.autograd.grad(drift, x, probe)
    return drift.detach(), (product * probe).flatten(1).sum(1)


def flow_and_divergence_apart(
    score_fn: ScoreFn, x: Tensor, t: Tensor, probe: Tensor
) -> tuple[Tensor, Tensor]:
    """The same from two forwards and one vjp, as the code published with the paper does it."""
    with torch.no_grad():
        drift = _flow(score_fn, x, t)
    return drift, flow_and_divergence(score_fn, x, t, probe)[1]


def _flow(score_fn: ScoreFn, x: Tensor, t: Tensor) -> Tensor:
    beta = expand(BETA_MIN + t * (BETA_MAX - BETA_MIN))
    return -0.5 * beta * (x + score_fn(x, t))


def log_prob(
    score_fn: ScoreFn, x: Tensor, probe: Tensor, derivative: Callable, *, rtol: float, atol: float
) -> tuple[np.ndarray, int]:
    """Log-density (b,) in nats by SciPy's RK45 on the whole batch, and the evaluations."""
    num, size = len(x), x.numel()

    def field(time: float, state: np.ndarray) -> np.ndarray:
        x_t = torch.from_numpy(state[:size].astype(np.float32)).reshape(x.shape)
        t = torch.full((num,), time, dtype=torch.float32)
        drift, divergence = derivative(score_fn, x_t, t, probe)
        return np.concatenate([drift.reshape(-1).numpy(), divergence.numpy()])

    start = np.concatenate([x.reshape(-1).numpy(), np.zeros(num, np.float32)])
    solution = scipy.integrate.solve_ivp(field, (T_MIN, 1.0), start, rtol=rtol, atol=atol)
    z, change = solution.y[:size, -1].reshape(num, -1), solution.y[size:, -1]
    prior = -0.5 * np.sum(z**2 + math.log(2 * math.pi), axis=1)
    return prior + change, solution.nfev
