# SPDX-License-Identifier: Apache-2.0
"""Detection of a classifier's failures from its features and logits. High scores mean normal."""
