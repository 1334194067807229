# SPDX-License-Identifier: Apache-2.0
"""Random changes of a picture's colours, sharpness and noise; its mask stays as it is."""

import dataclasses
import math

import numpy as np
from jaxtyping import Float32
from scipy import ndimage


@dataclasses.dataclass(frozen=True)
class Appearance:
    """Largest random changes of pixels whose range has length 1; 0 leaves a change out.

    Raises: ValueError if a number is negative or not finite, or `colour` is 1 or more.
    """

    brightness: float = 0.0
    """Added to all channels: uniform in [-brightness, brightness]."""
    colour: float = 0.0
    """Each channel is multiplied by its own factor, uniform in [1 - colour, 1 + colour]."""
    blur: float = 0.0
    """Standard deviation in pixels of a Gaussian blur, uniform in [0, blur]."""
    noise: float = 0.0
    """Standard deviation of Gaussian noise of each value, uniform in [0, noise]."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value < (1 if name == "colour" else math.inf):
                limit = "1" if name == "colour" else "infinity"
                raise ValueError(f"augmentation needs 0 <= {name} < {limit}; got {value}.")

    @property
    def changes(self) -> bool:
        """Whether anything is changed at all."""
        return any(vars(self).values())


def vary(
    rng: np.random.Generator, image: Float32[np.ndarray, "h w c"], appearance: Appearance
) -> Float32[np.ndarray, "h w c"]:
    """Draws one change of an image: light first, then the lens, then the sensor. It is not clipped.

    The order is that of a camera: noise is not blurred.
    """
    factors = 1 + rng.uniform(-appearance.colour, appearance.colour, image.shape[2])
    changed = image * factors.astype(np.float32)
    changed += np.float32(rng.uniform(-appearance.brightness, appearance.brightness))
    sigma = rng.uniform(0, appearance.blur)
    if sigma > 0:
        changed = ndimage.gaussian_filter(changed, (sigma, sigma, 0), mode="nearest")
    deviation = np.float32(rng.uniform(0, appearance.noise))
    return changed + deviation * rng.standard_normal(image.shape, dtype=np.float32)
