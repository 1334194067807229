# SPDX-License-Identifier: Apache-2.0
"""Networks: Flax linen modules with plain hyper-parameters, independent of SDEs and configs."""
