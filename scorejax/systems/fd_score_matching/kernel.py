# SPDX-License-Identifier: Apache-2.0
"""A deep kernel exponential family of a table, its inner weights in closed form.

Each batch is cut in half: the weights are solved for on the first, and the loss on the second, with
these weights, teaches kernels, inducing points and ridge. To be judged, the weights are solved for
on all training rows; log Z is estimated by annealed importance sampling, whose effective size is
reported.

Source: Wenliang et al. 2019, arXiv:1811.08357; Pang et al. 2020, arXiv:2007.03317, Section 5.2.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from scorejax.choices import choose, require
from scorejax.data import tables
from scorejax.density import kernel_exponential_family as family
from scorejax.density.annealed_importance import (
    Annealed,
    hamiltonian_annealing,
    importance_normalizer,
)
from scorejax.density.annealing_path import geometric_path, sigmoid_betas
from scorejax.evaluate import progress
from scorejax.evaluate.progress import Metric, Metrics
from scorejax.models.deep_kernel import DeepKernel
from scorejax.numerics import gaussian_log_prob
from scorejax.objectives.score_matching import expected_multiple
from scorejax.random import Rng, draw_rows, example_keys, split
from scorejax.report import Evaluation
from scorejax.systems.fd_score_matching import training
from scorejax.train.state import TrainState
from scorejax.train.system import System
from scorejax.typing import Array, Aux, Batch, Params, PRNGKeyArray, PyTree, Variables

SIZES = ("num_inducing", "features", "num_hidden", "eval_draws", "eval_repeats")
KEYS = (
    "model", "table", "split_seed", "held_out", "data_noise", "log_widths", "base_std", "log_ridge",
    *SIZES, "eval_temperatures", *training.OPTIONS, *training.OPTIMIZER_OPTIONS,
)  # fmt: skip
"""Keys that a config needs, beside `system` and those of the training loop."""
WIDER_STD, NUM_SHOWN = 1.2, 500
Functionals = Callable[[family.Terms, Rng, Array], family.Functionals]
load_table = functools.cache(tables.load)


def build(config: ConfigDict) -> System:
    """The training of a config. Raises: ValueError for an impossible value."""
    model = make_model(config)
    require(config, ("batch_size",), lambda v: v % 2 == 0, "to be even: half of it is held out")
    return System(
        init=model.init,
        loss=model.loss,
        tx=model.tx,
        source=model.table.training_source(config.batch_size, noise=config.data_noise),
        evaluate=progress.make_evaluate(model.metrics(), config.best_metric),
    )


def make_model(config: ConfigDict) -> "KernelFamily":
    """The model of a config; reads its table. Raises: ValueError for an impossible value."""
    require(config, SIZES, lambda v: v >= 1, "to be at least 1")
    require(config, ("log_widths",), lambda v: len(v) >= 1, "a number for each kernel")
    require(config, ("base_std",), lambda v: 0 < v < math.inf, "to be a positive number")
    require(config, ("eval_temperatures",), lambda v: v >= 2, "to be at least 2")
    table = load_table(config.table, seed=config.split_seed, held_out=config.held_out)
    sizes = (config.num_inducing, config.features, config.num_hidden)
    return KernelFamily(
        table=table,
        network=DeepKernel(table.dim, *sizes, tuple(config.log_widths)),
        base_std=config.base_std,
        log_ridge=config.log_ridge,
        data_noise=config.data_noise,
        functionals=make_functionals(config, table.dim),
        tx=training.optimizer(config),
        eval_repeats=config.eval_repeats,
        eval_draws=config.eval_draws,
        eval_temperatures=config.eval_temperatures,
    )


def make_functionals(config: ConfigDict, dim: int) -> Functionals:
    """Builds the functionals of the config's objective, scaled to the size of score matching.

    Raises: ValueError for an objective that has none, or an impossible option.
    """
    options = training.objective_options(config, (dim,))
    eps, sigma, num = options["eps"], options["sigma"], options["num_directions"]
    along = lambda rng, x: options["direction"](rng, x.shape, x.dtype)
    normal = lambda rng, x: draw_rows(jax.random.normal, rng, x.shape)

    def fd_denoising(terms: family.Terms, rng: Rng, x: Array) -> family.Functionals:
        noise_rng, rng = split(rng)
        noise, u = normal(noise_rng, x), along(rng, x)
        return family.fd_denoising(terms, x, noise, u, sigma=sigma, eps=eps)

    objectives = {
        "sm": lambda terms, rng, x: family.exact(terms, x),
        "ssm": lambda terms, rng, x: family.sliced(terms, x, along(rng, x)),
        "fd_ssm": lambda terms, rng, x: family.fd_sliced(terms, x, along(rng, x), eps=eps),
        "dsm": lambda terms, rng, x: family.denoising(terms, x, normal(rng, x), sigma=sigma),
        "fd_dsm": fd_denoising,
    }
    objective = choose("objective", config.objective, objectives)

    def functionals(terms: family.Terms, rng: Rng, x: Array) -> family.Functionals:
        rows = jnp.concatenate([x] * num)
        rngs = split(rng, num).reshape(-1) if rng.ndim else rng
        scale = expected_multiple(config.objective, x.shape[1])
        return family.scaled(objective(terms, rngs, rows), 1 / scale)

    return functionals


class Fitted(NamedTuple):
    """Parameters, and the inner weights that belong to them."""

    params: Params
    alpha: Array


@dataclasses.dataclass(frozen=True)
class KernelFamily:
    """log p(x) = sum_m alpha_m k(x, z_m) + log q_0(x) - log Z of white rows of a table."""

    table: tables.Table
    network: DeepKernel
    base_std: float
    """Standard deviation of q_0."""
    log_ridge: float
    """Where the logarithm of the ridge begins."""
    data_noise: float
    functionals: Functionals
    tx: optax.GradientTransformation
    eval_repeats: int
    """Copies of each training row, with different noise, for the inner weights."""
    eval_draws: int
    eval_temperatures: int

    def init(self, rng: PRNGKeyArray) -> tuple[Params, PyTree]:
        """rng -> (params, model_state).

        Inducing points begin as training rows, drawn with replacement, and a little noise.
        """
        rows = jnp.asarray(self.table.train)
        rng, row_rng, noise_rng = jax.random.split(rng, 3)
        kernel = self.network.init(rng, rows[:1])["params"]
        picked = rows[jax.random.randint(row_rng, (self.network.num_inducing,), 0, len(rows))]
        kernel["inducing"] = picked + 0.1 * jax.random.normal(noise_rng, picked.shape)
        return {"kernel": kernel, "log_ridge": jnp.float32(self.log_ridge)}, {}

    def terms(self, params: Params, x: Array) -> Array:
        """The terms of log p, (b, m + 1): kernels at the inducing points and, last, log q_0."""
        kernels = self.network.apply({"params": params["kernel"]}, x)
        return jnp.concatenate([kernels, gaussian_log_prob(x, self.base_std)[:, None]], axis=1)

    def loss(
        self, params: Params, state: TrainState, rng: PRNGKeyArray, batch: Batch
    ) -> tuple[Array, Aux]:
        """The loss on the second half of a batch, with weights solved for on the first."""
        x, terms = batch["image"], functools.partial(self.terms, params)
        rows = self.functionals(terms, example_keys(rng, batch), x)
        # The rows of a batch may be repeated, once for each direction.
        on_first = np.arange(len(rows.second)) % len(x) < len(x) // 2
        take = lambda mask: jax.tree.map(lambda leaf: leaf[np.flatnonzero(mask)], rows)
        alpha = family.inner_weights(take(on_first), jnp.exp(params["log_ridge"]))
        value = jnp.mean(family.loss(take(~on_first), alpha))
        return value, Aux({"ridge": jnp.exp(params["log_ridge"])}, state.model_state)

    def fit(self, params: Params) -> Fitted:
        """The inner weights solved for on all training rows, with noise as in training."""
        with jax.ensure_compile_time_eval():  # Draws once, not in every call.
            noise_rng, rng = jax.random.split(jax.random.key(0))
            rows = jnp.tile(self.table.train, (self.eval_repeats, 1))
            rows = rows + self.data_noise * jax.random.normal(noise_rng, rows.shape)
        with jax.default_matmul_precision("highest"):
            functionals = self.functionals(functools.partial(self.terms, params), rng, rows)
            alpha = family.inner_weights(functionals, jnp.exp(params["log_ridge"]))
        return Fitted(params, alpha)

    def log_density(self, fitted: Fitted, x: Array) -> Array:
        """log p + log Z in nats, (b,)."""
        with jax.default_matmul_precision("highest"):
            terms = functools.partial(self.terms, fitted.params)
            return family.log_density(terms, fitted.alpha, x)

    def anneal(self, rng: PRNGKeyArray, fitted: Fitted) -> Annealed:
        """Walks from a normalised density to the model's, which estimate log Z.

        They begin at draws, in equal parts, of q_0, whose tails are those of p, and of a Gaussian a
        little wider than data.
        """
        stds, num = (self.base_std, WIDER_STD), self.eval_draws

        def base(x: Array) -> Array:
            return jnp.logaddexp(*(gaussian_log_prob(x, std) for std in stds)) - math.log(2)

        def draw(rng: PRNGKeyArray) -> Array:
            side_rng, normal_rng = jax.random.split(rng)
            first = jax.random.bernoulli(side_rng, 0.5, (num, 1))
            noise = jax.random.normal(normal_rng, (num, self.table.dim))
            return jnp.where(first, *stds) * noise

        log_p = functools.partial(self.log_density, fitted)
        path = geometric_path(base, log_p, sigmoid_betas(self.eval_temperatures))
        return hamiltonian_annealing(rng, path, draw)

    def metrics(self) -> Metrics:
        """By name: exact score-matching losses of test and validation rows; likelihood."""
        fit = jax.jit(self.fit)

        def exact(rows: np.ndarray, name: str) -> Metric:
            energy = lambda fitted, x: -self.log_density(fitted, x)
            measure = training.exact_metric(energy, jnp.asarray(rows), name)
            return lambda rng, variables: measure(rng, (fit(variables[0]), {}))

        return {
            "score_matching": lambda: exact(self.table.test, "score_matching"),
            "valid_score_matching": lambda: exact(self.table.valid, "valid_score_matching"),
            "log_prob": lambda: self._likelihood_metric(fit),
        }

    def _likelihood_metric(self, fit: Callable[[Params], Fitted]) -> Metric:
        """Mean log-likelihood of white test rows in nats, that of N(0, I) beside it, a picture."""
        log_p, anneal = jax.jit(self.log_density), jax.jit(self.anneal)
        test = jnp.asarray(self.table.test)

        def metric(rng: PRNGKeyArray, variables: Variables) -> Evaluation:
            from scorejax.evaluate.scatter import scatter_picture

            fitted, (anneal_rng, pick_rng) = fit(variables[0]), jax.random.split(rng)
            walks = anneal(anneal_rng, fitted)
            normalizer = importance_normalizer(walks.log_weights)
            values = np.asarray(log_p(fitted, test)) - float(normalizer.log_z)
            scalars = progress.summary("log_prob", values[None]) | {
                "log_z_standard_error": float(normalizer.standard_error),
                "effective_size": float(normalizer.effective_size),
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
