# SPDX-License-Identifier: Apache-2.0
"""Diffusion recovery likelihood on a checkerboard in the plane.

Paper     Gao et al. 2021, arXiv:2012.08125 (which has none; sizes are ours)
Command   python -m launch.train --workdir=runs/new --config=configs/recovery_ebm/checkerboard.py
          variants: checkerboard.py:denoising (the default), :recovery, whose chains do not
          converge; :debug or :recovery,debug for seconds
Expected  KL(truth || model) of 0.03 to 0.07 nats at noise of std 0.01, see docs/results.md; that
          page and docs/papers/recovery_likelihood.md say why chains do not converge
Hardware  2 CPU cores: 80 to 100 CPU-seconds
"""

from ml_collections import ConfigDict

from configs import variants
from configs.recovery_ebm import family


def get_config(variant: str = "") -> ConfigDict:
    objective, resize = variants.choose(
        variant, family.FINE_OBJECTIVES, family.SIZES, default="denoising"
    )
    return resize(objective(family.fine_plane("checkerboard")))
