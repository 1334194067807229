# SPDX-License-Identifier: Apache-2.0
"""Holds the PyTorch twin of recovery likelihood to the official numbers and to ours, in float64."""

import contextlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax.traverse_util import flatten_dict

from benchmarks import recovery_torch
from scorejax import interop
from scorejax.models.spectral_norm import advance
from scorejax.objectives import recovery as objectives
from scorejax.samplers.recovery import langevin_chain
from scorejax.systems.recovery_ebm.model import RecoveryModel
from scorejax.train.state import TrainState

GOLDEN = "tests/goldens/j_net_t6.npz"
TOLERANCE = 1e-8
"""Of the largest value, in float64. In float32 rounding alone moves inputs of ReLUs across zero."""


def require_same(ours: object, theirs: object, name: str) -> None:
    """Raises AssertionError unless two arrays agree to `TOLERANCE` of the largest value."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    atol = TOLERANCE * np.abs(theirs).max()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol, err_msg=name)


@contextlib.contextmanager
def double_precision() -> Iterator[None]:
    """Both libraries compute in float64."""
    jax.config.update("jax_enable_x64", True)
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", False)
        torch.set_default_dtype(torch.float32)


@double_precision()
def require_official() -> None:
    """Holds our network and the twin to the official F and gradients of two successive calls."""
    with np.load(GOLDEN) as archive:
        file = dict(archive)
    tensors = {n.removeprefix("params/"): file[n] for n in file if n.startswith("params/")}
    net, variables = interop.load_tensorflow(
        "recovery_likelihood/net_res_temb2", tensors,
        ch=16, ch_mult=[1, 2, 2, 2], num_res_blocks=2, image_size=16, act="lrelu",
        final_act="relu",
    )  # fmt: skip
    weights, vectors = recovery_torch.copied(variables["params"], variables["spectral"])
    body, (x, t) = recovery_torch.make_body(net), (file["in/x"], file["in/t"])
    theirs = torch.from_numpy(np.asarray(x, np.float64)).permute(0, 3, 1, 2).requires_grad_()
    for suffix in ("", "_second"):
        applied, vectors = recovery_torch.normalised(weights, vectors)
        value = body(applied, theirs, recovery_torch.embed(applied, torch.tensor(t)))
        (slope,) = torch.autograd.grad(value.sum(), theirs)
        require_same(value.detach(), file[f"out64/F{suffix}"], f"twin F{suffix}")
        require_same(slope.permute(0, 2, 3, 1), file[f"out64/grad_x{suffix}"], "twin gradient")
    ours = jax.jit(net.apply)(variables, jnp.asarray(x, jnp.float64), jnp.asarray(t, jnp.int32))
    require_same(ours, file["out64/F"], "our F")


@double_precision()
def require_same_step(model: RecoveryModel, state: TrainState, x: np.ndarray) -> None:
    """Holds the chain of the twin and all gradients of its loss to ours, on the same noise."""
    generator = np.random.default_rng(2)
    params, spectral = jax.tree.map(jnp.float64, (state.params, state.model_state))
    x, levels, num_steps = x.astype(np.float64), model.levels, 3
    t = np.arange(len(x)) % levels.num_energies
    z = generator.normal(size=(2 + num_steps, *x.shape))

    @jax.jit
    def ours(params: dict) -> tuple:
        energy_fn = model.energy((params, spectral))
        positive, x_next = objectives.diffuse(levels, jnp.asarray(x), t, z[0], z[1])
        negative = langevin_chain(
            lambda k: jnp.asarray(z[2:])[k], energy_fn, levels, t, x_next, num_steps=num_steps
        )
        return positive, x_next, jax.lax.stop_gradient(negative)

    @jax.jit
    @jax.grad
    def slopes(params: dict, positive: jax.Array, negative: jax.Array) -> jax.Array:
        energy_fn = model.energy((params, spectral))
        return jnp.mean(objectives.contrast(energy_fn, levels, t, positive, negative).loss)

    positive, x_next, negative = ours(params)
    weights, vectors = recovery_torch.copied(params, spectral["spectral"])
    twin = recovery_torch.Step(
        recovery_torch.make_body(model.network), weights, vectors, levels,
        num_steps=num_steps, held=True,
    )  # fmt: skip
    image = lambda a: torch.from_numpy(np.asarray(a).copy()).permute(0, 3, 1, 2)
    levels_of_rows = torch.from_numpy(t)
    applied, _ = recovery_torch.normalised(weights, vectors)
    still = {name: value.detach() for name, value in applied.items()}
    temb = recovery_torch.embed(still, levels_of_rows)
    network, noise = (lambda y: twin.body(still, y, temb)), (lambda k: image(z[2 + k]))
    chain = twin.chain(network, image(x_next), levels_of_rows, noise)
    require_same(negative, chain.permute(0, 2, 3, 1), "chain")
    twin.loss(image(positive), image(x_next), levels_of_rows, noise).backward()
    for path, slope in flatten_dict(slopes(params, positive, negative), sep="/").items():
        require_same(recovery_torch.as_ours(path, weights[path].grad), slope, path)
    moved = flatten_dict(advance(params, spectral["spectral"]), sep="/")
    for name, u in twin.vectors.items():
        require_same(u, moved[f"{name.removesuffix('kernel')}u"], name)
