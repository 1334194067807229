# SPDX-License-Identifier: Apache-2.0
"""A deep kernel exponential family of a table, its inner weights in closed form.

Each batch is cut in half: the weights are solved for on the first, and the loss on the second, with
these weights, teaches kernels, inducing points and ridge. To be judged, the weights are solved for
on all training rows; log Z is estimated by annealed importance sampling, whose effective size is
reported.

Source: Wenliang et al. 2019, arXiv:1811.08357; Pang et al. 2020, arXiv:2007.03317, Section 5.2.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from scorejax.choices import choose, require
from scorejax.data import tables
from scorejax.density import kernel_exponential_family as family
from scorejax.density.annealed_importance import (
    Annealed,
    hamiltonian_annealing,
    importance_normalizer,
    sigmoid_betas,
)
from scorejax.evaluate import progress
from scorejax.models.deep_kernel import DeepKernel
from scorejax.numerics import gaussian_log_prob
from scorejax.objectives.score_matching import expected_multiple
from scorejax.random import Rng, draw_rows, example_keys, split
from scorejax.report import Evaluation
from scorejax.systems.fd_score_matching import training
from scorejax.train.state import TrainState
from scorejax.typing import (
    Array,
    Aux,
    Batch,
    LossFn,
    OfflineSource,
    Params,
    PRNGKeyArray,
    PyTree,
    Variables,
)

make_optimizer = training.make_optimizer

SIZES = ("num_inducing", "features", "num_hidden", "eval_draws", "eval_repeats")
KEYS = (
    "model", "table", "split_seed", "held_out", "data_noise", "log_widths", "base_std", "log_ridge",
    *SIZES, "eval_temperatures", *training.OPTIONS, *training.OPTIMIZER_OPTIONS,
)  # fmt: skip
"""What is read of a config, beside `system` and what the training loop reads."""
WIDER_STD, NUM_SHOWN = 1.2, 500
Functionals = Callable[[family.Terms, Rng, Array], family.Functionals]


def load_table(config: ConfigDict) -> tables.Table:
    """Raises: ValueError for an unknown table, or a share of held-out rows that cannot be."""
    return _load_table(config.table, config.split_seed, config.held_out)


_load_table = functools.cache(
    lambda name, seed, share: tables.load(name, seed=seed, held_out=share)
)


def make_network(config: ConfigDict) -> DeepKernel:
    """Raises: ValueError for sizes below 1, or no kernel."""
    require(config, SIZES, lambda v: v >= 1, "to be at least 1")
    require(config, ("log_widths",), lambda v: len(v) >= 1, "a number for each kernel")
    return DeepKernel(
        load_table(config).dim, config.num_inducing, config.features, config.num_hidden,
        tuple(config.log_widths),
    )  # fmt: skip


def make_init(config: ConfigDict) -> Callable[[PRNGKeyArray], tuple[Params, PyTree]]:
    """Inducing points begin as training rows, drawn with replacement, and a little noise."""
    model, rows = make_network(config), jnp.asarray(load_table(config).train)

    def init(rng: PRNGKeyArray) -> tuple[Params, PyTree]:
        rng, row_rng, noise_rng = jax.random.split(rng, 3)
        kernel = model.init(rng, rows[:1])["params"]
        picked = rows[jax.random.randint(row_rng, (model.num_inducing,), 0, len(rows))]
        kernel["inducing"] = picked + 0.1 * jax.random.normal(noise_rng, picked.shape)
        return {"kernel": kernel, "log_ridge": jnp.float32(config.log_ridge)}, {}

    return init


def make_source(config: ConfigDict) -> OfflineSource:
    """Training batches. Raises: as the data set."""
    return load_table(config).training_source(config.batch_size, noise=config.data_noise)


def make_terms(config: ConfigDict) -> Callable[[Params], family.Terms]:
    """params -> the terms of log p: kernels at the inducing points, and log q_0.

    Raises: ValueError unless q_0 has a positive standard deviation.
    """
    require(config, ("base_std",), lambda v: 0 < v < math.inf, "to be a positive number")
    model = make_network(config)

    def of(params: Params) -> family.Terms:
        def terms(x: Array) -> Array:
            kernels = model.apply({"params": params["kernel"]}, x)
            base = gaussian_log_prob(x, config.base_std)
            return jnp.concatenate([kernels, base[:, None]], axis=1)

        return terms

    return of


def make_functionals(config: ConfigDict) -> Functionals:
    """What the config's objective sees of the terms, scaled to the size of score matching.

    Raises: ValueError for an objective that has none, or an impossible option.
    """
    options = training.objective_options(config, (load_table(config).dim,))
    eps, sigma, num = options["eps"], options["sigma"], options["num_directions"]
    along = lambda rng, x: options["direction"](rng, x.shape, x.dtype)
    normal = lambda rng, x: draw_rows(jax.random.normal, rng, x.shape)

    def fd_denoising(terms: family.Terms, rng: Rng, x: Array) -> family.Functionals:
        noise_rng, rng = split(rng)
        noise, u = normal(noise_rng, x), along(rng, x)
        return family.fd_denoising(terms, x, noise, u, sigma=sigma, eps=eps)

    known = {
        "sm": lambda terms, rng, x: family.exact(terms, x),
        "ssm": lambda terms, rng, x: family.sliced(terms, x, along(rng, x)),
        "fd_ssm": lambda terms, rng, x: family.fd_sliced(terms, x, along(rng, x), eps=eps),
        "dsm": lambda terms, rng, x: family.denoising(terms, x, normal(rng, x), sigma=sigma),
        "fd_dsm": fd_denoising,
    }
    found = choose("objective", config.objective, known)

    def functionals(terms: family.Terms, rng: Rng, x: Array) -> family.Functionals:
        rows = jnp.concatenate([x] * num)
        rngs = split(rng, num).reshape(-1) if rng.ndim else rng
        scale = expected_multiple(config.objective, x.shape[1])
        return family.scaled(found(terms, rngs, rows), 1 / scale)

    return functionals


def make_loss(config: ConfigDict) -> LossFn:
    """The loss on the second half of a batch, with weights solved for on the first."""
    require(config, ("batch_size",), lambda v: v % 2 == 0, "to be even: half of it is held out")
    of, functionals = make_terms(config), make_functionals(config)

    def loss(
        params: Params, state: TrainState, rng: PRNGKeyArray, batch: Batch
    ) -> tuple[Array, Aux]:
        half = len(batch["image"]) // 2
        found = functionals(of(params), example_keys(rng, batch), batch["image"])
        # The rows of a batch may be repeated, once for each direction.
        on_first = np.arange(len(found.second)) % len(batch["image"]) < half
        take = lambda rows: jax.tree.map(lambda leaf: leaf[np.flatnonzero(rows)], found)
        first, second = take(on_first), take(~on_first)
        alpha = family.inner_weights(first, jnp.exp(params["log_ridge"]))
        value = jnp.mean(family.loss(second, alpha))
        return value, Aux({"ridge": jnp.exp(params["log_ridge"])}, state.model_state)

    return loss


class Fitted(NamedTuple):
    """Parameters, and the inner weights that belong to them."""

    params: Params
    alpha: Array


def make_fit(config: ConfigDict) -> Callable[[Params], Fitted]:
    """params -> the weights solved for on all training rows.

    Each row is repeated `eval_repeats` times, with noise as in training.
    """
    of, functionals, rows = make_terms(config), make_functionals(config), load_table(config).train
    noise_rng, rng = jax.random.split(jax.random.key(0))
    rows = jnp.tile(rows, (config.eval_repeats, 1))
    rows = rows + config.data_noise * jax.random.normal(noise_rng, rows.shape)

    def fit(params: Params) -> Fitted:
        found = functionals(of(params), rng, rows)
        return Fitted(params, family.inner_weights(found, jnp.exp(params["log_ridge"])))

    return fit


def make_log_density(config: ConfigDict) -> Callable[[Fitted, Array], Array]:
    """(fitted, x) -> log p up to log Z, in nats, (b,)."""
    of = make_terms(config)
    return lambda fitted, x: family.log_density(of(fitted.params), fitted.alpha, x)


def metrics(config: ConfigDict) -> dict[str, progress.Metric]:
    """By name: exact score-matching losses, by that of validation rows to choose; likelihood."""
    fit, log_p = jax.jit(make_fit(config)), make_log_density(config)
    test, valid = (jnp.asarray(getattr(load_table(config), part)) for part in ("test", "valid"))
    energy = lambda fitted, x: -log_p(fitted, x)

    def exact(rows: Array, name: str) -> progress.Metric:
        measure = training.exact_metric(energy, rows, name)
        return lambda rng, variables: measure(rng, (fit(variables[0]), {}))

    return {
        "score_matching": exact(test, "score_matching"),
        "valid_score_matching": exact(valid, "valid_score_matching"),
        "log_prob": _likelihood_metric(config, fit, test),
    }


def _likelihood_metric(config: ConfigDict, fit: Callable, test: Array) -> progress.Metric:
    """Mean log-likelihood of white test rows in nats, that of N(0, I) beside it, and a picture."""
    log_p, anneal = jax.jit(make_log_density(config)), jax.jit(make_annealing(config))

    def metric(rng: PRNGKeyArray, variables: Variables) -> Evaluation:
        from scorejax.evaluate.scatter import scatter_picture

        fitted, (anneal_rng, pick_rng) = fit(variables[0]), jax.random.split(rng)
        walks = anneal(anneal_rng, fitted)
        found = importance_normalizer(walks.log_weights)
        values = np.asarray(log_p(fitted, test)) - float(found.log_z)
        scalars = progress.summary("log_prob", values[None]) | {
            "log_z_standard_error": float(found.standard_error),
            "effective_size": float(found.effective_size),
            "acceptance": float(walks.acceptance.mean()),
            "white_gaussian_log_prob": float(gaussian_log_prob(test, 1.0).mean()),
        }
        picked = jax.random.categorical(pick_rng, walks.log_weights, shape=(NUM_SHOWN,))
        axes = {"xlabel": "first principal component", "ylabel": "second"}
        picture = scatter_picture(
            test[:, :-3:-1], values, walks.x[picked][:, :-3:-1], legend="log p, nats", **axes
        )
        return Evaluation(scalars, {"density": picture})

    return metric


def make_annealing(config: ConfigDict) -> Callable[[PRNGKeyArray, Fitted], Annealed]:
    """(rng, fitted) -> walks from a density that is known to the model's, which give its log Z.

    They begin at draws, in equal parts, of q_0, whose tails are those of p, and of a Gaussian a
    little wider than data. Raises: ValueError for less than two temperatures.
    """
    log_p, dim = make_log_density(config), load_table(config).dim
    stds, num = (config.base_std, WIDER_STD), config.eval_draws
    require(config, ("eval_temperatures",), lambda v: v >= 2, "to be at least 2")
    betas = sigmoid_betas(config.eval_temperatures)

    def base(x: Array) -> Array:
        return jnp.logaddexp(*(gaussian_log_prob(x, std) for std in stds)) - math.log(2)

    def draw(rng: PRNGKeyArray) -> Array:
        side_rng, normal_rng = jax.random.split(rng)
        first = jax.random.bernoulli(side_rng, 0.5, (num, 1))
        return jnp.where(first, *stds) * jax.random.normal(normal_rng, (num, dim))

    return lambda rng, fitted: hamiltonian_annealing(
        rng, functools.partial(log_p, fitted), base, draw, betas=betas
    )
