# SPDX-License-Identifier: Apache-2.0
"""A VAE of binary 8 x 8 digits with an implicit encoder, whose entropy univariate scores learn.

Paper     Meng et al. 2020, arXiv:2010.12810, Section 5 (which has MNIST; sizes are ours)
Command   python -m launch.train --workdir=runs/new \\
              --config=configs/ar_csm/vae_digits.py
          variants: an estimator of the entropy gradient, :csm (the default), :ssm_vr, :stein,
          :spectral, :exact; an encoder, :triangular (the default), :mlp; codes as the critic
          sees them, :standardized (the default), :raw; a size, :full (the default), :debug
Expected  log_prob by annealed importance sampling: -22.3 nats after 6000 steps with hidden=64
          (docs/results.md); the full size was not run to its end
Hardware  2 CPU cores: some minutes
"""

from ml_collections import ConfigDict

from configs import variants

ESTIMATORS = {
    name: variants.make_edit(estimator=name)
    for name in ("csm", "ssm_vr", "stein", "spectral", "exact")
}
ENCODERS = {name: variants.make_edit(encoder=name) for name in ("triangular", "mlp")}
CODES = {
    "standardized": variants.make_edit(standardize_codes=True),
    "raw": variants.make_edit(standardize_codes=False),
}
SIZES = {
    "full": variants.unchanged,
    "debug": variants.make_edit(
        hidden=32, num_hidden=1, latent=2, num_particles=4, batch_size=16, num_train_steps=40,
        log_every=10, eval_every=20, save_every=20, eval_examples=32, eval_samples=9,
        eval_likelihoods=8, eval_chains=4, eval_temperatures=10, eval_leapfrogs=2,
    ),
}  # fmt: skip


def get_config(variant: str = "") -> ConfigDict:
    config = ConfigDict()
    config.system = "ar_csm"
    config.model = "implicit_vae"
    config.seed = 42

    config.dataset, config.image_size = "digits", 8
    config.data_dir = ""
    config.damaged = "raise"  # skip: leaves out pictures of dataset=folder that cannot be used
    config.random_flip = False
    config.uniform_dequantization = config.centered = False

    config.estimator = "csm"
    config.encoder = "triangular"
    config.latent, config.hidden, config.num_hidden = 8, 128, 2
    config.noise_dim = 32  # of the encoder "mlp"; a triangular one has one for each code
    config.num_particles = 32  # codes of an image, for stein and spectral
    config.standardize_codes = True  # for the critics of csm and ssm_vr

    config.learning_rate = 1e-3  # RMSProp
    config.batch_size = 64  # over all devices
    config.accumulation = 1
    config.num_train_steps = 10_000
    config.num_steps_per_call = 10
    config.ema_rate = 0.0

    config.log_every = 100
    config.eval_every = config.save_every = 2000
    config.keep_latest = 2
    config.max_nonfinite_updates = 0  # skipped in a row; the next one ends the run
    config.eval_examples = 898
    config.eval_samples = 64
    config.eval_likelihoods = 256  # test images
    config.eval_chains, config.eval_temperatures, config.eval_leapfrogs = 16, 100, 5
    # Of test images, as there are no others: the best checkpoint is chosen on what is reported.
    config.best_metric, config.best_mode = "log_prob", "max"
    return variants.apply(config, variant, ESTIMATORS, ENCODERS, CODES, SIZES)
