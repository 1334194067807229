# SPDX-License-Identifier: Apache-2.0
"""Published weights, loaded into our networks."""

from scorejax.interop.torch_weights import load_torch

__all__ = ["load_torch"]
