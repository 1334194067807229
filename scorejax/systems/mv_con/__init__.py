# SPDX-License-Identifier: Apache-2.0
"""Multi-view co-teaching: matches resumes and jobs from sparse and noisy interactions.

A text view reads both documents; a relation view reads a graph that joins documents by category, by
keywords, and by interactions set apart for it. They share representations, and in training each
weighs or selects the rows that the other one learns from. `views` may also name one view, two text
views, or the published networks, so that all comparisons run in one loop.

Source: Bian et al. 2020, arXiv:2009.13299. The published code has neither the graph nor the
selection, and its weights change nothing; networks, rules of the graph and numbers are ours.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from scorejax.choices import require, require_keys, require_known
from scorejax.data.matching import SPLITS
from scorejax.data.matching_graph import GraphRules
from scorejax.evaluate.progress import make_evaluate
from scorejax.models.multi_view import RelationView, TextView
from scorejax.models.relational_gcn import RelationalGCN
from scorejax.models.text_baselines import APJFNN, BPJFNN, PJFNN
from scorejax.models.text_matching import DocumentEncoder, Matcher
from scorejax.objectives import co_teaching
from scorejax.objectives.co_teaching import Weigh
from scorejax.systems.mv_con.corpus import ENCODERS, make_encoder
from scorejax.systems.mv_con.learners import (
    Learner,
    Learners,
    RelationLearner,
    TextLearner,
    WordLearner,
)
from scorejax.systems.mv_con.model import DocumentMatcher, TextOptions
from scorejax.systems.mv_con.task import COLUMNS, DATASETS, JOB_COLUMNS, TABLES, make_task
from scorejax.train.optimizer import ADAM_OPTIONS, decaying_adam_from_config
from scorejax.train.system import System
from scorejax.typing import Array

TASK_KEYS = (
    "dataset", "data_dir", *TABLES, *COLUMNS, "damaged",
    "split", "valid_share", "test_share", "split_seed",
    "num_negatives", "noise_rate", "noise_kind", "graph_share",
    "num_resumes", "num_jobs", "num_pairs",
)  # fmt: skip
TEXT_KEYS = (
    "encoder", "encoder_dim", "vectors_dir", "max_sentences", "max_words", "vocabulary_size",
)  # fmt: skip
NETWORK_KEYS = (
    "views", "width", "num_layers", "num_heads", "dropout", "hidden", "features", "graph_width",
    "graph_layers", "graph_bases", "neighbours", "num_keywords", "word_width",
)  # fmt: skip
TRAINING_KEYS = (
    "co_teaching", "exchange", "strength", "forget_rate", "forget_steps", "scope", "refresh_every",
    "learning_rate", "cosine_decay",
)  # fmt: skip
KEYS = (*TASK_KEYS, *TEXT_KEYS, *NETWORK_KEYS, *TRAINING_KEYS)
"""Keys that a config needs, beside `system` and those of the training loop."""
OPTIONS = (*JOB_COLUMNS, "encoder_dir", *ADAM_OPTIONS)

WORD_VIEWS: dict[str, Callable[[int, int], Learner]] = {
    "pjfnn": lambda vocabulary, width: WordLearner(PJFNN(vocabulary, width)),
    "bpjfnn": lambda vocabulary, width: WordLearner(BPJFNN(vocabulary, width), flat=True),
    "apjfnn": lambda vocabulary, width: WordLearner(APJFNN(vocabulary, width)),
}
"""Published networks, which learn word vectors: (vocabulary, width) -> learner."""
VIEWS = ("text", "relation", *WORD_VIEWS)
WEIGHTS = ("reweight", "select", "none")


def build(config: ConfigDict) -> System:
    """The training of a matcher. Raises: ValueError, or FileNotFoundError without its data."""
    model = make_model(config)
    if len(config.views) == 2 and config.exchange == "disjoint":
        num = jax.device_count()
        halves = 2 * num * max(config.accumulation, 1)
        needs = f"to be a multiple of {halves}, for halves on each of {num} device(s)"
        require(config, ("batch_size",), lambda v: v % halves == 0, needs)
    metrics = {name: built for name, built in model.metrics().items() if name == "mrr"}
    return System(
        init=jax.jit(model.init),
        loss=model.loss,
        # Each learner by itself: clipping one's gradient leaves the other's as it is.
        tx=optax.multi_transform(
            {name: decaying_adam_from_config(config) for name in model.learners.learners},
            lambda params: {name: name for name in params},
        ),
        source=model.source(),
        evaluate=make_evaluate(metrics, config.best_metric),
        # Training goes on, and is evaluated, with the same documents and pairs alone.
        frozen={"corpus": model.corpus, **model.inputs()},
        paths=("data_dir", "vectors_dir", "encoder_dir", *TABLES),
        kept=model.kept,
    )


def make_model(config: ConfigDict) -> DocumentMatcher:
    """The model of a config; reads documents once they are needed.

    Raises: ValueError for an impossible value.
    """
    require_keys(config, KEYS)
    known = {"dataset": DATASETS, "split": SPLITS, "encoder": ENCODERS, "co_teaching": WEIGHTS}
    known |= {"exchange": co_teaching.EXCHANGES, "scope": co_teaching.SCOPES}
    known |= {"noise_kind": ("symmetric", "asymmetric")}
    for key, names in known.items():
        require_known(key, config[key], names)
    views = tuple(config.views)
    for view in views:
        require_known("view", view, VIEWS)
    if not 1 <= len(views) <= 2 or views == ("relation", "relation"):
        raise ValueError(f"views needs one view, or two of which one is no relation; got {views}")
    counts = ("encoder_dim", "max_sentences", "max_words", "vocabulary_size", "refresh_every")
    require(config, counts, lambda v: v >= 1, "to be at least 1")
    require(config, ("num_negatives",), lambda v: v >= 0, "to be at least 0")
    shares = ("noise_rate", "graph_share", "dropout", "forget_rate")
    require(config, shares, lambda v: 0 <= v < 1, "to lie in [0, 1)")
    related = "relation" in views
    if config.graph_share and not related:
        raise ValueError(
            f"graph_share={config.graph_share} sets pairs apart for a graph, which no view of "
            f"{views} reads; set it to 0"
        )
    return DocumentMatcher(
        make_task=functools.partial(make_task, config),
        text=TextOptions(
            functools.partial(
                make_encoder, config.encoder, config.encoder_dim, config.get("encoder_dir", "")
            ),
            config.vectors_dir, config.max_sentences, config.max_words, config.vocabulary_size,
            uses_words=any(view in WORD_VIEWS for view in views),
        ),
        rules=GraphRules(config.neighbours, config.neighbours, config.num_keywords)
        if related
        else None,
        learners=learners(config, views),
        weigh=weights(config),
        exchange=config.exchange,
        refresh_every=config.refresh_every,
        batch_size=config.batch_size,
        paths={key: config[key] for key in ("data_dir", *TABLES) if config[key]},
    )  # fmt: skip


def learners(config: ConfigDict, views: tuple[str, ...]) -> Learners:
    """The learners by name; the second of two equal views has a name with a number."""
    encoder = DocumentEncoder(
        config.width, config.num_layers, config.num_heads, config.dropout, config.max_sentences
    )
    matcher = Matcher(config.hidden, config.features)
    gcn = RelationalGCN(config.graph_width, config.graph_layers, config.graph_bases or None)
    build_view = {
        "text": lambda: TextLearner(TextView(encoder, matcher)),
        "relation": lambda: RelationLearner(RelationView(gcn, matcher)),
    }
    # Two ids more than words: padding, and words that are not known.
    sizes = config.vocabulary_size + 2, config.word_width
    build_view |= {name: functools.partial(one, *sizes) for name, one in WORD_VIEWS.items()}
    names = [f"{view}_2" if view in views[:i] else view for i, view in enumerate(views)]
    return Learners({name: build_view[view]() for name, view in zip(names, views, strict=True)})


def weights(config: ConfigDict) -> Callable[[Array], Weigh]:
    """Step -> how a learner weighs the rows of its peer, by `co_teaching`."""
    if config.co_teaching == "none":
        return lambda step: lambda losses, rows: jnp.ones_like(losses)
    if config.co_teaching == "reweight":
        return lambda step: (
            lambda losses, rows: co_teaching.peer_weights(
                losses, rows["label"], strength=config.strength
            )
        )

    def selects(step: Array) -> Weigh:
        rate = co_teaching.keep_rate(
            step, noise_rate=config.forget_rate, warmup=config.forget_steps
        )
        return lambda losses, rows: co_teaching.select(
            losses, rows["label"], keep=rate, scope=config.scope
        )

    return selects
