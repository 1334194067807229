# SPDX-License-Identifier: Apache-2.0
"""Documents as arrays, which training reads and does not change: the system's frozen arrays.

A document is a node; resumes come first, then jobs, then the documents of a later query.
"""

import functools
from collections.abc import Sequence

import flax.struct
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from scorejax.data.matching import Documents
from scorejax.models.relational_gcn import Edges
from scorejax.text import bert_encoder, lexical, minilm, vectors
from scorejax.text.encoders import SentenceEncoder

ENCODERS = ("lexical", "minilm", "bert")
UNKNOWN = 1
"""Id of a word that is not in the vocabulary; 0 pads."""


class Corpus(flax.struct.PyTreeNode):
    """n documents of at most s sentences; nodes of the resumes and of the jobs among them."""

    resumes: Int[Array, "r"]
    jobs: Int[Array, "j"]
    sentences: Float[Array, "n s d"]
    mask: Bool[Array, "n s"]
    edges: Edges | None = None
    words: Int[Array, "n s t"] | None = None
    """Ids of the words of each sentence, for networks that learn word vectors."""


def make_encoder(name: str, dim: int, folder: str, known: Sequence[Documents]) -> SentenceEncoder:
    """The encoder of sentences, one of `ENCODERS`; "bert" is that in a folder.

    "lexical" is fitted to the sentences of known documents, and has `dim` dimensions.
    Raises: ValueError as `minilm.load`, or without a folder; as `bert_encoder.load`.
    """
    if name == "minilm":
        return minilm.load()
    if name == "bert":
        if not folder:
            raise ValueError("set --config.encoder_dir to the folder of a BERT and its tokenizer")
        return bert_encoder.load(folder)
    documents = [doc for kind in known for doc in kind.sentences]
    return lexical.fit(distinct_sentences(documents), dim)


def distinct_sentences(documents: Sequence[Sequence[str]]) -> list[str]:
    """The sentences of all documents, each once, in order of appearance."""
    return list(dict.fromkeys(sentence for doc in documents for sentence in doc))


def sentence_arrays(
    kinds: Sequence[Documents], encoder: SentenceEncoder, max_sentences: int, directory: str = ""
) -> tuple[Float[np.ndarray, "n s d"], Bool[np.ndarray, "n s"]]:
    """Sentence vectors and mask of the documents of all kinds, the first `max_sentences` of each.

    Vectors are kept in `directory`, see `text.vectors`; "" keeps none.
    """
    documents = [doc[:max_sentences] for kind in kinds for doc in kind.sentences]
    unique = distinct_sentences(documents)
    keep = functools.partial(vectors.cached, encoder, directory=directory)
    encoded = (keep if directory else encoder.encode)(unique)
    row = {sentence: i for i, sentence in enumerate(unique)}
    arrays = np.zeros((len(documents), max_sentences, encoder.dim), np.float32)
    mask = np.zeros(arrays.shape[:2], bool)
    for i, doc in enumerate(documents):
        arrays[i, : len(doc)] = encoded[[row[s] for s in doc]]
        mask[i, : len(doc)] = True
    return arrays, mask


def vocabulary(known: Sequence[Documents], most: int) -> dict[str, int]:
    """Ids from 2 on of the `most` most frequent words; of equal ones the earlier."""
    counts: dict[str, int] = {}
    for kind in known:
        for doc in kind.sentences:
            for sentence in doc:
                for word in lexical.words(sentence):
                    counts[word] = counts.get(word, 0) + 1
    frequent = sorted(counts, key=lambda word: -counts[word])[:most]
    return {word: 2 + i for i, word in enumerate(frequent)}


def word_ids(
    kinds: Sequence[Documents], ids: dict[str, int], max_sentences: int, max_words: int
) -> Int[np.ndarray, "n s t"]:
    """Ids of the words of each sentence; longer documents and sentences are cut."""
    num = sum(map(len, kinds))
    rows = np.zeros((num, max_sentences, max_words), np.int32)
    for i, doc in enumerate(doc for kind in kinds for doc in kind.sentences):
        for k, sentence in enumerate(doc[:max_sentences]):
            found = [ids.get(word, UNKNOWN) for word in lexical.words(sentence)[:max_words]]
            rows[i, k, : len(found)] = found
    return rows
