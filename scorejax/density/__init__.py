# SPDX-License-Identifier: Apache-2.0
"""Densities of vectors behind one face, and densities learned without their normaliser.

Modules `gaussian`, `gaussian_mixture`, `made`, `maf`, `realnvp` and `score_flow` each have
`fit(rng, x, **options) -> params`, `log_prob(params, x) -> nats` and `sample(rng, params, num)`.
"""
