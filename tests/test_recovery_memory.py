# SPDX-License-Identifier: Apache-2.0
"""What a training step of recovery likelihood keeps for its backward pass, by JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.residuals import residual_bytes
from configs.recovery_ebm import digits
from scorejax.systems.recovery_ebm import make_model
from scorejax.systems.recovery_ebm.training import make_loss
from scorejax.train.initial import make_init
from scorejax.train.state import TrainState


def kept(num_steps, **settings):
    """Bytes between the passes of the loss of eight images; nothing is computed."""
    config = digits.get_config("debug")
    config.update({"num_chain_steps": num_steps, **settings})
    model = make_model(config)
    init = make_init(
        model.network, np.ones((1, *model.data.shape), np.float32), np.zeros(1, np.int32)
    )
    state = jax.eval_shape(lambda rng: TrainState.create(*init(rng), model.tx), jax.random.key(0))
    batch = {"image": jax.ShapeDtypeStruct((8, *model.data.shape), jnp.float32)}
    return residual_bytes(make_loss(model), state, batch, jax.random.key(0))


@pytest.fixture(scope="module")
def after_two_steps():
    return kept(2)


def test_longer_chains_keep_no_more_for_the_backward_pass(after_two_steps):
    # Exactly: negatives are constants of the loss, and so is everything that made them.
    assert kept(10) == after_two_steps


def test_recomputed_blocks_keep_less(after_two_steps):
    assert kept(2, remat=True) < 0.7 * after_two_steps
