# SPDX-License-Identifier: Apache-2.0
"""Averages what a network predicts for flipped and turned tiles, each turned back."""

import functools
from collections.abc import Callable

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

NUMBERS = (1, 4, 8)
"""Symmetries of the square: none but itself, also the flips, also the quarter turns."""


def symmetric(predict: Callable[[np.ndarray], ArrayLike], num: int) -> Callable:
    """Builds x (b, h, w, c) -> mean over `num` symmetries g of g^-1(predict(g(x))), (b, h, w, k).

    1 is `predict` itself. 4 are the identity, both flips and their product; 8 have the quarter
    turns too, and need square tiles. It costs `num` calls of `predict`, one after the other, so
    that it takes no more memory and compiles nothing anew.
    Raises: ValueError for another number.
    """
    if num not in NUMBERS:
        raise ValueError(f"eval_symmetries needs to be 1, 4 or 8; got {num}")
    if num == 1:
        return predict
    turns = (0, 1, 2, 3) if num == 8 else (0, 2)
    moves = [(turn, flips) for turn in turns for flips in (False, True)]

    def averaged(x: Float[np.ndarray, "b h w c"]) -> Float[np.ndarray, "b h w k"]:
        total = None
        for move in moves:
            output = _back(np.asarray(predict(np.ascontiguousarray(_moved(x, *move)))), *move)
            total = output.astype(np.float32) if total is None else total + output
        return total / np.float32(num)

    return averaged


_turn = functools.partial(np.rot90, axes=(1, 2))


def _moved(x: np.ndarray, turn: int, flips: bool) -> np.ndarray:
    return _turn(x[:, :, ::-1] if flips else x, turn)


def _back(x: np.ndarray, turn: int, flips: bool) -> np.ndarray:
    turned = _turn(x, -turn)
    return turned[:, :, ::-1] if flips else turned
