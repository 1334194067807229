# SPDX-License-Identifier: Apache-2.0
"""How well does a Gaussian know patches of photographs? A yardstick for bits/dim of score SDEs.

    python -m benchmarks.photo_baselines

A full-covariance Gaussian, shrunk by Ledoit and Wolf's rule, of uniformly dequantised training
patches; bits/dim of the test patches, and their standard error. Beside it the independent pixels.
"""

import numpy as np
from scipy import stats
from sklearn.covariance import LedoitWolf

from scorejax.data import images
from scorejax.data.transforms import dequantize


def bits_per_dim(log_prob: np.ndarray, dim: int) -> str:
    """Of densities on [0, 1]^dim, for 256 levels."""
    bits = -log_prob / dim / np.log(2) + 8
    return f"{bits.mean():.3f} ± {stats.sem(bits):.3f}"


def main() -> None:
    rng = np.random.default_rng(0)
    train, test = (
        dequantize(rng, images.load("photo_patches", split).image).reshape(-1, 32 * 32 * 3)
        for split in images.SPLITS
    )
    gaussian = LedoitWolf().fit(train.astype(np.float64))
    mean, covariance = gaussian.location_, gaussian.covariance_
    joint = stats.multivariate_normal(mean, covariance).logpdf(test)
    alone = stats.norm(mean, np.sqrt(np.diag(covariance))).logpdf(test).sum(axis=1)
    print(f"independent pixels       {bits_per_dim(alone, train.shape[1])} bits/dim")
    print(f"full-covariance Gaussian {bits_per_dim(joint, train.shape[1])} bits/dim")


if __name__ == "__main__":
    main()
