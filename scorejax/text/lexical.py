# SPDX-License-Identifier: Apache-2.0
"""Text by the words in it: TF-IDF and BM25 scores, and a sentence encoder that needs no weights.

A word is a run of letters and digits in small letters, with "+" and "#" behind it ("c++", "c#"); a
Chinese or Japanese character is a word of its own.
"""

import dataclasses
import functools
import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse
from jaxtyping import Float32

from scorejax.choices import require

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import CountVectorizer

_CHARACTERS = r"\u3040-\u30ff\u3400-\u9fff"
_WORD = re.compile(rf"[{_CHARACTERS}]|[^\W_{_CHARACTERS}]+[+#]*")
MAX_WORDS = 50_000
"""Words that an encoder knows: the most frequent ones."""


def words(text: str) -> list[str]:
    """The words of a text in their order, with repetitions."""
    return _WORD.findall(text.lower())


@dataclasses.dataclass(frozen=True, eq=False)
class LexicalEncoder:
    """A `SentenceEncoder`: TF-IDF weights, projected on principal directions, of length one.

    Words beyond the vocabulary are ignored; a sentence that has no other has the vector zero.
    """

    vocabulary: tuple[str, ...]
    idf: Float32[np.ndarray, "v"]
    components: Float32[np.ndarray, "dim v"]

    @property
    def dim(self) -> int:
        return len(self.components)

    @functools.cached_property
    def checksum(self) -> str:
        digest = hashlib.sha256(b"TF-IDF and SVD")
        for name, array in sorted(self.arrays().items()):
            digest.update(f"{name}{array.shape}".encode() + array.tobytes())
        return digest.hexdigest()

    def encode(self, sentences: Sequence[str]) -> Float32[np.ndarray, "n dim"]:
        counts = self._counter.transform(sentences)
        projected = _unit_rows(counts.multiply(self.idf)) @ self.components.T
        norms = np.linalg.norm(projected, axis=1, keepdims=True)
        # Of a sentence orthogonal to all directions nothing is left but rounding.
        return np.where(norms > 1e-6, projected / np.maximum(norms, 1e-6), 0).astype(np.float32)

    def arrays(self) -> dict[str, np.ndarray]:
        """Plain arrays from which `from_arrays` makes the encoder again, bit for bit."""
        text = np.frombuffer("\n".join(self.vocabulary).encode(), np.uint8)
        return {"vocabulary": text, "idf": self.idf, "components": self.components}

    @functools.cached_property
    def _counter(self) -> "CountVectorizer":
        return _counter(vocabulary=self.vocabulary)


def from_arrays(arrays: Mapping[str, np.ndarray]) -> LexicalEncoder:
    """The encoder that `LexicalEncoder.arrays` describes. Raises: ValueError if they do not fit."""
    names = ("vocabulary", "idf", "components")
    if not set(names) <= set(arrays):
        raise ValueError(
            f"an encoder needs the arrays {', '.join(names)}; got {', '.join(arrays) or 'none'}"
        )
    vocabulary = tuple(np.asarray(arrays["vocabulary"]).tobytes().decode().split("\n"))
    idf, components = (np.asarray(arrays[name], np.float32) for name in names[1:])
    if not len(vocabulary) == len(idf) == components.shape[-1]:
        raise ValueError(
            f"an encoder needs a weight and a column for each word; got {len(vocabulary)} words, "
            f"idf {idf.shape} and components {components.shape}"
        )
    return LexicalEncoder(vocabulary, idf, components)


def fit(sentences: Sequence[str], dim: int = 256) -> LexicalEncoder:
    """Fits the encoder: inverse document frequencies, and the `dim` first right singular vectors.

    There are fewer dimensions if there are fewer sentences or words. The same sentences give the
    same encoder. Raises: ValueError if no sentence holds a word.
    """
    from sklearn.utils.extmath import randomized_svd

    require({"dim": dim}, ("dim",), lambda v: v >= 1, "to be at least 1")
    counter = _counter(max_features=MAX_WORDS)
    counts = _counted(counter, sentences, "sentences")
    idf = _smooth_idf(counts)
    weights = _unit_rows(counts.multiply(idf))
    rank = min(dim, *weights.shape)
    components = randomized_svd(weights, n_components=rank, random_state=0)[2]
    names = tuple(map(str, counter.get_feature_names_out()))
    return LexicalEncoder(names, idf.astype(np.float32), components.astype(np.float32))


def tfidf_scores(queries: Sequence[str], documents: Sequence[str]) -> Float32[np.ndarray, "q d"]:
    """Cosines of TF-IDF weights, tf (1 + ln((1 + n) / (1 + df))), with df of the n documents.

    Raises: ValueError if no document holds a word.
    """
    counter = _counter()
    counts = _counted(counter, documents, "documents")
    idf = _smooth_idf(counts)
    weigh = lambda counts: _unit_rows(counts.multiply(idf))
    return _products(weigh(counter.transform(queries)), weigh(counts))


def bm25_scores(
    queries: Sequence[str], documents: Sequence[str], *, k1: float = 1.5, b: float = 0.75
) -> Float32[np.ndarray, "q d"]:
    """Scores of BM25 in the variant of Lucene, which `bm25s` has for its default.

    The sum over the words of a query, as often as each occurs in it, of
    ln(1 + (n - df + 1/2) / (df + 1/2)) tf / (tf + k1 (1 - b + b length / mean length)),
    with df of the n documents, tf in a document, and lengths in words.
    Raises: ValueError if no document holds a word.
    Source: Robertson & Zaragoza 2009; Kamphuis et al. 2020, ECIR, "Which BM25 do you mean?".
    """
    require({"k1": k1}, ("k1",), lambda v: v >= 0, "to be at least 0")
    require({"b": b}, ("b",), lambda v: 0 <= v <= 1, "to lie in [0, 1]")
    counter = _counter()
    counts = _counted(counter, documents, "documents")
    df, lengths = counts.getnnz(axis=0), np.asarray(counts.sum(axis=1)).ravel()
    idf = np.log1p((len(lengths) - df + 0.5) / (df + 0.5))
    saturation = k1 * (1 - b + b * lengths / lengths.mean())
    weights = counts.tocoo()
    weights.data = weights.data / (weights.data + saturation[weights.row]) * idf[weights.col]
    return _products(counter.transform(queries), weights)


def _counter(**options: object) -> "CountVectorizer":
    from sklearn.feature_extraction.text import CountVectorizer  # Imported here: it takes a second.

    return CountVectorizer(analyzer=words, dtype=np.float64, **options)


def _counted(
    counter: "CountVectorizer", texts: Sequence[str], name: str
) -> scipy.sparse.csr_matrix:
    """Counts (n, v) of words; the counter learns them. Raises: ValueError if there are none."""
    if not any(map(words, texts)):
        raise ValueError(f"{name} need a word in them; got {len(texts)} without any")
    return counter.fit_transform(texts)


def _smooth_idf(counts: scipy.sparse.csr_matrix) -> np.ndarray:
    return 1 + np.log((1 + counts.shape[0]) / (1 + counts.getnnz(axis=0)))


def _unit_rows(weights: scipy.sparse.spmatrix) -> scipy.sparse.csr_matrix:
    norms = np.sqrt(np.asarray(weights.multiply(weights).sum(axis=1)))
    return weights.multiply(1 / np.where(norms > 0, norms, 1)).tocsr()


def _products(a: scipy.sparse.spmatrix, b: scipy.sparse.spmatrix) -> Float32[np.ndarray, "q d"]:
    return (a.astype(np.float32) @ b.astype(np.float32).T).toarray()
