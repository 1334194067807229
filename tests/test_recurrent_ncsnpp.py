# SPDX-License-Identifier: Apache-2.0
"""The recurrent score U-Net: one set of weights, whatever the number of passes."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorejax.models.recurrent_ncsnpp import Recurrent, RecurrentPass
from scorejax.systems import load_model
from tests.random_variables import random_variables

NETWORK = RecurrentPass(
    nf=8, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(2,), dropout=0.0, fir=False,
    embedding_type="positional",
)  # fmt: skip
X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 4, 1)), jnp.float32)
LABEL = jnp.asarray([0.3, 7.0])


@pytest.fixture(scope="module")
def variables():
    return random_variables(Recurrent(NETWORK), X, LABEL, seed=0, mean=0.0, std=0.3)


@pytest.fixture(scope="module")
def one_pass(variables):
    params = {"params": variables["params"]["network"]}
    apply = jax.jit(NETWORK.apply, static_argnums=4)
    return lambda backward, number, x=X, label=LABEL: apply(params, x, label, backward, number)


def get_config(variant):
    return importlib.import_module("configs.score_sde.digits_recurrent").get_config(variant)


@pytest.mark.deep
def test_the_number_of_parameters_does_not_depend_on_that_of_passes():
    shapes = [
        jax.eval_shape(Recurrent(NETWORK, recurrence).init, jax.random.key(0), X, LABEL)
        for recurrence in (1, 2, 3)
    ]
    assert shapes[0] == shapes[1] == shapes[2]


@pytest.fixture(scope="module")
def two_passes(variables):
    apply = jax.jit(Recurrent(NETWORK).apply)
    return lambda x: apply(variables, x, LABEL)


@pytest.mark.deep
def test_passes_are_one_network_that_is_given_what_it_decoded(two_passes, one_pass):
    first, levels = one_pass(None, 0)
    assert [level.shape for level in levels] == [(2, 4, 4, 8), (2, 2, 2, 16)]
    expected, _ = one_pass(levels, 1)
    # The same operations, compiled together: rounding.
    np.testing.assert_allclose(two_passes(X), expected, atol=1e-5 * np.abs(expected).max())
    assert np.abs(expected - first).max() > 1e-3 * np.abs(first).max()


def test_what_goes_back_and_the_number_of_the_pass_both_matter(one_pass):
    _, levels = one_pass(None, 0)
    first, scale = one_pass(levels, 1)[0], 1e-3 * np.abs(levels[0]).max()
    assert np.abs(one_pass(levels, 2)[0] - first).max() > scale
    for level in range(2):
        other = [h + 0.5 if i == level else h for i, h in enumerate(levels)]
        assert np.abs(one_pass(other, 1)[0] - first).max() > scale


def test_an_example_does_not_depend_on_its_batch_mates(two_passes):
    # Unlike with batch normalisation, in which a batch would mix its noise levels.
    before, after = two_passes(X), two_passes(X.at[1].add(1.0))
    np.testing.assert_array_equal(before[0], after[0])
    assert np.abs(before[1] - after[1]).max() > 0


def test_networks_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="recurrence needs to be at least 1 pass; got 0"):
        Recurrent(NETWORK, 0)
    with pytest.raises(ValueError, match=r"progressive='none'; got .* progressive='residual'"):
        NETWORK.clone(progressive="residual")
    config = get_config("debug")
    del config.recurrence
    with pytest.raises(ValueError, match="the config lacks recurrence"):
        load_model(config)


@pytest.mark.parametrize("variant", ["vp", "subvp", "ve", "debug", "ve,debug"])
def test_its_config_has_two_passes(variant):
    config = get_config(variant)
    network = load_model(config).network
    assert network.recurrence == 2 and network.network.nf == config.nf
