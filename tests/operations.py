# SPDX-License-Identifier: Apache-2.0
"""Number of multiplications of a traced program, in the branches that it takes."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.extend.core import ClosedJaxpr, Literal

CALLS = ("jaxpr", "call_jaxpr", "fun_jaxpr")


def multiplications(program: ClosedJaxpr, inputs: Sequence[Any]) -> int:
    """Products summed in matrix products and convolutions; `inputs` may be None where unknown.

    Predicates of `cond` need to follow from known scalars. There are no loops.
    """
    return _walk(program.jaxpr, program.consts, inputs)[0]


def _walk(jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Any]) -> tuple[int, list[Any]]:
    known = dict(zip(jaxpr.constvars, consts, strict=True))
    known |= dict(zip(jaxpr.invars, inputs, strict=True))
    read = lambda atom: atom.val if isinstance(atom, Literal) else known.get(atom)
    total = 0
    for eqn in jaxpr.eqns:
        values = [read(atom) for atom in eqn.invars]
        outputs: list[Any] = [None] * len(eqn.outvars)
        inner = next((eqn.params[name] for name in CALLS if name in eqn.params), None)
        if eqn.primitive.name == "cond":
            inner = eqn.params["branches"][int(values[0])]
            values = values[1:]
        assert eqn.primitive.name not in ("scan", "while")
        if isinstance(inner, ClosedJaxpr):
            count, outputs = _walk(inner.jaxpr, inner.consts, values)
            total += count
        elif eqn.primitive.name in ("dot_general", "conv_nhwc"):
            total += _products(eqn)
        elif all(value is not None and np.ndim(value) == 0 for value in values) and values:
            bound = eqn.primitive.bind(*values, **eqn.params)
            outputs = list(bound) if eqn.primitive.multiple_results else [bound]
        known |= dict(zip(eqn.outvars, outputs, strict=True))
    return total, [read(atom) for atom in jaxpr.outvars]


def _products(eqn: Any) -> int:
    """Products per output times the number of outputs."""
    (left, right), out = (atom.aval.shape for atom in eqn.invars), eqn.outvars[0].aval.shape
    if eqn.primitive.name == "conv_nhwc":
        return math.prod(out) * math.prod(right[:3])
    contracted = eqn.params["dimension_numbers"][0][0]
    return math.prod(out) * math.prod(left[axis] for axis in contracted)
