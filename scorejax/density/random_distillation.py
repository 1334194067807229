# SPDX-License-Identifier: Apache-2.0
"""How familiar a row is, in (0, 1]: by how well a network predicts a random one where rows were.

It is no density, but a fixed reward like one. The reward is exp(-scale |predictor - target|^2).

Source: random expert distillation, Wang et al. 2019, arXiv:1905.06750, Section 3; distillation of
random networks, Burda et al. 2018, arXiv:1810.12894. How the scale is set is ours.
"""

import math
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from scorejax.choices import require
from scorejax.density.fitting import Training, minimize
from scorejax.density.rows import Rows, checked_rows
from scorejax.models.mlp import SmoothPerceptron
from scorejax.typing import PyTree

TRAINING = Training(weight_decay=0.0)


class Distillation(nn.Module):
    """Mean square error (b,) of a predictor of `features` outputs of a random target."""

    features: int
    hidden: int
    num_hidden: int

    @nn.compact
    def __call__(self, x: Float[Array, "b d"]) -> Float[Array, "b"]:
        perceptron = lambda name: SmoothPerceptron(
            self.features, self.hidden, self.num_hidden, name=name
        )
        target = jax.lax.stop_gradient(perceptron("target")(x))
        return jnp.mean((perceptron("predictor")(x) - target) ** 2, axis=1)


class RandomDistillation(flax.struct.PyTreeNode):
    """A network, its variables, and the scale of the error in the reward."""

    variables: PyTree
    scale: Float[Array, ""]
    network: Any = flax.struct.field(pytree_node=False)


def fit(
    rng: PRNGKeyArray,
    x: Rows,
    *,
    features: int = 64,
    hidden: int = 256,
    num_hidden: int = 2,
    median_reward: float = 0.9,
    training: Training = TRAINING,
) -> RandomDistillation:
    """Fits the predictor to rows of about mean 0 and variance 1.

    The scale is that at which half of the rows have a reward above `median_reward`.
    Raises: ValueError for rows as `rows.checked_rows`, an option out of range, or weight decay,
    which would move the target.
    """
    x, options = checked_rows(x), {"median_reward": median_reward}
    require(options, options, lambda v: 0 < v < 1, "to lie in (0, 1)")
    require(vars(training), ("weight_decay",), lambda v: v == 0, "to be 0")
    network = Distillation(features, hidden, num_hidden)
    init_rng, fit_rng = jax.random.split(rng)
    variables = jax.jit(network.init)(init_rng, x[:1])
    variables = minimize(fit_rng, network, variables, _error, x, training).variables
    scale = -math.log(median_reward) / jnp.median(jax.jit(network.apply)(variables, x))
    return RandomDistillation(variables, scale, network)


def reward(params: RandomDistillation, x: Float[Array, "b d"]) -> Float[Array, "b"]:
    """The reward of each row, close to 1 where rows were and to 0 far from them."""
    return jnp.exp(-params.scale * params.network.apply(params.variables, x))


def _error(
    network: Distillation, variables: PyTree, rng: PRNGKeyArray, x: Float[Array, "b d"]
) -> Float[Array, "b"]:
    del rng
    return network.apply(variables, x)
