# SPDX-License-Identifier: Apache-2.0
"""Match generated resumes and jobs, whose true matches are known, with hidden positives.

Paper     Bian et al. 2020 (MV-CoN), arXiv:2009.13299 (data are ours; the paper's are withheld)
Command   python -m launch.train --config=configs/mv_con/generated.py --workdir=runs/new
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
    config.dataset = "generated"
    return variants.apply(config, variant, family.VIEWS, family.TEACHING, family.SIZES)
