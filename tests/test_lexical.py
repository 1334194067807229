# SPDX-License-Identifier: Apache-2.0
"""Scores by words against sums over the words of each pair, and the encoder against a dense SVD."""

import collections
import math

import numpy as np
import pytest

from scorejax.text import lexical

VOCABULARY = [
    "python", "java", "sql", "nurse", "ward", "care", "bread", "oven", "design", "web", "test",
    "team", "lead", "plan",
]  # fmt: skip


def corpus(seed, num, longest=30):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest, num)
    return [" ".join(rng.choice(VOCABULARY, length)) for length in lengths]


DOCUMENTS = [*corpus(0, 40), "", "Python python PYTHON", "unheard-of words"]
QUERIES = [*corpus(1, 12, longest=8), "", "python nobody wrote"]


def brute_force(queries, documents, score):
    """score(count in the query, tf, df, length, mean length, n), summed over words."""
    bags = [collections.Counter(lexical.words(text)) for text in documents]
    df = collections.Counter(word for bag in bags for word in bag)
    n, lengths = len(bags), [bag.total() for bag in bags]
    mean = sum(lengths) / n
    return [
        [
            sum(
                score(count, bag[word], df[word], length, mean, n)
                for word, count in collections.Counter(lexical.words(query)).items()
                if df[word]
            )
            for bag, length in zip(bags, lengths, strict=True)
        ]
        for query in queries
    ]


@pytest.mark.parametrize(("k1", "b"), [(1.5, 0.75), (0.9, 0.4), (1.2, 0.0), (0.0, 1.0)])
def test_bm25_is_the_sum_over_words(k1, b):
    def score(count, tf, df, length, mean, n):
        idf = math.log(1 + (n - df + 0.5) / (df + 0.5))
        return tf and count * idf * tf / (tf + k1 * (1 - b + b * length / mean))

    expected = brute_force(QUERIES, DOCUMENTS, score)
    found = lexical.bm25_scores(QUERIES, DOCUMENTS, k1=k1, b=b)
    assert found.shape == (14, 43) and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)  # float32, 8 words at most


def test_bm25_is_that_of_bm25s():
    bm25s = pytest.importorskip("bm25s")
    index = bm25s.BM25()  # its default: Lucene's variant, k1 = 1.5, b = 0.75
    index.index([lexical.words(text) for text in DOCUMENTS], show_progress=False)
    expected = [index.get_scores(lexical.words(query)) for query in QUERIES if query]
    found = lexical.bm25_scores([query for query in QUERIES if query], DOCUMENTS)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)  # both in float32


def tfidf(texts, documents):
    """Unit rows of weights, dense, by the formula of the docstring."""
    n = len(documents)
    known = sorted({word for text in documents for word in lexical.words(text)})
    df = np.array([sum(word in lexical.words(text) for text in documents) for word in known])
    counts = [[lexical.words(text).count(word) for word in known] for text in texts]
    weights = np.array(counts) * (1 + np.log((1 + n) / (1 + df)))
    return weights / np.maximum(np.linalg.norm(weights, axis=1, keepdims=True), 1e-300)


def test_tfidf_scores_are_cosines():
    expected = tfidf(QUERIES, DOCUMENTS) @ tfidf(DOCUMENTS, DOCUMENTS).T
    found = lexical.tfidf_scores(QUERIES, DOCUMENTS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)  # float32, of at most 1
    np.testing.assert_allclose(
        np.diag(lexical.tfidf_scores(DOCUMENTS[:9], DOCUMENTS)), 1, atol=1e-6
    )


@pytest.mark.parametrize("dim", [1, 5, 256])
def test_vectors_are_projections_on_the_principal_directions(dim):
    # 10 more directions than asked for are drawn, and there are 17 words: the SVD of 5 and more
    # directions is exact; the first direction alone is found to 1e-5 by its power iterations.
    encoder = lexical.fit(DOCUMENTS, dim)
    weights = tfidf(DOCUMENTS, DOCUMENTS)
    directions = np.linalg.svd(weights, full_matrices=False)[2][: min(dim, weights.shape[1])]
    expected = tfidf(QUERIES, DOCUMENTS) @ directions.T
    norms = np.linalg.norm(expected, axis=1, keepdims=True)
    expected = np.divide(expected, norms, out=np.zeros_like(expected), where=norms > 1e-12)
    found = encoder.encode(QUERIES)
    assert found.shape == (14, encoder.dim) and found.dtype == np.float32
    assert encoder.dim == min(dim, weights.shape[1])
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, rtol=0, atol=1e-5)


def test_an_encoder_is_a_few_arrays(tmp_path):
    encoder = lexical.fit(["C++ und C#", "Größe 平台", *DOCUMENTS], 4)
    assert {"c++", "c#", "größe", "平", "台"} <= set(encoder.vocabulary)
    np.savez(tmp_path / "encoder.npz", **encoder.arrays())
    with np.load(tmp_path / "encoder.npz") as file:  # which reads no pickles
        again = lexical.from_arrays(dict(file))
    assert again.checksum == encoder.checksum and again.vocabulary == encoder.vocabulary
    np.testing.assert_array_equal(again.encode(QUERIES), encoder.encode(QUERIES))
    same = lexical.fit(["C++ und C#", "Größe 平台", *DOCUMENTS], 4)
    assert same.checksum == encoder.checksum
    assert lexical.fit(DOCUMENTS, 4).checksum != encoder.checksum
    assert not encoder.encode(["zzz", ""]).any()
    assert encoder.encode([]).shape == (0, 4)


def test_a_sentence_orthogonal_to_all_directions_has_the_vector_zero():
    encoder = lexical.fit(["python java", "java python", "python", "nurse"], 1)
    np.testing.assert_allclose(encoder.encode(["java", "nurse"]), [[1], [0]], atol=1e-6)


def test_no_query_has_no_score():
    for scores in (lexical.tfidf_scores, lexical.bm25_scores):
        assert scores([], DOCUMENTS).shape == (0, 43)


def test_what_has_no_words_is_refused_in_one_line():
    for make in (lexical.fit, lambda texts: lexical.tfidf_scores(QUERIES, texts),
                 lambda texts: lexical.bm25_scores(QUERIES, texts)):  # fmt: skip
        for texts in ([], ["", " - "]):
            with pytest.raises(ValueError, match=f"need a word in them; got {len(texts)} without"):
                make(texts)
    with pytest.raises(ValueError, match="dim needs to be at least 1; got 0"):
        lexical.fit(DOCUMENTS, 0)
    with pytest.raises(ValueError, match=r"b needs to lie in \[0, 1\]; got 1.5"):
        lexical.bm25_scores(QUERIES, DOCUMENTS, b=1.5)
    arrays = lexical.fit(DOCUMENTS, 4).arrays()
    with pytest.raises(ValueError, match=r"a column for each word; got 17 words, idf \(3,\)"):
        lexical.from_arrays(arrays | {"idf": arrays["idf"][:3]})
    with pytest.raises(
        ValueError, match="needs the arrays vocabulary, idf, components; got vocabulary, components"
    ):
        lexical.from_arrays({k: a for k, a in arrays.items() if k != "idf"})
