# SPDX-License-Identifier: Apache-2.0
"""The DDPM++ and NCSN++ networks as EDM trains them, with class and augmentation labels.

The body is that of `NCSNpp`; the embedding differs. The preconditioner has already transformed the
noise label (see `preconditioning.py`), so no logarithm is taken here. Linear maps of class and
augmentation labels are added to its embedding. DDPM++ is the default; NCSN++ is
`embedding_type="fourier", channel_mult_noise=2, fir_kernel=(1, 3, 3, 1),
progressive_input="residual"`.
Source: Karras et al. 2022, arXiv:2206.00364, Appendix F.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from scorejax.models.layers import (
    FourierEmbedding,
    TimeEmbedding,
    dense,
    fan_avg_uniform,
    sinusoidal_embedding,
)
from scorejax.models.ncsnpp import NCSNpp, require_halvings
from scorejax.random import Rng, draw_rows, fold_in


class SongUNet(NCSNpp):
    """EDM's network (x (b, h, w, c), noise_label (b,), ...) -> (b, h, w, out_channels).

    Fields not listed here are those of NCSNpp. `class_labels` (b, label_dim) are one-hot; zeros or
    None stand for no class. `augment_labels` (b, augment_dim) describe the augmentation of an
    image; zeros or None stand for no augmentation. `out_channels` defaults to the channels of x.

    With a `dropout_rng`, as in training, each class label is dropped with probability
    `label_dropout`, as classifier-free guidance requires.

    Raises: as NCSNpp; and ValueError if labels do not have label_dim or augment_dim entries.
    """

    embedding_type: str = "positional"
    fir_kernel: tuple[float, ...] = (1, 1)
    channel_mult_noise: int = 1
    channel_mult_emb: int = 4
    out_channels: int | None = None
    label_dim: int = 0
    label_dropout: float = 0.0
    augment_dim: int = 0

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        noise_label: Array,
        class_labels: Array | None = None,
        augment_labels: Array | None = None,
        *,
        dropout_rng: Rng | None = None,
    ) -> Float[Array, "b h w d"]:
        require_halvings(x.shape, len(self.ch_mult) - 1)
        embedding = self._embed_noise(noise_label)
        if use_labels("class_labels", class_labels, self.label_dim):
            classes = labels_or_zeros(class_labels, self.label_dim, embedding)
            classes = withhold_labels(classes, self.label_dropout, dropout_rng)
            # One-hot labels have mean square 1 / label_dim; this scales it to 1.
            classes = math.sqrt(self.label_dim) * classes
            embedding = embedding + dense(embedding.shape[-1], name="class_embedding")(classes)
        if use_labels("augment_labels", augment_labels, self.augment_dim):
            layer = augmentation_embedding(embedding.shape[-1])
            embedding = embedding + layer(
                labels_or_zeros(augment_labels, self.augment_dim, embedding)
            )
        temb = TimeEmbedding(self.channel_mult_emb * self.nf, name="temb")(embedding)
        if not self.centered:
            x = 2 * x - 1
        channels = self.out_channels or x.shape[-1]
        h, skips = self._encode(x, temb, dropout_rng)
        h = self._middle(h, temb, dropout_rng)
        levels, pyramid = self._decode(h, skips, temb, dropout_rng, channels=channels)
        return (
            pyramid
            if self.progressive == "output_skip"
            else self._head(levels[0], channels, name="out")
        )

    def _embed_noise(self, label: Array) -> Array:
        label = label.astype(jnp.promote_types(label.dtype, jnp.float32))
        size = self.nf * self.channel_mult_noise
        if self.embedding_type == "positional":
            return sinusoidal_embedding(label, size)
        return FourierEmbedding(size // 2, self.fourier_scale, name="fourier")(label)


def augmentation_embedding(features: int, *, init_scale: float = 1.0) -> nn.Dense:
    """Linear map of augmentation labels without bias, so that zeros (no augmentation) map to zero.

    Call it in a compact module.
    """
    init = fan_avg_uniform(init_scale)
    return nn.Dense(features, use_bias=False, kernel_init=init, name="augment_embedding")


def use_labels(name: str, labels: Array | None, dim: int) -> bool:
    """Whether the network takes labels, which is so if `dim` > 0.

    Raises: ValueError if labels are not None and not of shape (b, dim).
    """
    if labels is not None and labels.shape[1:] != (dim,):
        raise ValueError(f"{name} need {dim} entries per example; got shape {labels.shape}.")
    return dim > 0


def labels_or_zeros(labels: Array | None, dim: int, embedding: Array) -> Array:
    """Labels, or zeros if None, in the type of the embedding that they are added to."""
    if labels is None:
        return jnp.zeros((embedding.shape[0], dim), embedding.dtype)
    return labels.astype(embedding.dtype)


def withhold_labels(labels: Float[Array, "b l"], rate: float, rng: Rng | None) -> Array:
    """Zeros each label with probability `rate`; without `rng` labels are unchanged."""
    if rng is None or not rate:
        return labels
    # Dropout layers fold in a 32-bit hash of their names, so 1 gives a separate stream.
    keep = draw_rows(_uniform, fold_in(rng, 1), (labels.shape[0], 1)) >= rate
    return labels * keep


def _uniform(key: Array, shape: tuple[int, ...]) -> Array:
    return jax.random.uniform(key, shape)
