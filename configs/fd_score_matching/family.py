# SPDX-License-Identifier: Apache-2.0
"""Defaults of each model of finite-difference score matching, and variants.

The values are those of the published code where it states them.
"""

from ml_collections import ConfigDict

from configs.variants import unchanged


def default(model: str) -> ConfigDict:
    """Options of the objective and of the training loop, for any model."""
    config = ConfigDict()
    config.system = "fd_score_matching"
    config.model = model
    config.seed = 42

    config.eps = 0.1  # length of the finite-difference step, over all coordinates
    config.direction = "sphere"  # gaussian, rademacher

    config.batch_size = 128  # over all devices
    config.accumulation = 1
    config.num_steps_per_call = 10
    config.ema_rate = 0.0

    config.log_every = 100
    config.keep_latest = 2
    config.max_nonfinite_updates = 0  # skipped in a row; the next one ends the run
    config.best_mode = "min"
    return config


def energy_objective(config: ConfigDict, objective: str, learning_rate: float) -> ConfigDict:
    """Sets the objective of an energy or a flow, and Adam."""
    config.objective = objective  # sm, ssm, ssm_vr, fd_ssm, dsm, fd_dsm; mle for flows
    config.sigma = 0.1  # noise of dsm and fd_dsm
    config.num_directions = 1
    config.learning_rate = learning_rate
    config.beta1, config.beta2 = 0.9, 0.999
    config.grad_clip = 0.0  # global norm; 0: no clipping
    config.cosine_decay = False
    return config


def images(config: ConfigDict, dataset: str, image_size: int, *, dequantize: bool) -> ConfigDict:
    """Sets a data set of images in [0, 1]."""
    config.dataset, config.image_size = dataset, image_size
    config.data_dir = ""  # empty: $SCOREJAX_DATA_DIR, else ~/tensorflow_datasets
    config.damaged = "raise"  # skip: leaves out pictures of dataset=folder that cannot be used
    config.random_flip = False
    config.uniform_dequantization = dequantize
    config.centered = False
    return config


def nice(dataset: str, image_size: int) -> ConfigDict:
    """A flow by FD-SSM, of NICE's own sizes: the published code names 5 layers and no widths."""
    config = energy_objective(default("nice"), "fd_ssm", 1e-3)
    images(config, dataset, image_size, dequantize=True)
    config.squeeze = 0.001
    config.num_couplings, config.hidden, config.num_hidden = 4, 1000, 5

    config.num_train_steps = 46_000  # 100 epochs of 60,000 images
    config.eval_every = config.save_every = 2000
    config.eval_examples = 10_000
    config.eval_exact_examples = 16  # score-matching loss by dense Hessians
    config.eval_samples = 64
    config.best_metric = "bits_per_dim"
    return config


def energy(dataset: str, image_size: int) -> ConfigDict:
    """The deep energy model, by FD-DSM at many noise levels."""
    config = energy_objective(default("energy_resnet"), "fd_mdsm", 5e-5)
    images(config, dataset, image_size, dequantize=True)
    config.padding = 0
    config.data_noise = 0.0  # 0.005 for sliced objectives
    config.features, config.multipliers, config.num_blocks = 128, (2, 4, 8), 3
    config.activation = "softplus"  # elu, swish

    config.eps = 0.05
    config.sigma_min, config.sigma_max, config.target_sigma = 0.05, 1.2, 0.1  # fd_mdsm
    config.beta2 = 0.95
    config.grad_clip = 0.1
    config.cosine_decay = True

    config.num_hot, config.num_cooling, config.num_freezing = 500, 2000, 200
    config.hottest, config.step_size, config.denoise_sigma = 100.0, 0.02, 0.1

    config.num_train_steps = 300_000
    config.eval_every, config.save_every = 10_000, 5000
    config.eval_examples = 1000
    config.eval_exact_examples = 0
    config.eval_samples = 64
    config.best_metric = "loss"
    return config


def kernel(table: str) -> ConfigDict:
    """The deep kernel exponential family, by FD-SSM."""
    config = energy_objective(default("kernel_exponential_family"), "fd_ssm", 1e-2)
    config.table = table
    config.split_seed = 2019
    config.held_out = 0.1  # fraction for the test, and the same again for validation
    config.data_noise = 0.05
    config.num_inducing, config.features, config.num_hidden = 200, 30, 2
    config.log_widths = (0.0, 0.5185, 1.0)
    config.base_std = 2.0
    config.log_ridge = -2.0

    config.batch_size = 200
    config.num_train_steps = 1000
    config.eval_every = config.save_every = 50
    config.eval_draws, config.eval_temperatures = 500, 60  # for the normaliser
    config.eval_repeats = 20  # noisy copies of a row, for the inner weights
    config.best_metric = "valid_score_matching"  # small tables overfit soon
    return config


def ncsn(dataset: str, image_size: int) -> ConfigDict:
    """The first NCSN by FD-SSM-VR."""
    config = images(default("ncsn"), dataset, image_size, dequantize=True)
    config.objective = "fd_ssm_vr"  # ssm_vr, fd_ssm, ssm
    config.sigma_min, config.sigma_max, config.num_scales = 0.01, 1.0, 10
    config.steps_per_level, config.step_size = 100, 2e-5
    config.denoise = False

    config.nf = 128
    config.dtype = "float32"  # arithmetic of the body; bfloat16 on accelerators
    config.remat = False

    config.num_train_steps = 200_000
    config.learning_rate = 1e-3

    # The ladder as a VE SDE: for every sampler but ald, and for bits/dim.
    config.predictor, config.corrector = "reverse_diffusion", "langevin"
    config.snr = 0.16
    config.num_corrector_steps = 1
    config.num_sampling_steps = 1000
    config.rtol = config.atol = 1e-5

    config.eval_every, config.save_every = 50_000, 5000
    config.eval_examples = 1000
    config.eval_bits_examples = 0
    config.eval_samples = 64
    config.eval_frechet_samples = 0  # for best_metric="frechet"
    config.eval_features = ""  # for "frechet": "digits", or the file of FID's weights
    config.eval_matmul_precision = "highest"  # of likelihoods, ODE solves, features; high, default
    config.best_metric = "loss"
    return config


def autoencoder(model: str, dataset: str, image_size: int) -> ConfigDict:
    """A VAE or WAE whose encoder has no density, of perceptrons instead of convolutions."""
    config = images(default(model), dataset, image_size, dequantize=False)
    config.objective = "fd_ssm_vr"  # ssm_vr, fd_ssm, ssm
    config.latent, config.hidden, config.num_hidden, config.noise_dim = 8, 512, 2, 32
    config.prior_weight = 1.0 if model == "implicit_vae" else 10.0
    config.learning_rate = 1e-3

    config.num_train_steps = 100_000
    config.eval_every = config.save_every = 10_000
    config.eval_examples = 1000
    config.eval_samples = 64
    config.best_metric = "reconstruction"
    return config


SMALL = {
    "image_size": 8, "hidden": 32, "num_hidden": 1, "features": 8,
    "multipliers": (1, 2), "num_blocks": 1, "num_inducing": 20, "nf": 8, "latent": 2,
    "steps_per_level": 2, "num_hot": 5, "num_cooling": 20, "num_freezing": 5,
    "num_sampling_steps": 25, "rtol": 1e-2, "atol": 1e-2, "num_train_steps": 40, "batch_size": 16,
    "log_every": 10, "eval_every": 20, "save_every": 20, "eval_examples": 32,
    "eval_exact_examples": 4, "eval_bits_examples": 4, "eval_samples": 9, "eval_draws": 50,
    "eval_temperatures": 5, "eval_repeats": 2,
}  # fmt: skip
"""Values of `debug`; each model has some of these keys."""


def debug(config: ConfigDict) -> ConfigDict:
    """Small data, a small model and short training, for seconds on a CPU."""
    config.update({key: value for key, value in SMALL.items() if key in config})
    config.learning_rate = 1e-3
    return config


SIZES = {"full": unchanged, "debug": debug}
