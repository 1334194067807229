# SPDX-License-Identifier: Apache-2.0
"""Weights of BERT as the transformers library writes them, and with them those of MiniLM.

The official tensors are named by module: `encoder.layer.0.attention.self.query.weight`. A model for
pre-training has them below `bert.`, and heads of its own beside them. Files converted from
TensorFlow call scale and bias of a normalisation `gamma` and `beta`.
Source of the names: the published `BertModel` and `BertConfig`; Devlin et al. 2019,
arXiv:1810.04805.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from scorejax.choices import choose, require_known
from scorejax.interop.tensors import (
    LINEAR,
    Correspondence,
    Match,
    affine,
    arrays_by_name,
    correspond,
    fill,
    norm,
    official_tensors,
)
from scorejax.models.bert import Bert

ARCHITECTURES = ("huggingface/bert",)
"""Names of the networks whose weights `load_torch` of this module loads."""

_OPTIONS = {
    "vocab_size": "vocab_size", "hidden_size": "width", "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads", "intermediate_size": "hidden",
    "max_position_embeddings": "max_length", "type_vocab_size": "num_types",
    "layer_norm_eps": "epsilon",
}  # fmt: skip
"""Keys of config.json -> options of `Bert`, whose defaults are the official ones."""
_FIXED = {
    "model_type": ("bert",), "hidden_act": ("gelu",), "position_embedding_type": ("absolute",),
    "is_decoder": (False,), "add_cross_attention": (False,), "is_encoder_decoder": (False,),
}  # fmt: skip
"""Keys that would make another network, and the values that make this one."""
_OTHER_SETTINGS = (
    "_name_or_path", "_num_labels", "architectures", "attention_probs_dropout_prob",
    "bos_token_id", "chunk_size_feed_forward", "classifier_dropout", "directionality", "dtype",
    "eos_token_id", "finetuning_task", "gradient_checkpointing", "hidden_dropout_prob", "id2label",
    "initializer_range", "label2id", "num_labels", "output_attentions", "output_hidden_states",
    "output_past", "pad_token_id", "pooler_fc_size", "pooler_num_attention_heads",
    "pooler_num_fc_layers", "pooler_size_per_head", "pooler_type", "problem_type", "return_dict",
    "tie_word_embeddings", "torch_dtype", "transformers_version", "use_cache",
)  # fmt: skip
"""Keys of tokens, of training and of tasks."""
_UNUSED = re.compile(r"(pooler|cls)\.|embeddings\.position_ids$")
"""Tensors of the pooler, of the heads of pre-training, and the numbers 0, 1, ... of positions."""


def load_torch(
    architecture: str, state_dict: Mapping[str, np.ndarray], **hyper: Any
) -> tuple[nn.Module, dict]:
    """The module and its variables: (token_ids, mask[, type_ids]) (b, t) -> states (b, t, d).

    `hyper` holds the keys of the official config.json; those that are absent have the official
    defaults. Prefixes `bert.` and `module.` are dropped; pooler and heads of pre-training are not
    loaded.

    Raises: ValueError for an unknown setting, one that makes another network, and for tensors that
    do not fit.
    """
    net = build(architecture, hyper)
    state = arrays_by_name(
        {re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name)): array
         for name, array in state_dict.items()},
        prefixes=("module.", "bert."),
    )  # fmt: skip
    unused = {name for name in state if _UNUSED.match(name)}
    table = correspondence(net)._replace(tolerated=unused)
    return net, {"params": fill(architecture, state, table)}


def export_torch(
    architecture: str, variables: Mapping[str, Any], **hyper: Any
) -> dict[str, np.ndarray]:
    """The official tensors, without prefix: `load_torch` undone, exactly. Raises: as it does."""
    table = correspondence(build(architecture, hyper))
    return official_tensors(architecture, variables["params"], table)


def build(architecture: str, hyper: Mapping[str, Any]) -> Bert:
    """The network that a config.json describes. Raises: ValueError as `load_torch`."""
    for key, value in hyper.items():
        require_known("setting", key, (*_OPTIONS, *_FIXED, *_OTHER_SETTINGS))
        if key in _FIXED:
            choose(key, value, dict.fromkeys(_FIXED[key]))
    return Bert(**{_OPTIONS[key]: value for key, value in hyper.items() if key in _OPTIONS})


def correspondence(net: Bert) -> Correspondence:
    """Pairs the official tensors with the parameters of a network."""
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    init = lambda tokens, mask: net.init(jax.random.key(0), tokens, mask)["params"]
    shapes = flatten_dict(jax.eval_shape(init, tokens, tokens), sep="/")
    return correspond(_walk(net), {path: leaf.shape for path, leaf in shapes.items()})


_LAYER = {
    "query": "attention.self.query.", "key": "attention.self.key.",
    "value": "attention.self.value.", "out": "attention.output.dense.",
    "mlp_0": "intermediate.dense.", "mlp_1": "output.dense.",
}  # fmt: skip
_LAYER_NORMS = {"attention_norm": "attention.output.LayerNorm.", "mlp_norm": "output.LayerNorm."}


def _walk(net: Bert) -> Iterator[Match]:
    """Matches in the official order of the embeddings, then layer by layer."""
    tables = {"words": "word", "positions": "position", "types": "token_type"}
    for ours, theirs in tables.items():
        yield Match(f"embeddings.{theirs}_embeddings.weight", f"{ours}/embedding")
    yield from norm("embeddings.LayerNorm.", "norm/")
    for i in range(net.num_layers):
        official, ours = f"encoder.layer.{i}.", f"layer_{i}/"
        for name, theirs in _LAYER.items():
            yield from affine(f"{official}{theirs}", f"{ours}{name}/", LINEAR)
        for name, theirs in _LAYER_NORMS.items():
            yield from norm(f"{official}{theirs}", f"{ours}{name}/")
