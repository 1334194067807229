# SPDX-License-Identifier: Apache-2.0
"""Adversarial attacks on classifiers of inputs in [0, 1].

Functions of (logits_fn, x, label), pure and fit for `jax.jit`. If the classifier treats rows
independently so does an attack: a row's result is a function of that row and its own key.
"""
