# SPDX-License-Identifier: Apache-2.0
"""The model: learners that judge each other's rows in training, and score pairs together."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, Int

from scorejax.data.matching import Documents
from scorejax.data.matching_graph import GraphRules, MatchingGraph, build_graph
from scorejax.data.source import array_source
from scorejax.evaluate.chunks import joined, make_stream
from scorejax.evaluate.progress import Metrics
from scorejax.objectives import co_teaching
from scorejax.objectives.co_teaching import Lesson, Weigh
from scorejax.random import fold_in
from scorejax.report import Table
from scorejax.systems.mv_con import evaluation, kept, serving
from scorejax.systems.mv_con.corpus import (
    Corpus,
    sentence_arrays,
    vocabulary,
    word_ids,
)
from scorejax.systems.mv_con.learners import Learners, Shared
from scorejax.systems.mv_con.task import Task
from scorejax.text.encoders import SentenceEncoder
from scorejax.train.state import TrainState
from scorejax.typing import (
    Array,
    Aux,
    Batch,
    OfflineSource,
    Params,
    PRNGKeyArray,
    PyTree,
    Variables,
)

PAIRS_AT_ONCE = 4096
"""Pairs that are scored together."""
WORDS_AT_ONCE = 128
"""The same, by networks that read every word of both texts."""


@dataclasses.dataclass(frozen=True)
class TextOptions:
    """How documents become arrays."""

    make_encoder: Callable[[Sequence[Documents]], SentenceEncoder]
    """Known resumes and jobs -> the encoder of sentences, see `corpus.make_encoder`."""
    directory: str
    """Where sentence vectors are kept; "" keeps none."""
    max_sentences: int
    max_words: int
    """Of a sentence, for networks that learn word vectors."""
    vocabulary_size: int
    uses_words: bool


@dataclasses.dataclass(frozen=True, eq=False)
class DocumentMatcher:
    """Matches resumes and jobs by one learner, or by two that teach each other."""

    make_task: Callable[[], Task]
    text: TextOptions
    rules: GraphRules | None
    """Of the graph; None where no view reads it."""
    learners: Learners
    weigh: Callable[[Array], Weigh]
    """Step -> how a learner weighs the rows of its peer."""
    exchange: str
    refresh_every: int
    """Steps after which the table of text vectors is computed anew."""
    batch_size: int
    paths: Mapping[str, str]
    """Keys of the config that are files of documents or pairs, and the files."""

    @functools.cached_property
    def task(self) -> Task:
        """Documents and pairs. Raises: as `task.make_task`."""
        return self.make_task()

    @functools.cached_property
    def encoder(self) -> SentenceEncoder:
        """The encoder of sentences, frozen. Raises: ValueError if it is not installed."""
        return self.text.make_encoder(self.documents)

    @property
    def documents(self) -> tuple[Documents, Documents]:
        """Resumes and jobs."""
        return self.task.resumes, self.task.jobs

    @functools.cached_property
    def graph(self) -> MatchingGraph:
        """The graph of the documents."""
        interactions = self.task.interactions
        options = {"interactions": interactions, "supervised": self.task.supervised()}
        return build_graph(*self.documents, self.rules, **(options if len(interactions) else {}))

    @functools.cached_property
    def corpus(self) -> Corpus:
        """All documents as arrays: the frozen arrays."""
        return self.corpus_of(self.documents, self.graph if self.rules else None)

    def corpus_of(self, kinds: Sequence[Documents], graph: MatchingGraph | None) -> Corpus:
        """Arrays of resumes, jobs, and of further resumes and jobs in turn."""
        options = self.text
        sentences, mask = sentence_arrays(
            kinds, self.encoder, options.max_sentences, options.directory
        )
        words = None
        if options.uses_words:
            ids = vocabulary(self.documents, options.vocabulary_size)
            words = word_ids(kinds, ids, options.max_sentences, options.max_words)
        ends = np.cumsum([len(kind) for kind in kinds])
        nodes = [np.arange(end - len(kind), end) for kind, end in zip(kinds, ends, strict=True)]
        return Corpus(
            resumes=np.concatenate(nodes[::2]).astype(np.int32),
            jobs=np.concatenate(nodes[1::2]).astype(np.int32),
            sentences=sentences,
            mask=mask,
            edges=graph.edges() if graph else None,
            words=words,
        )

    def given(self, *frozen: PyTree) -> Corpus:
        """The corpus in the system's frozen arrays, or else this one's."""
        return frozen[0]["corpus"] if frozen else self.corpus

    def inputs(self) -> dict[str, np.ndarray]:
        """By name: digests of the documents and of the pairs. Raises: as `task`."""
        return self.task.digests()

    def origins(self) -> dict[str, str]:
        """The files that are read, by their keys in the config."""
        return dict(self.paths)

    def kept(self) -> dict[str, np.ndarray]:
        """Arrays that a run keeps to rank new documents, see the module `kept`."""
        return kept.to_arrays(self.task, self.encoder)

    def of_kept(self, arrays: Mapping[str, np.ndarray]) -> "DocumentMatcher":
        """The model with the documents that a run keeps, which ranks new ones and reads no file.

        Raises: ValueError, one line, if arrays are missing or the encoder is another one.
        """
        task = kept.task_of(arrays)
        fitted = functools.partial(kept.encoder_of, arrays, self.text.make_encoder)
        text = dataclasses.replace(self.text, make_encoder=fitted)
        return dataclasses.replace(self, make_task=lambda: task, text=text, paths={})

    def nodes(
        self, resume: Int[np.ndarray, "n"], job: Int[np.ndarray, "n"]
    ) -> dict[str, np.ndarray]:
        """The nodes of pairs."""
        first_job = len(self.task.resumes)
        return {"resume": resume.astype(np.int32), "job": (first_job + job).astype(np.int32)}

    def init(self, rng: PRNGKeyArray) -> tuple[Params, dict]:
        """Initial parameters and state."""
        return self.learners.init(rng, self.corpus)

    def loss(
        self, params: Params, state: TrainState, rng: PRNGKeyArray, batch: Batch, frozen: PyTree
    ) -> tuple[Array, Aux]:
        """Sum of the learners' mean cross-entropies, in nats, on the rows that peers weigh."""
        corpus = self.given(frozen)
        refresh = state.step % self.refresh_every == 0
        table = jax.lax.cond(
            refresh,
            lambda: self.learners.table(jax.lax.stop_gradient(params), corpus),
            lambda: state.model_state["table"],
        )
        shared, moments = self.learners.shared(params, table, corpus), state.model_state["moments"]
        total, metrics, moved = 0.0, {}, {}
        lessons = self._lessons(params, moments, shared, corpus, batch, self.weigh(state.step))
        for number, (name, lesson) in enumerate(lessons.items()):
            # Two text views would drop the same units by the same key.
            rngs = fold_in(lesson.rows["rng"], number)
            logits, moved[name] = self.learners.learners[name].train_logits(
                params[name], moments[name], shared, corpus, lesson.rows, rngs
            )
            label = lesson.rows["label"]
            losses = optax.sigmoid_binary_cross_entropy(logits, label)
            loss = co_teaching.weighted_mean(losses, lesson.weights)
            metrics[f"loss_{name}"] = loss
            metrics[f"accuracy_{name}"] = jnp.mean((logits > 0) == (label > 0.5))
            metrics |= selection_metrics(name, lesson)
            total += loss
        return total, Aux(metrics, {"table": table, "moments": moved})

    def _lessons(
        self,
        params: Params,
        moments: dict,
        shared: Shared,
        corpus: Corpus,
        batch: Batch,
        weigh: Weigh,
    ) -> dict[str, Lesson]:
        """The rows of each learner, and their weights; one learner alone has all rows."""
        names = tuple(self.learners.learners)
        if len(names) == 1:
            return {names[0]: Lesson(batch, jnp.ones(len(batch["label"])))}

        def judge(name: str) -> Callable[[Batch], Array]:
            learner = self.learners.learners[name]

            def losses(rows: Batch) -> Array:
                logits, _ = learner.train_logits(
                    params[name], moments[name], shared, corpus, rows, None
                )
                return optax.sigmoid_binary_cross_entropy(logits, rows["label"])

            return losses

        lessons = co_teaching.exchange_rows(
            *map(judge, names), batch, weigh=weigh, exchange=self.exchange
        )
        return dict(zip(names, lessons, strict=True))

    def source(self) -> OfflineSource:
        """Batches of pairs: nodes, label, and whether the label was flipped."""
        train = self.task.train
        rows = self.nodes(train.resume, train.job)
        rows |= {"label": train.label, "flipped": self.task.flipped.astype(np.float32)}
        return array_source(rows, self.batch_size)

    def probabilities(
        self, variables: Variables, corpus: Corpus, pairs: dict[str, np.ndarray]
    ) -> dict[str, Float[np.ndarray, "n"]]:
        """Probability of a match of pairs of nodes, by learner, and "mean", that of both."""
        return self.scorer(variables, corpus)(pairs)

    def scorer(
        self, variables: Variables, corpus: Corpus
    ) -> Callable[[dict[str, np.ndarray]], dict[str, Float[np.ndarray, "n"]]]:
        """Pairs -> `probabilities`, for which all documents are encoded once."""
        params, state = variables
        arguments = params, state["moments"], self._prepare(params, corpus), corpus
        at_once = WORDS_AT_ONCE if self.text.uses_words else PAIRS_AT_ONCE
        return lambda pairs: joined(self._stream(arguments, pairs, at_once))

    @functools.cached_property
    def _prepare(self) -> Callable[[Params, Corpus], Shared]:
        """Vectors of all documents, from the parameters alone."""
        return jax.jit(
            lambda params, corpus: self.learners.shared(
                params, self.learners.table(params, corpus), corpus
            )
        )

    @functools.cached_property
    def _stream(self) -> Callable:
        """`_measure` of pairs in chunks, compiled once for all pairs of one corpus."""
        return make_stream(self._measure)

    def _measure(self, arguments: tuple, pairs: Batch) -> dict[str, Array]:
        params, moments, shared, corpus = arguments
        scores = {
            name: jax.nn.sigmoid(one.logits(params[name], moments[name], shared, corpus, pairs))
            for name, one in self.learners.learners.items()
        }
        return scores | {"mean": sum(scores.values()) / len(scores)}

    def metrics(self) -> Metrics:
        """By name: "mrr" on validation pairs; "ranking", the report on test pairs; "noise"."""
        return {
            "mrr": lambda: evaluation.validation_metric(self),
            "ranking": lambda: evaluation.ranking_metric(self),
            "noise": lambda: evaluation.noise_metric(self),
        }

    def training_pictures(
        self, records: Sequence[Mapping[str, float | None]]
    ) -> dict[str, np.ndarray]:
        """Pictures of the rows that each view learnt from, see `evaluation.selection_pictures`."""
        return evaluation.selection_pictures(self, records)

    def ranker(self, *, top: int, num_candidates: int) -> Callable[..., dict[str, Table]]:
        """(variables, resumes, jobs) -> rankings of new documents, see `serving.rank`.

        Raises: ValueError, one line, as `encoder`.
        """
        _ = self.encoder  # Loaded now: one that is missing is told before anything is computed.
        options = {"top": top, "num_candidates": num_candidates}
        return functools.partial(serving.rank, self, **options)


def selection_metrics(name: str, lesson: Lesson) -> dict[str, Array]:
    """Mean weight of a learner's rows, and the share of true labels by weight and before it."""
    true = 1 - lesson.rows["flipped"]
    return {
        f"kept_{name}": jnp.mean(lesson.weights),
        f"true_{name}": jnp.mean(true),
        f"clean_{name}": co_teaching.weighted_mean(true, lesson.weights),
    }
