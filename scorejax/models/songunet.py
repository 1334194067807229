# SPDX-License-Identifier: Apache-2.0
"""The DDPM++ and NCSN++ networks as EDM trains them: with labels of classes and augmentations.

The body is that of `NCSNpp`. What differs is the embedding: the noise label arrives as the
preconditioner made it (see `preconditioning.py`), so that no logarithm is taken here, and linear
maps of the other labels are added to it. DDPM++ is the default; NCSN++ is
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

    The fields of NCSNpp mean what they mean there. `class_labels` (b, label_dim) are one-hot, or
    zeros for no class, as are missing ones. `augment_labels` (b, augment_dim) say how an image was
    augmented; zeros, or none, that it was not. `out_channels` is that of x unless given.

    In training, where there is a `dropout_rng`, a class is withheld with probability
    `label_dropout`: what classifier-free guidance needs.

    Raises: as NCSNpp; and ValueError for labels that do not fit label_dim or augment_dim.
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
            # One-hot labels have a mean square of 1 / label_dim: the root makes it one.
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
    """A linear map of the augmentation's labels in which no augmentation, zeros, changes nothing.

    To be called in a compact module.
    """
    init = fan_avg_uniform(init_scale)
    return nn.Dense(features, use_bias=False, kernel_init=init, name="augment_embedding")


def use_labels(name: str, labels: Array | None, dim: int) -> bool:
    """Whether a network with labels of `dim` entries has any.

    Raises: ValueError if labels are given that are not (b, dim).
    """
    if labels is not None and labels.shape[1:] != (dim,):
        raise ValueError(
            f"{name} need {dim} entries for each example; got the shape {labels.shape}."
        )
    return dim > 0


def labels_or_zeros(labels: Array | None, dim: int, embedding: Array) -> Array:
    """The labels, or zeros in their place, in the type of the embedding that they add to."""
    if labels is None:
        return jnp.zeros((embedding.shape[0], dim), embedding.dtype)
    return labels.astype(embedding.dtype)


def withhold_labels(labels: Float[Array, "b l"], rate: float, rng: Rng | None) -> Array:
    """Zeros in place of each label with probability `rate`, where there is a key to draw with."""
    if rng is None or not rate:
        return labels
    # Off the streams of the dropout layers, which fold in a 32-bit hash of their names.
    keep = draw_rows(_uniform, fold_in(rng, 1), (labels.shape[0], 1)) >= rate
    return labels * keep


def _uniform(key: Array, shape: tuple[int, ...]) -> Array:
    return jax.random.uniform(key, shape)
