# SPDX-License-Identifier: Apache-2.0
"""scorejax: score-based generative modelling and density methods in JAX."""

__version__ = "0.1.0.dev0"
