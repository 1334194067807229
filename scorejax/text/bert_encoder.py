# SPDX-License-Identifier: Apache-2.0
"""Encodes sentences by a published BERT: the mean of its states over tokens, of length one.

The tokenizer is that of the package `tokenizers`, read from the model's own tokenizer.json, so that
a BERT of any language can be loaded. Source: Reimers & Gurevych 2019, arXiv:1908.10084.
"""

import dataclasses
import functools
import hashlib
import importlib.util
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from scorejax import interop
from scorejax.choices import require
from scorejax.models.bert import Bert
from scorejax.models.transformer import Mask, masked_mean
from scorejax.typing import PyTree

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FILES = ("config.json", "model.safetensors", "tokenizer.json")
INSTALL = "pip install tokenizers"
SHORTEST = 16
"""Padded length in tokens of the shortest sentences; longer ones have 32, 64, ... tokens."""


@dataclasses.dataclass(frozen=True, eq=False)
class BertEncoder:
    """A `SentenceEncoder`: sentences are cut after `max_length` tokens.

    Sentences of similar length share a batch of `tokens_per_batch` tokens, padding included. There
    is one compiled program for each padded length.
    """

    network: Bert
    variables: PyTree
    tokenizer: "Tokenizer"
    checksum: str
    max_length: int
    tokens_per_batch: int = 1024

    @property
    def dim(self) -> int:
        return self.network.width

    def encode(self, sentences: Sequence[str]) -> Float32[np.ndarray, "n dim"]:
        tokens = [encoded.ids for encoded in self.tokenizer.encode_batch(list(sentences))]
        counts = np.array([len(ids) for ids in tokens], int)
        vectors = np.empty((len(tokens), self.dim), np.float32)
        started = []
        for rows, length in batches(counts, self.max_length, self.tokens_per_batch):
            shape = max(self.tokens_per_batch // length, 1), length
            ids, mask = np.zeros(shape, np.int32), np.zeros(shape, bool)
            for i, row in enumerate(rows):
                ids[i, : counts[row]], mask[i, : counts[row]] = tokens[row], True
            started.append((rows, sentence_vectors(self.network, self.variables, ids, mask)))
        for rows, computed in started:  # while one is copied, the next is computed
            vectors[rows] = computed[: len(rows)]
        return vectors


def batches(
    counts: Int[np.ndarray, "n"], max_length: int, tokens_per_batch: int
) -> Iterator[tuple[Int[np.ndarray, "rows"], int]]:
    """Yields the rows of each batch and their padded length, for sentences of `counts` tokens.

    Every batch but the last is full: rows that do not fill one join the next, which is longer.
    """
    order, start, length = np.argsort(counts, kind="stable"), 0, min(SHORTEST, max_length)
    while start < len(order):
        fitting = int(np.sum(counts <= length))
        size = max(tokens_per_batch // length, 1)
        while start + size <= fitting or start < fitting == len(order):
            yield order[start : start + size], length
            start += size
        length = min(2 * length, max_length)


@functools.partial(jax.jit, static_argnums=0)
def sentence_vectors(
    network: Bert, variables: PyTree, token_ids: Int[Array, "b t"], mask: Mask
) -> Float[Array, "b d"]:
    """Mean states of the tokens, divided by their lengths; zero for rows without a token.

    Products are computed in float32, so that vectors of all devices agree.
    """
    with jax.default_matmul_precision("highest"):
        mean = masked_mean(network.apply(variables, token_ids, mask), mask)
    return mean / jnp.maximum(jnp.linalg.norm(mean, axis=1, keepdims=True), 1e-12)


def load(path: str | os.PathLike, *, max_length: int | None = None) -> BertEncoder:
    """The encoder in a folder with config.json, model.safetensors and tokenizer.json.

    States are averaged over tokens, whatever other files in the folder say of the model's pooling.
    By default sentences are cut after 256 tokens, or what the network takes if that is less.

    Raises: FileNotFoundError that names the missing file; ValueError with one line if `tokenizers`
    is not installed, the files do not fit each other, or `max_length` is not in 2 .. the longest
    that the network takes.
    """
    folder = pathlib.Path(path)
    for name in FILES:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} has no {name}; it needs {', '.join(FILES)}.")
    try:
        config = json.loads((folder / "config.json").read_text())
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'} is no JSON: {error}") from None
    if not isinstance(config, dict):
        kind = type(config).__name__
        raise ValueError(f"{folder / 'config.json'} needs a mapping; it holds a {kind}")
    network, variables = interop.load_checkpoint(
        "huggingface/bert", folder / "model.safetensors", averaged=False, **config
    )
    longest = network.max_length
    max_length = min(256, longest) if max_length is None else max_length
    require(
        {"max_length": max_length}, ("max_length",), lambda v: 2 <= v <= longest,
        f"to lie in 2 .. {longest}",
    )  # fmt: skip
    tokenizer = _tokenizer(folder / "tokenizer.json", max_length)
    if tokenizer.get_vocab_size() > network.vocab_size:
        raise ValueError(
            f"{folder / 'tokenizer.json'} has {tokenizer.get_vocab_size()} tokens; the network "
            f"knows {network.vocab_size}"
        )
    digest = hashlib.sha256(f"mean of states, length 1, {max_length} tokens".encode())
    for name in FILES:
        with (folder / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return BertEncoder(network, variables, tokenizer, digest.hexdigest(), max_length)


def _tokenizer(path: pathlib.Path, max_length: int) -> "Tokenizer":
    if importlib.util.find_spec("tokenizers") is None:
        raise ValueError(f"the words of BERT need tokenizers, which is not installed: {INSTALL}")
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # of no narrower class
        raise ValueError(f"{path} holds no tokenizer: {error}") from None
    tokenizer.enable_truncation(max_length)  # the file may have settings of its own
    tokenizer.no_padding()
    return tokenizer
