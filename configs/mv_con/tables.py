# SPDX-License-Identifier: Apache-2.0
"""Match resumes and jobs of your own, and rank resumes that nobody has matched yet.

Paper     Bian et al. 2020 (MV-CoN), arXiv:2009.13299
Data      three files, each .csv, .jsonl or .parquet. Resumes and jobs: id, text, and category where
          there is one. Pairs: resume_id, job_id, label (1 match, 0 none), and time if it is known
Command   python -m launch.train --config=configs/mv_con/tables.py --config.resumes=resumes.csv
          --config.jobs=jobs.csv --config.pairs=pairs.csv --workdir=runs/new
          python -m launch.evaluate --workdir=runs/new
          variants: multi_view (the default), text, relation, two_texts, pjfnn, bpjfnn, apjfnn;
          reweight (the default), select, independent; :debug for seconds
Expected  mrr, to be compared with tfidf, bm25 and cosine, which launch.evaluate lists beside it
Hardware  2 CPU cores: minutes for some thousand documents
"""

from ml_collections import ConfigDict

from configs import variants
from configs.mv_con import family


def get_config(variant: str = "") -> ConfigDict:
    config = family.default()
    config.dataset, config.split = "tables", "resume"
    config.num_negatives = 4  # Tables list who was hired; few tell who was turned down.
    # A product has no copy of each text to learn by heart; new resumes need that.
    config.features, config.dropout = "prod", 0.3
    return variants.apply(config, variant, family.VIEWS, family.TEACHING, family.SIZES)
