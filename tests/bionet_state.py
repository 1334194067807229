# SPDX-License-Identifier: Apache-2.0
"""Official state dictionaries of a small BiO-Net, of random numbers."""

import functools

import numpy as np

from scorejax.interop.networks import bionet as bionet_weights

BIONET = "bionet/bionet"
LEVELS, MULTIPLIER = 2, 0.125
"""Also those of the debug configs."""


def hyper(num_passes, integrate=False):
    names = {"multiplier": MULTIPLIER, "num_layers": LEVELS}
    return names | {"iterations": num_passes, "integrate": integrate}


@functools.cache
def random_state(num_passes, integrate=False):
    """Aliases are equal, variances positive."""
    net = bionet_weights.build(BIONET, hyper(num_passes, integrate))
    shapes = bionet_weights.variable_shapes(net, (3,))
    rng, state, drawn = np.random.default_rng(1), {}, {}
    for name, path, turn in bionet_weights.walk(net):
        if path not in drawn:
            shape = turn.shape(shapes[path])
            drawn[path] = rng.normal(size=shape) / max(1, np.prod(shape[1:])) ** 0.5
            if path.endswith("var"):
                drawn[path] = 0.5 + drawn[path] ** 2
            if path.endswith("count"):
                drawn[path] = np.int64(7)
        state[name] = np.asarray(drawn[path])
    return state
