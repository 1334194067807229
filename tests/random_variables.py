# SPDX-License-Identifier: Apache-2.0
"""Random numbers in place of a network's initial variables.

Networks begin at zero output, where hardly a part is felt; and compiling `init` takes seconds.
"""

import jax
import numpy as np


def random_variables(network, *inputs, seed, mean, std):
    """Variables of the shapes that `network.init` gives, from N(mean, std^2)."""
    shapes = jax.eval_shape(network.init, jax.random.key(0), *inputs)
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(mean, std, leaf.shape).astype(leaf.dtype), shapes)
