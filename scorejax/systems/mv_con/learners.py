# SPDX-License-Identifier: Apache-2.0
"""The learners that teach each other: views of a pair of documents, as functions of parameters.

Where a relation view takes part, text views see its node vectors, and the graph's inputs are the
vectors of the first text view. What views share has no gradient in the parameters of the others.
"""

import dataclasses
from typing import NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from scorejax.models.multi_view import RelationView, TextView
from scorejax.models.transformer import masked_mean
from scorejax.random import Rng
from scorejax.systems.mv_con.corpus import Corpus
from scorejax.typing import Array, Batch, Params, PRNGKeyArray, PyTree

ENCODED_AT_ONCE = 256
"""Documents whose texts are encoded together for the table."""


class Shared(NamedTuple):
    """Text vectors (n, e) of all documents, and node vectors (n, w) if there is a graph."""

    table: Array
    nodes: Array | None = None

    def pair(self, pairs: Batch) -> tuple[Array, Array] | None:
        """Node vectors of pairs, as constants."""
        if self.nodes is None:
            return None
        nodes = jax.lax.stop_gradient(self.nodes)
        return nodes[pairs["resume"]], nodes[pairs["job"]]


class Learner(Protocol):
    """A view: parameters, running moments of normalisations ({} without any), logits of pairs.

    Pairs are nodes: {"resume": (b,), "job": (b,)}. `train_logits` returns logits (b,) in training,
    with dropout unless `rng` is None, and the new moments; `logits` returns logits (b,), and reads
    texts from the table of `shared`.
    """

    def init(self, rng: PRNGKeyArray, corpus: Corpus, shared: Shared) -> tuple[Params, PyTree]: ...

    def train_logits(
        self,
        params: Params,
        moments: PyTree,
        shared: Shared,
        corpus: Corpus,
        pairs: Batch,
        rng: Rng | None,
    ) -> tuple[Array, PyTree]: ...

    def logits(
        self, params: Params, moments: PyTree, shared: Shared, corpus: Corpus, pairs: Batch
    ) -> Array: ...


@dataclasses.dataclass(frozen=True)
class TextLearner:
    """Matches the texts of a pair, beside its node vectors if there are any."""

    view: TextView

    def init(self, rng: PRNGKeyArray, corpus: Corpus, shared: Shared) -> tuple[Params, PyTree]:
        first = {"resume": corpus.resumes[:1], "job": corpus.jobs[:1]}
        variables = self.view.init(rng, *_texts(corpus, first), shared.pair(first))
        return variables["params"], {}

    def table_width(self, corpus: Corpus) -> int:
        """Length of a text vector."""
        return self.view.encoder.width + corpus.sentences.shape[-1]

    def table(self, params: Params, corpus: Corpus) -> Array:
        """Text vectors (n, e) of all documents, without gradients or dropout."""
        variables = {"params": jax.lax.stop_gradient(params)}
        sentences, mask = jnp.asarray(corpus.sentences), jnp.asarray(corpus.mask)
        vectors = jnp.zeros((len(sentences), self.table_width(corpus)))
        for kind, nodes in (("resume", corpus.resumes), ("job", corpus.jobs)):
            # Documents are gathered within: all at once would be a second copy of the corpus.
            encode = lambda node, kind=kind: self.view.apply(
                variables, kind, sentences[node][None], mask[node][None], method="encode"
            )[0]
            encoded = jax.lax.map(encode, jnp.asarray(nodes), batch_size=ENCODED_AT_ONCE)
            vectors = vectors.at[nodes].set(encoded)
        return vectors

    def train_logits(
        self,
        params: Params,
        moments: PyTree,
        shared: Shared,
        corpus: Corpus,
        pairs: Batch,
        rng: Rng | None,
    ) -> tuple[Array, PyTree]:
        variables, texts = {"params": params}, _texts(corpus, pairs)
        logits = self.view.apply(variables, *texts, shared.pair(pairs), rng)
        return logits, moments

    def logits(
        self, params: Params, moments: PyTree, shared: Shared, corpus: Corpus, pairs: Batch
    ) -> Array:
        vectors = shared.table[pairs["resume"]], shared.table[pairs["job"]]
        return self.view.apply({"params": params}, *vectors, shared.pair(pairs), method="match")


@dataclasses.dataclass(frozen=True)
class RelationLearner:
    """Matches the node vectors of a pair."""

    view: RelationView

    def init(self, rng: PRNGKeyArray, corpus: Corpus, shared: Shared) -> tuple[Params, PyTree]:
        first = corpus.resumes[:1], corpus.jobs[:1]
        return self.view.init(rng, shared.table, corpus.edges, *first)["params"], {}

    def nodes(self, params: Params, table: Array, corpus: Corpus) -> Array:
        """Node vectors (n, w) from text vectors, to which they carry no gradient."""
        table = jax.lax.stop_gradient(table)
        return self.view.apply({"params": params}, table, corpus.edges, method="nodes")

    def train_logits(
        self,
        params: Params,
        moments: PyTree,
        shared: Shared,
        corpus: Corpus,
        pairs: Batch,
        rng: Rng | None,
    ) -> tuple[Array, PyTree]:
        return self.logits(params, moments, shared, corpus, pairs), moments

    def logits(
        self, params: Params, moments: PyTree, shared: Shared, corpus: Corpus, pairs: Batch
    ) -> Array:
        nodes = shared.nodes[pairs["resume"]], shared.nodes[pairs["job"]]
        return self.view.apply({"params": params}, *nodes, method="match")


@dataclasses.dataclass(frozen=True)
class WordLearner:
    """A published network that reads the words of both texts; `flat` joins their sentences."""

    network: nn.Module
    flat: bool = False

    def init(self, rng: PRNGKeyArray, corpus: Corpus, shared: Shared) -> tuple[Params, PyTree]:
        first = {"resume": corpus.resumes[:1], "job": corpus.jobs[:1]}
        variables = dict(self.network.init(rng, *self._words(corpus, first)))
        return variables.pop("params"), variables

    def train_logits(
        self,
        params: Params,
        moments: PyTree,
        shared: Shared,
        corpus: Corpus,
        pairs: Batch,
        rng: Rng | None,
    ) -> tuple[Array, PyTree]:
        if not moments:
            return self.logits(params, moments, shared, corpus, pairs), moments
        variables, words = {"params": params, **moments}, self._words(corpus, pairs)
        logits, new = self.network.apply(variables, *words, train=True, mutable=list(moments))
        return logits, dict(new)

    def logits(
        self, params: Params, moments: PyTree, shared: Shared, corpus: Corpus, pairs: Batch
    ) -> Array:
        return self.network.apply({"params": params, **moments}, *self._words(corpus, pairs))

    def _words(self, corpus: Corpus, pairs: Batch) -> tuple[Array, Array]:
        words = jnp.asarray(corpus.words)
        pair = words[pairs["resume"]], words[pairs["job"]]
        return tuple(w.reshape(len(w), -1) for w in pair) if self.flat else pair


@dataclasses.dataclass(frozen=True)
class Learners:
    """One learner or two, by name; the parameters and the moments have the same names."""

    learners: dict[str, Learner]

    def init(self, rng: PRNGKeyArray, corpus: Corpus) -> tuple[Params, PyTree]:
        """Parameters, and the state: moments, and the table of text vectors, still zero."""
        table = jnp.zeros((len(corpus.sentences), self._table_width(corpus)))
        two = first_two(corpus)
        params, moments, rngs = {}, {}, jax.random.split(rng, len(self.learners))
        keys = dict(zip(self.learners, rngs, strict=True))
        # The graph first: texts stand beside its nodes.
        for name in sorted(self.learners, key=lambda name: name != "relation"):
            shared = self.shared(params, table[:2], two)
            params[name], moments[name] = self.learners[name].init(keys[name], two, shared)
        return params, {"table": table, "moments": moments}

    def _table_width(self, corpus: Corpus) -> int:
        text = self._text()
        return self.learners[text].table_width(corpus) if text else corpus.sentences.shape[-1]

    def table(self, params: Params, corpus: Corpus) -> Array:
        """Text vectors (n, e): of the first text view, else the means of the sentence vectors."""
        text = self._text()
        if text is None:
            return masked_mean(jnp.asarray(corpus.sentences), jnp.asarray(corpus.mask))
        return self.learners[text].table(params[text], corpus)

    def shared(self, params: Params, table: Array, corpus: Corpus) -> Shared:
        """Node vectors beside the table, with gradients in the relation view's parameters."""
        if "relation" not in params:
            return Shared(table)
        return Shared(table, self.learners["relation"].nodes(params["relation"], table, corpus))

    def _text(self) -> str | None:
        texts = (n for n, one in self.learners.items() if isinstance(one, TextLearner))
        return next(texts, None)


def first_two(corpus: Corpus) -> Corpus:
    """The first resume and the first job, without edges: enough for the shapes of parameters."""
    nodes = np.array([corpus.resumes[0], corpus.jobs[0]])
    edges = corpus.edges
    if edges is not None:
        past = np.full(1, len(nodes), np.int32)  # the dummy node
        edges = edges.replace(source=past, target=past, relation=np.zeros(1, np.int32))
    return Corpus(
        resumes=np.array([0], np.int32),
        jobs=np.array([1], np.int32),
        sentences=corpus.sentences[nodes],
        mask=corpus.mask[nodes],
        edges=edges,
        words=None if corpus.words is None else corpus.words[nodes],
    )


def _texts(corpus: Corpus, pairs: Batch) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Sentence vectors, and masks, of the resumes and the jobs of pairs."""
    nodes = pairs["resume"], pairs["job"]
    sentences, mask = jnp.asarray(corpus.sentences), jnp.asarray(corpus.mask)
    return tuple(sentences[n] for n in nodes), tuple(mask[n] for n in nodes)
