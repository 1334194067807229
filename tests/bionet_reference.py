# SPDX-License-Identifier: Apache-2.0
"""BiO-Net once more, unrolled, in NumPy and double precision, on the official names of weights.

Written from the definitions, with no code of the library: convolutions as sums over taps,
transposed ones as what each pixel adds to the output. Images are (b, h, w, c). Each pass reads the
tensors of its own names, so that passes may differ here as they may not in the library.
"""

import numpy as np

EPSILON, MOMENTUM = 1e-5, 0.01


class Reference:
    """forward(x) of an official state dictionary; `stats` are the running ones after it."""

    def __init__(self, state, num_levels, num_passes, *, integrate=False, fed=None, train=False):
        self.state = {key: np.asarray(value, np.float64) for key, value in state.items()}
        self.num_levels, self.num_passes, self.integrate = num_levels, num_passes, integrate
        self.fed = range(num_levels) if fed is None else fed
        self.train, self.stats = train, {}

    def forward(self, x):
        h = self.units("pre_transform_conv_block.", (0, 3, 6), np.asarray(x, np.float64))
        first, decoded, outputs = halved(h), None, []
        for number in range(self.num_passes):
            h, decoded = self.one_pass(first, decoded, f"iteration{number}_layer")
            outputs.append(h)
        h = np.concatenate(outputs, -1) if self.integrate else outputs[-1]
        h = self.units("post_transform_conv_block.", (0, 3), h)
        last = "post_transform_conv_block.6."
        return h @ self.state[f"{last}weight"][:, :, 0, 0].T + self.state[f"{last}bias"]

    def one_pass(self, h, before, prefix):
        levels, encoded, decoded = self.num_levels, [], []
        for level in range(levels):
            goes_back = before is not None and level in self.fed
            h = self.join(h, before[levels - 1 - level] if goes_back else h, prefix, level)
            h = self.units(f"{prefix}{level}_encoder_convs.", (3,), h)
            encoded.append(h)
            h = halved(self.units(f"{prefix}{level}_encoder_down.", (0,), h))
        h = self.units("middles.", (0, 3), h)
        h = self.up("middles.", 6, h)
        for level in range(levels):
            h = np.concatenate([h, encoded[levels - 1 - level]], -1)
            h = self.units(f"{prefix}{level}_decoder_convs.", (0, 3), h)
            decoded.append(h)
            h = self.up(f"{prefix}{level}_decoder_up.", 0, h)
        return h, decoded

    def join(self, h, back, prefix, level):
        both = np.concatenate([h, back], -1)
        return self.units(f"{prefix}{level}_encoder_convs.", (0,), both)

    def units(self, prefix, places, h):
        for place in places:
            kernel, bias = (self.state[f"{prefix}{place}.{leaf}"] for leaf in ("weight", "bias"))
            h = self.normalized(f"{prefix}{place + 2}.", np.maximum(correlate(h, kernel) + bias, 0))
        return h

    def up(self, prefix, place, h):
        kernel, bias = (self.state[f"{prefix}{place}.{leaf}"] for leaf in ("weight", "bias"))
        return self.normalized(f"{prefix}{place + 2}.", np.maximum(spread(h, kernel) + bias, 0))

    def normalized(self, prefix, h):
        keys = [f"{prefix}running_{name}" for name in ("mean", "var")]
        moments = [self.state[key] for key in keys]
        if self.train:
            moments = [h.mean((0, 1, 2)), h.var((0, 1, 2))]
            kept = [moments[0], h.var((0, 1, 2), ddof=0) * h[..., 0].size / (h[..., 0].size - 1)]
            for key, new in zip(keys, kept, strict=True):
                old = self.stats.get(key, self.state[key])
                self.stats[key] = (1 - MOMENTUM) * old + MOMENTUM * new
        standard = (h - moments[0]) / np.sqrt(moments[1] + EPSILON)
        return standard * self.state[f"{prefix}weight"] + self.state[f"{prefix}bias"]


class PlainUNet(Reference):
    """A U-Net: encoder levels begin with a convolution of h alone, of the two halves' sum."""

    def join(self, h, back, prefix, level):
        name = f"{prefix}{level}_encoder_convs.0.weight"
        both, half = self.state[name], h.shape[-1]
        self.state[name] = both[:, :half] + both[:, half:]
        joined = self.units(f"{prefix}{level}_encoder_convs.", (0,), h)
        self.state[name] = both
        return joined


def correlate(x, kernel):
    """3 x 3 taps (out, in, 3, 3) with zeros around the image."""
    height, width = x.shape[1:3]
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return sum(
        padded[:, i : i + height, j : j + width] @ kernel[:, :, i, j].T
        for i in range(3)
        for j in range(3)
    )


def spread(x, kernel):
    """Transposed convolution, stride 2, padding 1, output padding 1; kernel (in, out, 3, 3).

    Pixel (r, s) adds x[r, s] @ kernel[:, :, i, j] to the output at (2 r + i - 1, 2 s + j - 1).
    """
    batch, height, width, _ = x.shape
    out = np.zeros((batch, 2 * height + 2, 2 * width + 2, kernel.shape[1]))
    for i in range(3):
        for j in range(3):
            out[:, i : i + 2 * height : 2, j : j + 2 * width : 2] += x @ kernel[:, :, i, j]
    return out[:, 1:-1, 1:-1]


def halved(x):
    """The largest of each 2 x 2 pixels."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).max((2, 4))
