# SPDX-License-Identifier: Apache-2.0
"""A network bound to its variables."""

import flax.linen as nn

from scorejax.typing import NetworkFn, Variables


def bind(network: nn.Module, variables: Variables) -> NetworkFn:
    """The network (x, label) -> output as evaluation uses it: without dropout."""
    params, model_state = variables
    return lambda x, label: network.apply({"params": params, **model_state}, x, label)
