# SPDX-License-Identifier: Apache-2.0
"""The training state: arrays only, and the whole of a checkpoint.

It holds no functions and no random keys. The noise of step n follows from the run's seed and n, so
that a resumed run draws the same noise as a run that was never stopped.
"""

import flax.struct
import jax
import jax.numpy as jnp
import optax

from scorejax.typing import Array, Params, PyTree, Variables


class TrainState(flax.struct.PyTreeNode):
    """All arrays that a training step changes.

    `step` counts the updates. `ema_params` average `params` over the updates; evaluation uses
    them. `model_state` holds a network's collections beside its parameters, such as running
    statistics, {} if it has none. `skipped` counts the updates up to this step that were skipped in
    a row because they were not finite; None if none may be skipped.
    """

    step: Array
    params: Params
    ema_params: Params
    model_state: PyTree
    opt_state: PyTree
    skipped: Array | None = None

    @classmethod
    def create(
        cls,
        params: Params,
        model_state: PyTree,
        tx: optax.GradientTransformation,
        *,
        skips: bool = False,
    ) -> "TrainState":
        """The state before the first update; the average starts at the initial parameters.

        `skips` makes a training step skip updates that are not finite.
        """
        return cls(
            step=jnp.zeros((), jnp.int32),
            params=params,
            # A copy: the state is donated to the step, and one buffer cannot be donated twice.
            ema_params=jax.tree.map(jnp.copy, params),
            model_state=model_state,
            opt_state=tx.init(params),
            skipped=jnp.zeros((), jnp.int32) if skips else None,
        )


def averaged(state: TrainState) -> Variables:
    """Averaged parameters and model state: the variables that a system publishes by default."""
    return state.ema_params, state.model_state
