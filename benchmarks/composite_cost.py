# SPDX-License-Identifier: Apache-2.0
"""What does composite score matching cost as dimensions grow, beside joint score matching?

    python -m benchmarks.composite_cost [--dims 16 64 256 1024] [--rounds=5] [--updates=100]

The gradient of the batch mean of each objective in the parameters. Joint objectives are of an MLP
energy d-1024-1024-1: exact score matching (SM, by dense Hessians), SSM, SSM-VR and FD-SSM, with one
direction. Composite ones are of a MADE d-1024-1024-8d and a shared score head of two layers of 32:
exact (CSM) and denoising with one level of noise. Times are over one forward and backward pass of
the same network, of its output's mean square. All take turns on one core of one process and are
charged processor time; memory is what XLA's compiler sets aside for temporaries beside parameters,
data and gradients.

The spread of a gradient is the root of its total variance over the norm of its mean: over keys with
the same data and parameters, which is the noise of projections, and over batches and keys. The
parameters are those after some updates by SSM-VR and by CSM. Data are an autoregressive Gaussian of
correlation 0.9, in batches of 64.

One core of an AMD EPYC that is shared with other programs (load 8 to 15), JAX 0.10.2. Time over
that of one forward and backward pass, the median of five rounds; SM from 256 on has a single call.

    d       SM      SSM    SSM-VR   FD-SSM   CSM     denoising   pass: energy, MADE
    16      47      3.9    4.0      2.4      1.11    0.93        0.009 s, 0.012 s
    64      175     3.5    3.7      2.5      1.13    1.07        0.009 s, 0.018 s
    256     656     3.5    3.7      2.3      1.12    1.12        0.011 s, 0.042 s
    1024    3695    3.5    4.7      2.6      1.18    1.08        0.014 s, 0.107 s

Temporaries in MB:

    d       SM      SSM    SSM-VR   FD-SSM   CSM     denoising   pass: energy, MADE
    16      92      15     16       3.2      2.7     2.5         1.0, 2.4
    64      332     15     16       3.2      6.0     5.0         0.8, 3.9
    256     1304    16     17       2.6      20      16          0.8, 12
    1024    5381    15     17       3.1      76      61          0.8, 42

Spread over keys, of 32 gradients, and the share of the total variance that keys have:

    d       SM, CSM    SSM, FD-SSM    SSM-VR         denoising CSM
    16      0          1.9, 82 %      0.95, 53 %     0.08, 26 %
    64      0          1.5, 89 %      0.76, 67 %     0.07, 29 %
    256     0          3.7, 94 %      1.3, 66 %      0.07, 41 %
    1024    0          7.1, 98 %      1.5, 70 %      0.09, 64 %

So the derivative in CSM costs a tenth to a fifth of a pass at every d, without any projection. A
pass, however, is of a MADE with 8d outputs and a head at each dimension, up to 7.5 times as slow as
the energy and with up to 50 times its temporaries: in seconds CSM is 2.8 times as fast as SSM at 16
dimensions and 2.7 times as slow at 1024 (FD-SSM: 1.7 and 3.7). The norm of the mean gradient falls
as training goes on, so that spreads of different objectives do not compare; shares do.
"""

# ruff: noqa: E402  (the libraries read these settings as they start)

import argparse
import functools
import math
import os
import statistics
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-1:])
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_prefer_vector_width=512")

from benchmarks import timing  # first: it sets what JAX reads as it starts

# isort: split
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from benchmarks.score_matching import MLP
from scorejax.models.autoregressive import AutoregressiveModel
from scorejax.models.masked_ar import MaskedTrunk
from scorejax.models.univariate import ScoreHead
from scorejax.objectives import sliced
from scorejax.objectives.composite import composite_score_matching, denoising_composite
from scorejax.objectives.difference_step import suggest_eps
from scorejax.objectives.finite_difference import fd_sliced

BATCH, HIDDEN, FEATURES, HEAD_HIDDEN = 64, 1024, 8, 32
CORRELATION, SIGMA, LEARNING_RATE = 0.9, 0.3, 1e-3
LARGEST_IN_TURNS, LARGEST_SPREAD, MAX_MEGABYTES = 64, 16, 8000
"""Of SM: beyond, it has one call outside the turns, no spread, and no call at all."""
Objective = Callable[[Callable, jax.Array, jax.Array], jax.Array]
"""(the network's methods by name, rng, x (b, d)) -> (b,)."""


def joint(objective: Callable, **options: Any) -> Objective:
    """An objective of energies."""
    return lambda network, rng, x: objective(network("__call__"), rng, x, **options)


def forward(network: Callable, rng: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.mean(network("__call__")(x).reshape(len(x), -1) ** 2, axis=1)


def composite(network: Callable, rng: jax.Array, x: jax.Array) -> jax.Array:
    return composite_score_matching(network("head"), network("contexts"), x)


def denoising(network: Callable, rng: jax.Array, x: jax.Array) -> jax.Array:
    sigma = jnp.full(len(x), SIGMA)
    return denoising_composite(network("head"), network("contexts"), rng, x, sigma=sigma)


class Family(NamedTuple):
    """A network, its objectives by name, and the one that trains it."""

    module: nn.Module
    objectives: dict[str, Objective]
    trained_by: str


def families(dim: int) -> list[Family]:
    energies = {
        "energy, forward and backward": forward,
        "SM": joint(sliced.exact_score_matching),
        "SSM": joint(sliced.sliced_score_matching),
        "SSM-VR": joint(sliced.sliced_score_matching_vr),
        "FD-SSM": joint(fd_sliced, eps=suggest_eps(dim)),
    }
    head = ScoreHead(HEAD_HIDDEN)
    network = AutoregressiveModel(MaskedTrunk(HIDDEN, 2, FEATURES), head)
    conditionals = {
        "MADE, forward and backward": forward,
        "CSM": composite,
        "denoising CSM": denoising,
    }
    return [
        Family(MLP((HIDDEN, HIDDEN)), energies, "SSM-VR"),
        Family(network, conditionals, "CSM"),
    ]


@functools.partial(jax.jit, static_argnums=1)
def draw(rng: jax.Array, dim: int) -> jax.Array:
    """A batch of rows x_d = a x_(d-1) + sqrt(1 - a^2) z_d."""
    z = jax.random.normal(rng, (dim, BATCH))
    step = lambda last, z: (new := CORRELATION * last + math.sqrt(1 - CORRELATION**2) * z, new)
    return jnp.concatenate([z[:1], jax.lax.scan(step, z[0], z[1:])[1]]).T


class Gradient:
    """The compiled gradient of an objective's batch mean; as a turn it takes fixed data."""

    def __init__(self, module: nn.Module, objective: Objective, params: Any, x: jax.Array):
        def loss(params, rng, x):
            bound = lambda method: functools.partial(module.apply, params, method=method)
            return jnp.mean(objective(bound, rng, x))

        self.params, self.x, self.rng = params, x, jax.random.key(0)
        self.compiled = jax.jit(jax.grad(loss)).lower(params, self.rng, x).compile()

    @property
    def megabytes(self) -> float:
        return self.compiled.memory_analysis().temp_size_in_bytes / 1e6

    def __call__(self) -> None:
        jax.block_until_ready(self.compiled(self.params, self.rng, self.x))


def first_params(module: nn.Module, x: jax.Array) -> Any:
    if isinstance(module, AutoregressiveModel):
        # With a level of noise, which has parameters of its own.
        return jax.jit(module.init)(jax.random.key(1), x, jnp.ones_like(x))
    return jax.jit(module.init)(jax.random.key(1), x)


def trained(gradient: Gradient, params: Any, dim: int, num_updates: int) -> Any:
    tx = optax.adam(LEARNING_RATE)
    state = tx.init(params)
    update = jax.jit(tx.update)
    for i in range(num_updates):
        rng, data_rng = jax.random.split(jax.random.key(1000 + i))
        changes, state = update(gradient.compiled(params, rng, draw(data_rng, dim)), state)
        params = optax.apply_updates(params, changes)
    return params


@jax.jit
def dot(a: Any, b: Any) -> jax.Array:
    return optax.tree_utils.tree_vdot(a, b)


@jax.jit
def squared_distance(a: Any, b: Any) -> jax.Array:
    return optax.tree_utils.tree_norm(jax.tree.map(jnp.subtract, a, b), squared=True)


def spread(gradients: Iterable[Any]) -> float:
    """Root of the total variance of independent vectors over the norm of their mean.

    Both squares are unbiased: half of E |g_i - g_(i+1)|^2, exactly 0 for equal vectors, and
    E g_i . g_j over pairs.
    """
    total, last, squares, steps, num = None, None, 0.0, [], 0
    for g in gradients:
        total = g if total is None else jax.tree.map(jnp.add, total, g)
        steps += [] if last is None else [float(squared_distance(last, g)) / 2]
        squares, last, num = squares + float(dot(g, g)), g, num + 1
    mean = (float(dot(total, total)) - squares) / (num * (num - 1))
    return math.sqrt(statistics.mean(steps) / mean) if mean > 0 else math.inf


def spreads(gradient: Gradient, params: Any, dim: int, num: int) -> str:
    """Over keys with the same data, and over batches and keys; the share of the former in it."""
    keys = jax.random.split(jax.random.key(2), num)
    x = draw(jax.random.key(3), dim)
    fixed = spread(gradient.compiled(params, key, x) for key in keys)
    fresh = (draw(key, dim) for key in jax.random.split(jax.random.key(4), num))
    both = spread(gradient.compiled(params, key, x) for key, x in zip(keys, fresh, strict=True))
    # With k and t the two spreads and b that of means over keys: t^2 = b^2 + k^2 (1 + b^2), since a
    # batch's mean over keys has 1 + b^2 times the squared norm of the mean over all.
    share = (1 - (both**2 - fixed**2) / (1 + fixed**2) / both**2) if both < math.inf else math.nan
    return f"spread {fixed:.3g} over keys, {both:.3g} over batches and keys ({share:.0%} by keys)"


def seconds(turns: dict[str, Gradient], dim: int, rounds: int) -> timing.Times:
    """Seconds of each round; what is too slow or too large for turns has one call or none."""
    apart = {} if dim <= LARGEST_IN_TURNS else {k: turns[k] for k in turns if k == "SM"}
    in_turns = {name: turn for name, turn in turns.items() if name not in apart}
    times = timing.compare(in_turns, rounds=rounds, calls=1, clock=time.process_time)
    for name, turn in apart.items():
        if turn.megabytes < MAX_MEGABYTES:
            start = time.process_time()
            turn()
            times[name] = [time.process_time() - start] * rounds
    return times


def measure(dim: int, rounds: int, updates: int, num_keys: int) -> None:
    """Prints a table for each network."""
    x = draw(jax.random.key(0), dim)
    for family in families(dim):
        params = first_params(family.module, x)
        turns = {
            name: Gradient(family.module, objective, params, x)
            for name, objective in family.objectives.items()
        }
        times, reference = seconds(turns, dim, rounds), next(iter(turns))
        after = trained(turns[family.trained_by], params, dim, updates)
        size = sum(a.size for a in jax.tree.leaves(params)) / 1e6
        print(f"\nd = {dim}, {size:.2f} million parameters; load {os.getloadavg()[0]:.1f}")
        for name, turn in turns.items():
            taken, noise = times.get(name), ""
            cost = f"{'not run':>36}"
            if taken:
                ratio = timing.ratio(taken, times[reference])
                cost = f"{statistics.median(taken):8.4f} s  {ratio:>24}"
            if name != reference and (name != "SM" or dim <= LARGEST_SPREAD):
                noise = spreads(turn, after, dim, num_keys)
            print(f"{name:28}  {cost}  {turn.megabytes:8.1f} MB  {noise}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dims", nargs="+", type=int, default=[16, 64, 256, 1024])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--updates", type=int, default=100, help="before spreads are measured")
    parser.add_argument("--keys", type=int, default=32, help="gradients of a spread")
    options = parser.parse_args()
    for dim in options.dims:
        measure(dim, options.rounds, options.updates, options.keys)


if __name__ == "__main__":
    main()
