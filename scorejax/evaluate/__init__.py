# SPDX-License-Identifier: Apache-2.0
"""How good the samples and the densities are: distances, copies, pictures."""
