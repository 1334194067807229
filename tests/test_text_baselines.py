# SPDX-License-Identifier: Apache-2.0
"""PJFNN, BPJFNN and APJFNN against numbers of the official code, and what padding may change."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from scorejax.models.text_baselines import APJFNN, BPJFNN, PJFNN
from tests.official import assert_agrees

VOCABULARY, WIDTH = 30, 8
NETWORKS = {
    name: network(VOCABULARY, WIDTH)
    for name, network in {"pjfnn": PJFNN, "bpjfnn": BPJFNN, "apjfnn": APJFNN}.items()
}
RUN = {name: jax.jit(net.apply) for name, net in NETWORKS.items()}
# Official prefix -> ours: linear maps without and with bias, then LSTMs, by network.
LINEAR = {
    "pjfnn": {"mlp.net.0": "match/hidden", "mlp.net.2": "match/out"},
    "bpjfnn": {"mlp.net.0": "match/hidden", "mlp.net.2": "match/out"},
    "apjfnn": {
        "mlp.net.0": "match/hidden",
        "mlp.net.2": "match/out",
        "job_layer.attn1.attn.0": "job_words_attention/hidden",
        "job_layer.attn1.attn.2": "job_words_attention/score",
        "job_layer.attn2.attn.0": "job_attention/hidden",
        "job_layer.attn2.attn.2": "job_attention/score",
        "geek_layer.co_attn.W": "co_attention/words",
        "geek_layer.co_attn.U": "co_attention/sentences",
        "geek_layer.co_attn.attn.1": "co_attention/score",
        "geek_layer.self_attn.attn.0": "resume_attention/hidden",
        "geek_layer.self_attn.attn.2": "resume_attention/score",
    },
}
LSTMS = {
    "pjfnn": {},
    "bpjfnn": {"geek_biLSTM": "resume", "job_biLSTM": "job"},
    "apjfnn": {
        "geek_biLSTM": "resume_words",
        "job_biLSTM": "job_words",
        "job_layer.biLSTM": "job_sentences",
        "geek_layer.biLSTM": "resume_sentences",
    },
}


def variables_of(file, name):
    """The official tensors as our variables; a tensor that is not used fails the test."""
    prefix = f"params/{name}."
    state = {k.removeprefix(prefix): v for k, v in file.items() if k.startswith(prefix)}
    flat = {"params/words/embed/embedding": state.pop("emb.weight")}
    for official, ours in LINEAR[name].items():
        flat[f"params/{ours}/kernel"] = state.pop(f"{official}.weight").T
        if f"{official}.bias" in state:
            flat[f"params/{ours}/bias"] = state.pop(f"{official}.bias")
    for official, ours in LSTMS[name].items():
        for end, direction in (("", "forward"), ("_reverse", "backward")):
            at, get = f"params/{ours}/{direction}", lambda k, o=official, e=end: state.pop(
                f"{o}.{k}_l0{e}"
            )  # fmt: skip
            flat[f"{at}/input/kernel"] = get("weight_ih").T
            flat[f"{at}/kernel"] = get("weight_hh").T
            flat[f"{at}/input/bias"] = get("bias_ih").astype(float) + get("bias_hh")
    for side, ours in (("geek", "resume"), ("job", "job")) if name == "pjfnn" else ():
        for i in (0, 1):
            layer = f"{side}_layer.net{i + 1}"
            flat[f"params/{ours}/kernel_{i}"] = state.pop(f"{layer}.0.weight").transpose(2, 3, 1, 0)
            flat[f"params/{ours}/bias_{i}"] = state.pop(f"{layer}.0.bias")
            flat[f"params/{ours}/norm_{i}/scale"] = state.pop(f"{layer}.1.weight")
            flat[f"params/{ours}/norm_{i}/bias"] = state.pop(f"{layer}.1.bias")
            flat[f"batch_stats/{ours}/norm_{i}/mean"] = state.pop(f"{layer}.1.running_mean")
            flat[f"batch_stats/{ours}/norm_{i}/var"] = state.pop(f"{layer}.1.running_var")
            flat[f"batch_stats/{ours}/norm_{i}/count"] = state.pop(f"{layer}.1.num_batches_tracked")
    assert not state, f"not used: {sorted(state)}"
    to_ours = lambda a: jnp.asarray(a, int if np.issubdtype(a.dtype, np.integer) else float)
    return unflatten_dict({k: to_ours(v) for k, v in flat.items()}, sep="/")


def documents(file, name):
    ending = "_flat" if name == "bpjfnn" else ""
    return jnp.asarray(file[f"in/geek{ending}"]), jnp.asarray(file[f"in/job{ending}"])


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_are_those_of_the_official_code(golden, precision, name):
    file = golden("h_textnets")
    logits = RUN[name](variables_of(file, name), *documents(file, name))
    assert_agrees(logits, file, "pjfnn_eval" if name == "pjfnn" else name, precision)


def test_pjfnn_in_training_is_the_official_one(golden, precision):
    file = golden("h_textnets")
    net, options = NETWORKS["pjfnn"], {"train": True, "mutable": ["batch_stats"]}
    train = jax.jit(functools.partial(net.apply, **options))
    logits, moved = train(variables_of(file, "pjfnn"), *documents(file, "pjfnn"))
    assert_agrees(logits, file, "pjfnn_train", precision)
    counts = [int(side["norm_0"]["count"]) for side in moved["batch_stats"].values()]
    assert counts == [8, 8]  # 7 in the file


@pytest.mark.parametrize("name", NETWORKS)
def test_our_variables_have_the_names_and_shapes_of_the_official_ones(golden, name):
    # Reads that all of ours are in the file: `variables_of` reads that all of the file's are ours.
    file = golden("h_textnets")
    ours = jax.eval_shape(lambda: NETWORKS[name].init(jax.random.key(0), *documents(file, name)))
    shapes = lambda tree: jax.tree.map(lambda leaf: leaf.shape, dict(tree))
    assert shapes(ours) == shapes(variables_of(file, name))


@pytest.mark.deep
@pytest.mark.parametrize("name", ["bpjfnn", "apjfnn"])
def test_padding_changes_no_logit(golden, x64, name):
    # The sums have the same terms and zeros: equal to rounding in double precision.
    file = golden("h_textnets")
    variables, (resume, job) = variables_of(file, name), documents(file, name)
    resume, job = resume.at[..., 15:].set(0), job.at[..., 12:].set(0)
    cut = resume[..., :15], job[..., :12]
    if name == "apjfnn":
        resume, job = resume.at[:, 3].set(0), job.at[:, 3:].set(0)
        cut = cut[0][:, :3], cut[1][:, :3]
    np.testing.assert_allclose(RUN[name](variables, resume, job), RUN[name](variables, *cut), 1e-12)


@pytest.mark.deep
@pytest.mark.parametrize("name", ["bpjfnn", "apjfnn"])
def test_an_empty_document_has_a_logit_and_a_gradient(golden, name):
    file = golden("h_textnets")
    variables, (resume, job) = variables_of(file, name), documents(file, name)
    resume, job = resume[:2, ..., :3].at[0].set(0), job[:2, ..., :3].at[1].set(0)
    total = jax.jit(jax.value_and_grad(lambda v: jnp.sum(RUN[name](v, resume, job))))
    value, gradient = total(variables)
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))


def test_pjfnn_refuses_sentences_that_its_convolutions_eat():
    ids = jnp.ones((1, 2, 13), int)
    with pytest.raises(ValueError, match="14 in jobs; got 13 and 13"):
        PJFNN(VOCABULARY, WIDTH).init(jax.random.key(0), ids, ids)
