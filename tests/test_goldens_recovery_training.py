# SPDX-License-Identifier: Apache-2.0
"""Chains, losses and training steps of recovery likelihood with the official network.

The official code moves the spectral vectors u at every call of the network; `advance` after each
call here gives the same order. Entries "_converged" start at the fixed point of u, where both this
order and ours, once a step, give the same numbers.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from scorejax import interop
from scorejax.energies import score_of
from scorejax.interop.networks import recovery_likelihood
from scorejax.models.spectral_norm import advance
from scorejax.objectives import recovery as objectives
from scorejax.parameterize import recovery_energy
from scorejax.samplers import recovery as samplers
from scorejax.schedules import recovery_levels
from scorejax.train.optimizer import keras_adam
from scorejax.train.state import TrainState
from scorejax.train.step import make_train_step
from scorejax.typing import Aux
from tests.official import assert_agrees
from tests.slow import slow_where

LEVELS = recovery_levels(6)
HYPER = {
    "ch": 8, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [4], "image_size": 8,
    "use_attention": True, "act": "lrelu", "final_act": "relu",
}  # fmt: skip


def load(file, converged=False):
    """The network, its parameters, and u, the stored or the converged one."""
    tensors = {
        name.removeprefix("params/"): file[name]
        for name in file
        if name.startswith("params/") and "/quad/" not in name
    }
    if converged:
        prefix = "in/u_converged/"
        tensors |= {n.removeprefix(prefix): file[n] for n in file if n.startswith(prefix)}
    name = "recovery_likelihood/net_res_temb2"
    net, variables = interop.load_tensorflow(name, tensors, **HYPER)
    return net, variables["params"], variables["spectral"]


def official_names(net, params, spectral):
    """Our variables by their official names, in the official axes."""
    table = recovery_likelihood.correspondence(net, HYPER)
    ours = flatten_dict({"params": params, "spectral": spectral}, sep="/")
    undo = lambda match: (
        ours[match.ours][None] if match.official.endswith("sn_u") else ours[match.ours]
    )
    return {match.official: undo(match) for match in table.matches}


def bound(net, params, spectral):
    """The energy with these variables."""
    variables = {"params": params, "spectral": spectral}
    return recovery_energy(LEVELS, lambda y, t: net.apply(variables, y, t))


moved = jax.jit(advance)
"""(params, spectral) -> the spectral vectors after a call."""


def array(file, name):
    return jnp.asarray(file[name], float)


@functools.partial(jax.jit, static_argnames="net")
def conditional_and_score(net, params, spectral, y, t, x_next):
    energy = samplers.conditional_energy(bound(net, params, spectral), LEVELS, t, x_next)
    return -energy(y), score_of(energy)(y)


# The four training steps hold the official order of calls as well.
ORDERS = slow_where(lambda suffix: not suffix, ["", "_converged"])


@pytest.mark.deep
@pytest.mark.parametrize("suffix", ORDERS)
def test_chains_of_the_official_network(golden, precision, suffix):
    file = golden("j_langevin_net")
    net, params, u = load(file, bool(suffix))
    x_next, z, t = array(file, "in/x_next"), array(file, "in/z"), jnp.asarray(file["in/t"])
    step_size = samplers.at_level(LEVELS.step_sizes, t, x_next)
    y, states, log_p, scores = x_next, [x_next], [], []
    for k in range(len(z) + 1):
        value, score = conditional_and_score(net, params, u, y, t, x_next)
        u = moved(params, u)
        log_p.append(value)
        scores.append(score)
        if k < len(z):
            y = samplers.langevin_step(score, y, step_size, z[k])
            states.append(y)
    assert_agrees(jnp.stack(states), file, f"y{suffix}", precision)
    assert_agrees(jnp.stack(scores), file, f"grad_log_p{suffix}", precision)
    assert_agrees(jnp.stack(log_p), file, f"log_p{suffix}", precision)
    if not suffix:
        for name, value in official_names(net, params, u).items():
            if name.endswith("sn_u"):
                assert_agrees(value, file, f"u_after/{name}", precision)


def test_sampling_with_the_official_network(golden, precision):
    file = golden("j_langevin_net")
    net, params, u = load(file, converged=True)
    z, start = 0.99 * array(file, "in/z_progressive"), array(file, "in/z_start")
    noise = lambda t, k: z[5 - t, k]
    run = lambda x: samplers.descend(noise, bound(net, params, u), x, LEVELS, num_steps=3).x
    path = jnp.concatenate([jax.jit(run)(start)[::-1], start[None]])
    assert_agrees(path, file, "progressive_converged", precision)


@pytest.mark.deep
@pytest.mark.parametrize("suffix", ORDERS)
def test_losses_and_all_their_gradients(golden, precision, suffix):
    file = golden("j_loss")
    net, params, u = load(file, bool(suffix))
    t = jnp.asarray(file["in/t"])
    scale = samplers.at_level(LEVELS.energy_scales, t, array(file, "in/x_positive"))
    positive, negative = (scale * array(file, f"in/x_{of}") for of in ("positive", "negative"))
    second = moved(params, u)

    @jax.jit
    def losses(params):
        # The official order: the negative's call finds the vectors that the positive's call left.
        first, then = (bound(net, params, vectors) for vectors in (u, second))
        weight = jnp.asarray(LEVELS.loss_weights * LEVELS.step_sizes, float)[t]
        ours = objectives.contrast(first, LEVELS, t, positive, negative)
        loss = weight * (ours.positive - then(negative, t))
        return jnp.mean(loss), (loss, ours, then(negative, t))

    ((mean, (loss, ours, negative_energy)), gradient) = jax.value_and_grad(losses, has_aux=True)(
        params
    )
    assert_agrees(loss, file, f"loss_per_example{suffix}", precision)
    assert_agrees(mean, file, f"loss{suffix}", precision)
    s2 = jnp.asarray(LEVELS.step_sizes, float)[t]
    assert_agrees(-s2 * ours.positive, file, f"f_positive{suffix}", precision)
    assert_agrees(-s2 * negative_energy, file, f"f_negative{suffix}", precision)
    if suffix:  # Then `contrast` alone is the official loss.
        assert_agrees(ours.loss, file, f"loss_per_example{suffix}", precision)
    named = official_names(net, gradient, u)
    checked = [name for name in named if f"out64/grad{suffix}/{name}" in file]
    assert len(checked) > 20
    for name in checked:
        if not name.endswith("nin_k/nin/b"):  # Rounding alone: softmax is shift-invariant.
            assert_agrees(named[name], file, f"grad{suffix}/{name}", precision)


@pytest.mark.deep
def test_four_training_steps_of_the_official_code(golden, precision):
    file = golden("j_train")
    net, params, u = load(file)
    settings = {name: float(file[f"cfg/{name}"]) for name in ("lr", "warmup", "beta_1")}
    decay = float(np.round(file["cfg/ema_decay"], 6))  # stored in single precision
    tx = keras_adam(settings["lr"], b1=round(settings["beta_1"], 6), warmup=int(settings["warmup"]))
    average = (params, u)

    def loss_fn(params, state, rng, batch):
        del rng
        first, second = (
            bound(net, params, state.model_state[key]) for key in ("positive", "negative")
        )
        t = batch["t"]
        weight = jnp.asarray(LEVELS.loss_weights * LEVELS.step_sizes, float)[t]
        loss = jnp.mean(weight * (first(batch["y_pos"], t) - second(batch["y_neg"], t)))
        return loss, Aux({}, state.model_state)

    step = jax.jit(make_train_step(loss_fn, tx, ema_rate=decay))
    state = TrainState.create(params, {"positive": u, "negative": u}, tx)
    outputs = {"loss": [], "x_positive": [], "x_negative": []}
    for i in range(4):
        x, t = array(file, "in/x")[i], jnp.asarray(file["in/t"][i])
        z, z_t, z_next = (array(file, f"in/{name}")[i] for name in ("z", "z_t", "z_next"))
        positive, x_next = objectives.diffuse(LEVELS, x, t, z_t, z_next)
        step_size = samplers.at_level(LEVELS.step_sizes, t, x)
        y = x_next
        for k in range(len(z)):
            _, score = conditional_and_score(net, state.params, u, y, t, x_next)
            u = moved(state.params, u)
            y = samplers.langevin_step(score, y, step_size, z[k])
        u = moved(state.params, u)  # The chain's last, unused evaluation.
        after = moved(state.params, u)
        state = state.replace(model_state={"positive": u, "negative": after})
        u = moved(state.params, after)
        batch = {"t": t, "y_pos": positive, "y_neg": y}
        state, metrics = step(state, batch, jax.random.key(0))
        scale = samplers.at_level(LEVELS.energy_scales, t, x)
        outputs["loss"].append(metrics["loss"])
        outputs["x_positive"].append(positive / scale)
        outputs["x_negative"].append(y / scale)
        average = optax.incremental_update((state.params, u), average, 1 - decay)
    for name, values in outputs.items():
        assert_agrees(jnp.stack(values), file, name, precision)
    for kind, variables in {"after": (state.params, u), "ema": average}.items():
        for name, value in official_names(net, *variables).items():
            if not name.endswith("nin_k/nin/b"):
                assert_agrees(value, file, f"{kind}/{name}", precision)
    for ours, theirs in zip(*map(jax.tree.leaves, (state.ema_params, average[0])), strict=True):
        # Two forms of one average, in 4 steps: a few units in the last place.
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-9)
