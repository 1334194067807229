# SPDX-License-Identifier: Apache-2.0
"""Text as vectors: sentences, encoders of sentences, their vectors on disk, and word counts."""
