# SPDX-License-Identifier: Apache-2.0
"""The networks that are timed, each in Flax and, with the same weights, in PyTorch."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks.torch_twin import TorchNCSNpp, copy_weights, require_same
from scorejax.data import images
from scorejax.data.transforms import centre, dequantize
from scorejax.models.ncsnpp import NCSNpp
from scorejax.objectives.denoising import denoising_score_matching
from scorejax.objectives.training_loss import make_loss_fn
from scorejax.parameterize import noise_prediction
from scorejax.sdes import VPSDE
from scorejax.train.optimizer import adam
from scorejax.train.state import TrainState
from scorejax.train.step import TrainStep, make_train_step
from scorejax.typing import Params


@dataclasses.dataclass(frozen=True)
class Size:
    """A network, the images that it sees and how many at a time."""

    name: str
    image_size: int
    channels: int
    batch_size: int
    ch_mult: tuple[int, ...]
    attn_resolutions: tuple[int, ...]
    nf: int = 32
    num_res_blocks: int = 1
    fir: bool = False
    """NCSN++ rather than DDPM++."""

    def __str__(self) -> str:
        shape = "x".join(map(str, self.image_shape))
        return f"{self.name} network: {shape}, batch {self.batch_size}"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return (self.image_size, self.image_size, self.channels)

    def options(self) -> dict:
        """What both networks are built from."""
        names = ("nf", "ch_mult", "num_res_blocks", "attn_resolutions", "fir")
        return {name: getattr(self, name) for name in names}


SIZES = {
    "digits": Size("digits", 8, 1, 128, ch_mult=(1, 2), attn_resolutions=(4,)),
    "cifar": Size("CIFAR-shaped", 32, 3, 16, ch_mult=(1, 2, 2), attn_resolutions=(16,)),
    "ncsnpp": Size("NCSN++", 32, 3, 16, ch_mult=(1, 2, 2), attn_resolutions=(16,), fir=True),
}
LEARNING_RATE, CLIP_NORM, EMA_RATE = 2e-4, 1.0, 0.999


def flax_network(size: Size) -> NCSNpp:
    pyramid = "residual" if size.fir else "none"
    return NCSNpp(
        **size.options(), progressive_input=pyramid, embedding_type="positional", dropout=0.0
    )


def our_step(
    size: Size, learning_rate: float = LEARNING_RATE
) -> tuple[TrainStep, Callable[[Params], TrainState]]:
    """The training step of the VP noise-prediction loss, and the maker of its first state."""
    sde, tx = VPSDE(), adam(learning_rate, clip_norm=CLIP_NORM)

    def example_loss(network, rng, x):
        return denoising_score_matching(noise_prediction(sde, network), sde, rng, x)

    step = make_train_step(
        make_loss_fn(example_loss, flax_network(size).apply), tx, ema_rate=EMA_RATE
    )
    return step, lambda params: TrainState.create(jax.tree.map(jnp.copy, params), {}, tx)


def trained_params(size: Size, num_steps: int = 300) -> Params:
    """Parameters after a short training on real images."""
    step, create = our_step(size, learning_rate=1e-3)
    step = jax.jit(step, donate_argnums=0)
    state, digits = create(random_params(size)), real_images(size, 898)
    generator = np.random.default_rng(0)
    for _ in range(num_steps):
        batch = {"image": generator.choice(digits, size.batch_size)}
        state, metrics = step(state, batch, jax.random.key(1))
        jax.block_until_ready(metrics)
    print(f"{size}: loss {metrics['loss']:.3f} after {num_steps} steps")
    return state.params


def real_images(size: Size, num: int) -> np.ndarray:
    """Handwritten digits in [-1, 1], enlarged and repeated over channels to the shape asked for."""
    data = images.load("digits", "train", limit=num).image
    factor = size.image_size // data.shape[1]
    enlarged = data.repeat(factor, axis=1).repeat(factor, axis=2).repeat(size.channels, axis=3)
    return centre(dequantize(np.random.default_rng(0), enlarged, levels=17))


def random_params(size: Size, seed: int = 0) -> Params:
    """Initial parameters moved by N(0, 0.05^2), so that none is zero and all of them matter."""
    network, rng = flax_network(size), jax.random.key(seed)
    shape = (1, *size.image_shape)
    params = jax.jit(network.init)(rng, jnp.zeros(shape), jnp.zeros(1))["params"]
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(rng, len(leaves))
    moved = [
        leaf + 0.05 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(structure, moved)


def twin(size: Size, params: Params) -> TorchNCSNpp:
    """The twin with these parameters. Raises: AssertionError unless it computes the same."""
    network = TorchNCSNpp(**size.options(), image_size=size.image_size, channels=size.channels)
    copy_weights(params, network)
    generator = np.random.default_rng(0)
    x = generator.normal(size=(4, *size.image_shape)).astype(np.float32)
    label = generator.uniform(0, 999, 4).astype(np.float32)
    ours = flax_network(size).apply({"params": params}, x, label)
    with torch.no_grad():
        theirs = network(torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(label))
    require_same(ours, theirs.permute(0, 2, 3, 1))
    return network
