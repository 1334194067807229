# SPDX-License-Identifier: Apache-2.0
"""Compilation of programs that run for longer than they take to compile."""

import functools

import jax

optimised_jit = functools.partial(
    jax.jit,
    compiler_options={"xla_backend_optimization_level": 2, "xla_cpu_use_fusion_emitters": True},
)
"""jax.jit with the optimisations that conftest.py turns off; for chains of many rows and steps."""
