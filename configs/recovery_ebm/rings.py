# SPDX-License-Identifier: Apache-2.0
"""Diffusion recovery likelihood on four rings in the plane.

Paper     Gao et al. 2021, arXiv:2012.08125 (which has none; sizes are ours)
Command   python -m launch.train --workdir=runs/new --config=configs/recovery_ebm/rings.py
          variants: rings.py:denoising (the default), :recovery, whose chains do not
          converge; :debug or :recovery,debug for seconds
Expected  KL(truth || model) of 0.04 to 0.17 nats at noise of std 0.01, see docs/results.md; that
          page and docs/papers/recovery_likelihood.md say why chains do not converge
Hardware  2 CPU cores: 80 to 100 CPU-seconds
"""

from ml_collections import ConfigDict

from configs import variants
from configs.recovery_ebm import family


def get_config(variant: str = "") -> ConfigDict:
    objective, resize = variants.choose(variant, OBJECTIVES, family.SIZES, default="denoising")
    return resize(objective(family.fine_plane("rings")))


def denoising(config: ConfigDict) -> ConfigDict:
    """Settings of the other toys, learned faster: 2e-3 leaves a KL of 0.15."""
    config = family.fine_denoising(config)
    config.learning_rate = 4e-3
    return config


OBJECTIVES = {**family.FINE_OBJECTIVES, "denoising": denoising}
