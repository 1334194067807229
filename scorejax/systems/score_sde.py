# SPDX-License-Identifier: Apache-2.0
"""Score-based generative modelling through stochastic differential equations.

Training is Eq. 7 of the paper, in continuous time, or the discrete losses that it generalises
(Eqs. 1 and 3); samples come from predictor-corrector chains (Alg. 1) or the probability-flow ODE
(Eq. 13), densities from the same ODE (Eq. 39). VP and sub-VP networks predict the noise, VE
networks sigma times the score.

Source: Song et al. 2021, arXiv:2011.13456.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from scorejax import parameterize
from scorejax.choices import choose, require, require_keys, unknown
from scorejax.data.source import padded_batches
from scorejax.data.view import ImageView
from scorejax.evaluate import progress
from scorejax.evaluate.report import Evaluation
from scorejax.likelihood import bits_per_dim, log_prob
from scorejax.models.build import NCSNPP_OPTIONS, build_network
from scorejax.models.ncsnpp import NCSNpp
from scorejax.numerics import mean_except_batch
from scorejax.objectives import ExampleLoss, denoising, make_loss_fn
from scorejax.samplers import predictor_corrector as pc
from scorejax.samplers.correctors import get_corrector
from scorejax.samplers.predictors import get_predictor
from scorejax.samplers.probability_flow import probability_flow_ode
from scorejax.schedules import geometric_sigmas
from scorejax.sdes import SDE, VESDE, VPSDE, SubVPSDE
from scorejax.systems import System
from scorejax.train import parallel
from scorejax.train.optimizer import adam
from scorejax.train.state import TrainState
from scorejax.typing import Array, Batch, NetworkFn, Params, PRNGKeyArray, PyTree, ScoreFn

Variables = tuple[Params, PyTree]
"""What evaluation needs of a training state: (averaged parameters, model state)."""

SDES = {
    "vp": lambda config: VPSDE(config.beta_min, config.beta_max),
    "subvp": lambda config: SubVPSDE(config.beta_min, config.beta_max),
    "ve": lambda config: VESDE(config.sigma_min, config.sigma_max),
}
OBJECTIVES = {"denoising": SDES, "likelihood": SDES, "ddpm": ("vp",), "smld": ("ve",)}
"""The objectives, and the SDEs that each is for."""
REDUCTIONS = {"mean": mean_except_batch, "half_sum": denoising.half_sum}
NUM_FRAMES = 10
KEYS = (
    *(field.name for field in dataclasses.fields(ImageView)), *NCSNPP_OPTIONS, "model",
    "sde", "beta_min", "beta_max", "sigma_min", "sigma_max", "objective", "num_scales", "reduction",
    "learning_rate", "beta1", "adam_eps", "warmup", "grad_clip",
    "predictor", "corrector", "snr", "num_corrector_steps", "num_sampling_steps", "denoise",
    "rtol", "atol", "eval_examples", "eval_bits_examples", "eval_samples",
)  # fmt: skip
"""What is read of a config, beside `system` and what the training loop reads."""


def build(config: ConfigDict) -> System:
    """Binds a config. Raises: ValueError for impossible values, FileNotFoundError without data."""
    sde, images, model = make_sde(config), image_view(config), make_network(config)

    def init(rng: PRNGKeyArray) -> Variables:
        variables = dict(model.init(rng, jnp.zeros((1, *images.shape)), jnp.ones(1)))
        return variables.pop("params"), variables

    system = System(
        init=init,
        loss=make_loss_fn(make_example_loss(config, sde), model.apply),
        tx=make_optimizer(config),
        source=images.training_source(config.batch_size),
        evaluate=make_evaluate(config),
    )
    jax.eval_shape(lambda: init(jax.random.key(0)))  # Raises what only the layers can know.
    return system


def sampler(config: ConfigDict, name: str, *, num_steps: int = 0) -> Callable:
    """draw(variables, rngs (b,)) -> {"image": (b, h, w, c) in [0, 1], not clipped, "nfe": (b,)}.

    The first key decides; the others count. `num_steps` 0 is the config's.
    Raises: ValueError for an unknown sampler, or a chain that the SDE does not have.
    """
    sde, images, model = make_sde(config), image_view(config), make_network(config)
    if name == "pc":
        chain = _chain(config, sde, num_steps)
        sample = functools.partial(pc.predictor_corrector, **chain, denoise=config.denoise)
    elif name == "ode" and not num_steps:
        sample = functools.partial(probability_flow_ode, sde=sde, **_tolerances(config))
    elif name == "ode":
        raise ValueError(f"the sampler 'ode' chooses its own steps; got num_steps={num_steps}")
    else:
        raise unknown("sampler", name, ("ode", "pc"))

    def draw(variables: Variables, rngs: PRNGKeyArray) -> dict[str, Array]:
        score_fn = make_score_fn(config, sde, bind(model, variables))
        x, nfe = sample(rngs[0], score_fn, (len(rngs), *images.shape))
        return {"image": images.to_unit(x), "nfe": jnp.broadcast_to(nfe, len(rngs))}

    return draw


def likelihood(config: ConfigDict) -> Callable:
    """measure(variables, {"image": (b, h, w, c), "rng": keys (b,)}) -> bits_per_dim, nfe, success.

    The images are as `ImageView.dequantized` returns them. An answer depends on its own image and
    key alone.
    """
    sde, images, model = make_sde(config), image_view(config), make_network(config)
    solve = functools.partial(log_prob, **_tolerances(config))
    dim, units = math.prod(images.shape), {"levels": images.levels, "data_range": images.data_range}

    def measure(variables: Variables, batch: Batch) -> dict[str, Array]:
        score_fn = make_score_fn(config, sde, bind(model, variables))
        one = lambda rng, x: jax.tree.map(jnp.squeeze, solve(rng, sde, score_fn, x[None]))
        rows = jax.vmap(one)(batch["rng"], batch["image"])
        bits = bits_per_dim(rows.log_prob, dim, **units)
        return {"bits_per_dim": bits, "nfe": rows.nfe, "success": rows.success}

    return measure


def image_view(config: ConfigDict) -> ImageView:
    """The data of a config. Raises: ValueError for an unknown set or an impossible size."""
    return ImageView(**{field.name: config[field.name] for field in dataclasses.fields(ImageView)})


def make_sde(config: ConfigDict) -> SDE:
    """Raises: ValueError unless it exists, has positive noise and suits the objective."""
    require_keys(config, KEYS)
    make = choose("sde", config.sde, SDES)
    suited = sorted(choose("objective", config.objective, OBJECTIVES))
    if config.sde not in suited:
        raise ValueError(
            f"objective {config.objective!r} needs sde={suited[0]!r}; got {config.sde!r}"
        )
    return make(config)


def make_network(config: ConfigDict) -> NCSNpp:
    """Raises: ValueError for a network that cannot be, or not for these images or labels."""
    if config.embedding_type == "fourier" and config.objective in ("ddpm", "smld"):
        raise ValueError(
            "embedding_type 'fourier' takes the logarithm of the label, which is 0 at one end of "
            f"objective {config.objective!r}; take embedding_type 'positional'"
        )
    return build_network(config.model, config.image_size, config)


def bind(model: NCSNpp, variables: Variables) -> NetworkFn:
    """The network as evaluation uses it: without dropout."""
    params, model_state = variables
    return lambda x, label: model.apply({"params": params, **model_state}, x, label)


def make_score_fn(config: ConfigDict, sde: SDE, network: NetworkFn) -> ScoreFn:
    """The score in the convention of the objective. Source: the paper, Appendix C."""
    if config.objective == "ddpm":
        return parameterize.discrete_noise_prediction(sde, network, config.num_scales)
    if config.objective == "smld":
        divided = _divided_by_level(config, network)
        return parameterize.discrete_sigma_conditioned(sde, divided, config.num_scales)
    if config.sde == "ve":
        return parameterize.sigma_conditioned(sde, parameterize.divided_by_sigma(network))
    return parameterize.noise_prediction(sde, network)


def make_example_loss(config: ConfigDict, sde: SDE) -> ExampleLoss:
    """The objective: Eq. 7 with the weight std^2 or g^2, or its ancestors Eq. 3 and Eq. 1."""
    require(config, ("num_scales",), lambda v: v >= 2, "to be at least 2")
    options: dict[str, Any] = {"reduction": choose("reduction", config.reduction, REDUCTIONS)}
    if config.objective == "ddpm":
        options |= {"num_scales": config.num_scales}
        return lambda network, rng, x: denoising.ddpm_loss(network, sde, rng, x, **options)
    if config.objective == "smld":
        options |= {"num_scales": config.num_scales}
        return lambda network, rng, x: denoising.smld_loss(
            _divided_by_level(config, network), sde, rng, x, **options
        )
    if config.objective == "likelihood":
        options |= {"time_sampler": denoising.likelihood_times}
        options |= {"weighting": denoising.likelihood_weighting}
    return lambda network, rng, x: denoising.denoising_score_matching(
        make_score_fn(config, sde, network), sde, rng, x, **options
    )


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Adam behind warm-up and clipping. Raises: ValueError for impossible values."""
    require(config, ("beta1",), lambda v: 0 <= v < 1, "to lie in [0, 1)")
    require(config, ("adam_eps",), lambda v: 0 < v < math.inf, "to be a positive number")
    require(config, ("grad_clip",), lambda v: v >= 0, "to be positive, or 0 for none")
    return adam(
        config.learning_rate,
        b1=config.beta1,
        eps=config.adam_eps,
        warmup=config.warmup,
        clip_norm=config.grad_clip or None,
    )


def metrics(config: ConfigDict) -> dict[str, progress.Metric]:
    """By name: held-out loss, bits/dim of a few test images, samples and their way from noise."""
    require(config, ("eval_examples",), lambda v: v >= 1, "to be at least 1")
    counts = ("eval_bits_examples", "eval_samples")
    require(config, counts, lambda v: v >= 0, "to be at least 0")
    images, noise = image_view(config), np.random.default_rng(0)
    test = images.stored("test", max(config.eval_examples, config.eval_bits_examples))
    batches = [
        batch | {"image": images.as_trained(noise, batch["image"])}
        for batch in padded_batches(test, config.batch_size)
    ]
    found = {"loss": progress.held_out_loss(_row_losses(config), batches)}
    if config.eval_bits_examples:
        measure = parallel.map_over_devices(likelihood(config))
        x = images.dequantized(noise, test.image[: config.eval_bits_examples])
        found["bits_per_dim"] = progress.held_out_bits(measure, x)
    if config.eval_samples:
        found["samples"] = progress.chain_pictures(_trajectory(config))
    return found


def make_evaluate(config: ConfigDict) -> Callable[[PRNGKeyArray, TrainState], Evaluation]:
    """All metrics, of the averaged parameters. Raises: ValueError for an unknown best_metric."""
    found = metrics(config)
    if config.best_metric not in ("", *found) or config.best_metric == "samples":
        raise unknown("best_metric", config.best_metric, found.keys() - {"samples"})

    def evaluate(rng: PRNGKeyArray, state: TrainState) -> Evaluation:
        variables = state.ema_params, state.model_state
        parts = [metric(rng, variables) for metric in found.values()]
        scalars = {name: value for part in parts for name, value in part.scalars.items()}
        return Evaluation(scalars, {k: v for part in parts for k, v in part.pictures.items()})

    return evaluate


def _row_losses(config: ConfigDict) -> Callable[[Variables, PRNGKeyArray, Array], Array]:
    model, example_loss = make_network(config), make_example_loss(config, make_sde(config))
    return jax.jit(lambda variables, rng, x: example_loss(bind(model, variables), rng, x))


def _trajectory(config: ConfigDict) -> Callable[[Variables, PRNGKeyArray], Array]:
    sde, images, model = make_sde(config), image_view(config), make_network(config)
    chain, shape = _chain(config, sde), (config.eval_samples, *images.shape)
    options = chain | {"num_frames": min(NUM_FRAMES, chain["num_steps"])}

    @jax.jit
    def trajectory(variables: Variables, rng: PRNGKeyArray) -> Array:
        score_fn = make_score_fn(config, sde, bind(model, variables))
        chained = pc.predictor_corrector_trajectory(rng, score_fn, shape, **options)
        return images.to_unit(chained.x)

    return trajectory


def _chain(config: ConfigDict, sde: SDE, num_steps: int = 0) -> dict[str, Any]:
    """Options of the predictor-corrector chain. Raises: ValueError for one that cannot be."""
    num_steps = num_steps or config.num_sampling_steps
    require({"num_steps": num_steps}, ("num_steps",), lambda v: v >= 2, "to be at least 2")
    require(config, ("num_corrector_steps",), lambda v: v >= 1, "to be at least 1")
    require(config, ("snr",), lambda v: 0 < v < math.inf, "to be a positive number")
    chain = {
        "sde": sde,
        "predictor": get_predictor(config.predictor),
        "corrector": get_corrector(config.corrector),
        "num_steps": num_steps,
        "snr": config.snr,
        "num_inner": config.num_corrector_steps,
    }
    # Tracing alone finds what the SDE cannot do; which score it is does not matter for that.
    sample = functools.partial(pc.predictor_corrector, **chain)
    jax.eval_shape(
        lambda: sample(jax.random.key(0), lambda x, t: -x, (1, *image_view(config).shape))
    )
    return chain


def _tolerances(config: ConfigDict) -> dict[str, float]:
    names = ("rtol", "atol")
    require(config, names, lambda v: 0 < v < 1, "to lie between 0 and 1")
    return {name: config[name] for name in names}


def _divided_by_level(config: ConfigDict, network: NetworkFn) -> NetworkFn:
    sigmas = geometric_sigmas(config.sigma_min, config.sigma_max, config.num_scales)
    return parameterize.divided_by_level_sigma(network, jnp.asarray(sigmas, jnp.float32))
