# SPDX-License-Identifier: Apache-2.0
"""The ring buffer against a list, and its draws against their law."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from scorejax.random import row_keys
from scorejax.rl import replay

CAPACITY = 5
EXAMPLE = {"x": jax.ShapeDtypeStruct((2,), jnp.float32), "end": jax.ShapeDtypeStruct((), bool)}


def transition(t):
    """What three environments do at time t; no two are alike."""
    number = jnp.arange(3.0) + 10 * t
    return {"x": jnp.stack([number, -number], axis=1), "end": jnp.array([t % 2 == 0] * 3)}


def filled(num):
    memory = replay.create(3, CAPACITY, EXAMPLE)
    return jax.lax.fori_loop(0, num, lambda t, memory: replay.add(memory, transition(t)), memory)


def draws(memory, num, n=None):
    rng = jax.random.key(0)
    if n is None:
        return replay.sample(rng, memory, num)
    return replay.recent(rng, memory, num, n)


@pytest.mark.parametrize("num", [0, 1, 4, 5, 6, 13])
def test_the_oldest_is_overwritten_first(num):
    memory = filled(num)
    assert memory.size == min(num, CAPACITY) and memory.position == num % CAPACITY
    kept = range(max(0, num - CAPACITY), num)
    for t in kept:
        for name, value in transition(t).items():
            np.testing.assert_array_equal(memory.data[name][:, t % CAPACITY], value)
            assert memory.data[name].dtype == EXAMPLE[name].dtype


@pytest.mark.parametrize(
    ("num", "n", "times"), [(3, None, 3), (8, None, 5), (8, 2, 2), (2, 4, 2), (8, 9, 5)]
)
def test_draws_are_uniform_over_what_is_stored(num, n, times):
    batch = draws(filled(num), 6000, n)
    number = np.asarray(batch["x"][:, 0]).astype(int)
    t, env = number // 10, number % 10
    assert t.max() == num - 1 and t.min() == num - times
    counts = np.bincount((t - t.min()) * 3 + env, minlength=3 * times)
    assert scipy.stats.chisquare(counts).pvalue > 1e-4  # by chance one in 10,000
    # The parts of a transition stay together.
    np.testing.assert_array_equal(batch["x"][:, 1], -batch["x"][:, 0])
    np.testing.assert_array_equal(batch["end"], t % 2 == 0)


def test_a_row_is_drawn_by_its_own_key():
    memory, keys = filled(8), row_keys(jax.random.key(3), 6)
    both = replay.sample(keys, memory, 6), replay.sample(keys[2:4], memory, 2)
    np.testing.assert_array_equal(both[0]["x"][2:4], both[1]["x"])


def test_an_empty_memory_gives_zeros():
    assert not draws(filled(0), 4)["x"].any()


def test_sizes_are_checked():
    with pytest.raises(ValueError, match="capacity needs a whole number of at least 1; got 0"):
        replay.create(3, 0, EXAMPLE)
