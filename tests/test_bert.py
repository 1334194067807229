# SPDX-License-Identifier: Apache-2.0
"""BERT against PyTorch's, its published names and sizes, and the indifference to padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorejax import interop
from scorejax.models.bert import Bert
from scorejax.models.transformer import masked_mean
from tests.huggingface_bert import TINY, tiny_network
from tests.official import assert_agrees

BERT = "huggingface/bert"


@pytest.fixture(scope="module")
def file(golden):
    return golden("bert_tiny")


def state_of(file):
    return {key.removeprefix("params/"): file[key] for key in file if key.startswith("params/")}


def states(state, file, **changes):
    net, variables = interop.load_torch(BERT, state, **TINY)
    inputs = {name: jnp.asarray(file[f"in/{name}"]) for name in ("ids", "mask", "types")} | changes
    return jax.jit(net.apply)(variables, *inputs.values())


def test_states_are_those_of_pytorch(file, precision):
    # Tolerances are those of the file: ten times what PyTorch loses in single precision, 1e-6 at
    # most; and 1e-8 in double precision.
    assert file["tol/states"].max() < 1e-5
    assert_agrees(states(state_of(file), file), file, "states", precision)


def test_tokens_without_types_have_type_zero(file):
    explicit = states(state_of(file), file, types=jnp.zeros((3, 11), int))
    np.testing.assert_array_equal(states(state_of(file), file, types=None), explicit)


def test_the_golden_states_are_what_pytorch_computes(file):
    pytest.importorskip("transformers")
    for name, array in tiny_network().items():
        # Another build of PyTorch may sum in another order.
        atol = 1e-10 if name.startswith("out64") else 0
        if not name.startswith("tol"):
            np.testing.assert_allclose(file[name], array, rtol=0, atol=atol, err_msg=name)


def as_pretrained(state):
    """As files of pre-training name and complete the tensors, converted from TensorFlow."""
    renamed = {
        f"module.bert.{name}".replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): array
        for name, array in state.items()
    }
    extra = {
        "module.bert.embeddings.position_ids": np.arange(40)[None],
        "module.bert.pooler.dense.weight": np.ones((32, 32), np.float32),
        "module.cls.predictions.bias": np.ones(60, np.float32),
    }
    return extra | renamed


def test_names_of_all_published_kinds_give_the_same_parameters(file):
    state = state_of(file)
    plain = interop.load_torch(BERT, state, **TINY)
    pretrained = interop.load_torch(BERT, as_pretrained(state), **TINY)
    assert plain[0] == pretrained[0]
    jax.tree.map(np.testing.assert_array_equal, plain[1], pretrained[1])
    exported = interop.export_torch(BERT, plain[1], **TINY)
    assert exported.keys() == state.keys()
    for name, array in exported.items():
        np.testing.assert_array_equal(array, state[name], err_msg=name)


@pytest.mark.parametrize(
    ("change", "hyper", "message"),
    [
        (
            {"encoder.layer.1.output.dense.bias": None},
            {},
            "1 missing, first encoder.layer.1.output",
        ),
        (
            {"encoder.layer.2.output.dense.bias": np.ones(32)},
            {},
            "1 surplus, first encoder.layer.2",
        ),
        ({}, {"hidden_size": 48}, r"misshapen, first .* \(60, 32\) for \(60, 48\)"),
        ({}, {"num_hidden_layers": 1}, "16 surplus, first encoder.layer.1"),
        ({"embeddings.LayerNorm.bias": np.full(32, np.nan)}, {}, "1 with numbers that are not fin"),
        ({}, {"hiden_size": 32}, "unknown setting 'hiden_size': did you mean 'hidden_size'"),
        ({}, {"hidden_act": "gelu_new"}, "unknown hidden_act 'gelu_new': did you mean 'gelu'"),
        ({}, {"position_embedding_type": "relative_key"}, "known: absolute"),
        ({}, {"model_type": "roberta"}, "unknown model_type 'roberta'.*known: bert"),
        ({}, {"num_attention_heads": 5}, "num_heads needs to divide width=32; got num_heads=5"),
        ({}, {"num_hidden_layers": 0}, "num_layers needs to be at least 1; got 0"),
        ({"bert.embeddings.LayerNorm.bias": np.ones(32)}, {}, "twice"),
    ],
)
def test_what_does_not_fit_is_named_in_one_line(file, change, hyper, message):
    state = {k: a for k, a in (state_of(file) | change).items() if a is not None}
    with pytest.raises(ValueError, match=message) as raised:
        interop.load_torch(BERT, state, **TINY | hyper)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("net", "published", "pooler"),
    [
        (Bert(), 109_482_240, 768 * 769),
        (Bert(width=1024, num_layers=24, num_heads=16, hidden=4096), 335_141_888, 1024 * 1025),
        (Bert(vocab_size=21_128), 102_267_648, 768 * 769),
        (Bert(width=384, num_layers=6, hidden=1536), 22_713_216, 384 * 385),
    ],
    ids=["base", "large", "chinese", "MiniLM"],
)
def test_published_sizes(net, published, pooler):
    # Counted by PyTorch for BertModel; with a pooler, which we do not have.
    tokens = jax.ShapeDtypeStruct((2, 512), "int32")
    made, variables = jax.eval_shape(net.init_with_output, jax.random.key(0), tokens, tokens)
    assert made.shape == (2, 512, net.width)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == published - pooler


def test_padding_changes_no_state_of_a_token(file):
    # Weights of padding are exactly zero; sums of another length round otherwise, by 1e-7 of
    # states that are about 1.
    ids, mask = file["in/ids"], file["in/mask"] > 0
    padded = np.full((3, 24), 59, np.int32), np.zeros((3, 24), bool)
    for longer, short in zip(padded, (ids, mask), strict=True):
        longer[:, :11] = np.where(mask, short, longer[:, :11])
    state = state_of(file)
    short = np.asarray(states(state, file, types=None))
    long = np.asarray(states(state, file, ids=padded[0], mask=padded[1], types=None))
    np.testing.assert_allclose(long[:, :11][mask], short[mask], rtol=0, atol=1e-6)
    pooled = masked_mean(short, mask), masked_mean(long, padded[1])
    np.testing.assert_allclose(*pooled, rtol=0, atol=1e-6)
    expected = [row[:count].mean(axis=0) for row, count in zip(short, mask.sum(1), strict=True)]
    np.testing.assert_allclose(pooled[0], expected, rtol=0, atol=1e-6)


def test_a_row_without_tokens_is_finite_and_has_mean_zero(file):
    mask = (file["in/mask"] > 0) & np.array([[True], [False], [True]])
    computed = states(state_of(file), file, mask=jnp.asarray(mask))
    assert np.isfinite(computed).all()
    np.testing.assert_array_equal(masked_mean(computed, mask)[1], 0)


def test_too_many_tokens_are_refused():
    tokens = jax.ShapeDtypeStruct((1, 41), "int32")
    net = Bert(vocab_size=60, width=32, num_layers=1, num_heads=4, hidden=64, max_length=40)
    with pytest.raises(ValueError, match="at most 40 tokens; got 41"):
        jax.eval_shape(net.init, jax.random.key(0), tokens, tokens)
