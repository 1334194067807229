# SPDX-License-Identifier: Apache-2.0
"""Defaults and variants of multi-view co-teaching; all sizes are ours."""

from ml_collections import ConfigDict

from configs.variants import Edit, make_edit, unchanged


def default() -> ConfigDict:
    """Two views that teach each other, on sentence vectors of the documents' own words."""
    config = ConfigDict()
    config.system = "mv_con"
    config.seed = 42

    config.data_dir = ""  # folder of a published layout; empty: $SCOREJAX_DATA_DIR
    config.resumes = config.jobs = config.pairs = ""  # files, of dataset = "tables"
    config.id_column, config.text_columns, config.category_column = "id", ("text",), "category"
    config.job_id_column, config.job_text_columns = "", ()  # empty: those of resumes
    config.job_category_column = ""
    config.resume_column, config.job_column = "resume_id", "job_id"
    config.label_columns, config.time_column = ("label",), "time"
    config.damaged = "raise"  # skip: rows that cannot be used are left out
    config.split = "random"  # time, resume, job: of data without a published split
    config.valid_share, config.test_share = 0.1, 0.1
    config.split_seed = 0
    config.num_negatives = 0  # sampled for each positive pair
    config.noise_rate, config.noise_kind = 0.0, "symmetric"  # planted, to study it; asymmetric
    config.graph_share = 0.3  # of the positive pairs: edges, and not learnt from
    config.num_resumes, config.num_jobs, config.num_pairs = 400, 400, 4000  # of "generated"

    config.encoder, config.encoder_dim = "lexical", 256  # minilm has 384
    config.encoder_dir = ""  # of encoder = "bert": config.json, model.safetensors, tokenizer.json
    config.vectors_dir = ""  # keeps sentence vectors, so that each is computed once
    config.max_sentences, config.max_words = 20, 50
    config.vocabulary_size = 20_000

    config.views = ("text", "relation")
    config.width, config.num_layers, config.num_heads, config.dropout = 128, 1, 4, 0.1
    config.hidden, config.features = 128, "concat_diff"  # concat, prod, concat_prod
    config.graph_width, config.graph_layers, config.graph_bases = 128, 2, 8  # 0: no bases
    config.neighbours, config.num_keywords = 10, 20
    config.word_width = 100  # of the published networks

    config.co_teaching = "reweight"  # select, none
    config.exchange = "disjoint"  # same
    config.strength = 0.2
    config.forget_rate, config.forget_steps = 0.2, 500  # of "select"
    config.scope = "negatives"  # all
    config.refresh_every = 20

    config.batch_size = 128  # in two halves, one for each learner
    config.accumulation = 1
    config.num_steps_per_call = 10
    config.num_train_steps = 2000
    config.learning_rate, config.warmup, config.cosine_decay = 3e-4, 50, True
    config.grad_clip = 0.0
    config.ema_rate = 0.99
    config.log_every = 100
    config.eval_every = config.save_every = 200
    config.keep_latest = 2
    config.max_nonfinite_updates = 0
    config.best_metric, config.best_mode = "mrr", "max"
    return config


def debug(config: ConfigDict) -> ConfigDict:
    """Small sets and short training, for seconds on a CPU."""
    config.update({"num_resumes": 60, "num_jobs": 60, "num_pairs": 200, "encoder_dim": 32})
    config.update({"width": 16, "hidden": 16, "graph_width": 16, "word_width": 8, "max_words": 16})
    config.update({"num_train_steps": 40, "batch_size": 16, "log_every": 10, "warmup": 5})
    config.update({"eval_every": 20, "save_every": 20, "forget_steps": 20})
    return config


VIEWS: dict[str, Edit] = {
    "multi_view": unchanged,
    "text": make_edit(views=("text",), batch_size=64, graph_share=0.0),
    "relation": make_edit(views=("relation",), batch_size=64),
    "two_texts": make_edit(views=("text", "text"), graph_share=0.0),
    "pjfnn": make_edit(views=("pjfnn",), batch_size=64, graph_share=0.0),
    "bpjfnn": make_edit(views=("bpjfnn",), batch_size=64, graph_share=0.0),
    "apjfnn": make_edit(views=("apjfnn",), batch_size=64, graph_share=0.0, word_width=32),
}
TEACHING: dict[str, Edit] = {
    "reweight": make_edit(co_teaching="reweight"),
    "select": make_edit(co_teaching="select"),
    "independent": make_edit(co_teaching="none"),
}
SIZES: dict[str, Edit] = {"full": unchanged, "debug": debug}
