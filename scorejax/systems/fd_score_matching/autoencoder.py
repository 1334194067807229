# SPDX-License-Identifier: Apache-2.0
"""A VAE and a WAE with an implicit encoder, whose entropy a score learned by FD-SSM-VR maximises.

The score of the VAE is that of the codes of one image, the WAE's that of all codes together.

Source: Pang et al. 2020, arXiv:2007.03317, Section 5.4.
"""

import math

import optax
from ml_collections import ConfigDict

from scorejax.autoencoder import Autoencoder, cross_entropy, learned_score, squared_error
from scorejax.choices import require
from scorejax.data.view import VIEW_DEFAULTS, VIEW_OPTIONS, ImageView
from scorejax.evaluate.held_out import HeldOut
from scorejax.models.implicit_autoencoder import ImplicitAutoencoder
from scorejax.systems.fd_score_matching import training
from scorejax.train.system import System

NETWORK_OPTIONS = ("latent", "hidden", "num_hidden", "noise_dim")
KEYS = (
    *VIEW_OPTIONS, "model", *NETWORK_OPTIONS, "objective", "eps", "direction", "prior_weight",
    "learning_rate", "eval_examples", "eval_samples",
)  # fmt: skip
"""Keys that a config needs, beside `system` and those of the training loop."""
OPTIONS = VIEW_DEFAULTS
"""Keys that it may have."""
RECONSTRUCTIONS = {"implicit_vae": cross_entropy, "implicit_wae": squared_error}


def build(config: ConfigDict) -> System:
    """The training of a config. Raises: ValueError, or FileNotFoundError without its data."""
    return training.image_system(make_model(config), config)


def make_model(config: ConfigDict) -> Autoencoder:
    """The model of a config. Raises: ValueError for an impossible value."""
    require(config, ("centered",), lambda v: v is False, "to be False: pixels are probabilities")
    require(config, (*NETWORK_OPTIONS, "eval_samples"), lambda v: v >= 1, "to be at least 1")
    positive = ("prior_weight", "learning_rate")
    require(config, positive, lambda v: 0 < v < math.inf, "to be a positive number")
    data = ImageView.from_options(config)
    sizes = (config.latent, config.hidden, config.num_hidden)
    conditional = config.model == "implicit_vae"
    return Autoencoder(
        data=data,
        network=ImplicitAutoencoder(data.shape, *sizes, conditional=conditional),
        noise_dim=config.noise_dim,
        distance=RECONSTRUCTIONS[config.model],
        entropy=learned_score(training.make_score_objective(config, (config.latent,))),
        prior_weight=config.prior_weight,
        tx=optax.rmsprop(config.learning_rate),
        held_out=HeldOut.from_options(config, data),
    )
