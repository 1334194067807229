# SPDX-License-Identifier: Apache-2.0
"""Documents that a run keeps, by which new ones are ranked without the files of training.

Arrays by name: "documents", the text of `task.Task.documents_text` in UTF-8; "interactions", pairs
that are edges; "encoder", the checksum of the encoder of sentences; and, behind "lexical_", the
arrays of an encoder that was fitted. Weights of a pretrained encoder are not among them.
"""

import json
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from scorejax.data.matching import Documents, Pairs
from scorejax.systems.mv_con.task import Task
from scorejax.text import lexical
from scorejax.text.encoders import SentenceEncoder

_FITTED = "lexical_"


def to_arrays(task: Task, encoder: SentenceEncoder) -> dict[str, np.ndarray]:
    """The arrays of a task and of its encoder."""
    arrays = {
        "documents": np.frombuffer(task.documents_text().encode(), np.uint8),
        "interactions": task.interactions,
        "encoder": np.array(encoder.checksum),
    }
    if isinstance(encoder, lexical.LexicalEncoder):
        arrays |= {_FITTED + name: array for name, array in encoder.arrays().items()}
    return arrays


def task_of(arrays: Mapping[str, np.ndarray]) -> Task:
    """The documents and the interactions, without any pair to learn from or to judge by.

    Raises: ValueError if an array is missing, or is no documents.
    """
    missing = {"documents", "interactions", "encoder"} - arrays.keys()
    if missing:
        raise ValueError(f"the run's kept documents lack {', '.join(sorted(missing))}")
    kinds = json.loads(np.asarray(arrays["documents"]).tobytes())
    resumes, jobs = (
        Documents(tuple(ids), tuple(map(tuple, sentences)), tuple(categories))
        for ids, sentences, categories in kinds
    )
    none, no_label = Pairs(*np.zeros((3, 0))), np.zeros(0, bool)
    return Task(resumes, jobs, none, no_label, none, none, arrays["interactions"], none)


def encoder_of(
    arrays: Mapping[str, np.ndarray],
    load: Callable[[Sequence[Documents]], SentenceEncoder],
    documents: Sequence[Documents],
) -> SentenceEncoder:
    """The encoder that was fitted, or else load(documents), a pretrained one.

    Raises: ValueError, one line, if it has another checksum than that of the run.
    """
    fitted = {k.removeprefix(_FITTED): a for k, a in arrays.items() if k.startswith(_FITTED)}
    encoder = lexical.from_arrays(fitted) if fitted else load(documents)
    expected = str(arrays["encoder"])
    if encoder.checksum != expected:
        raise ValueError(
            f"the run was trained on vectors of the encoder {expected[:16]}, this one is "
            f"{encoder.checksum[:16]}; install the version that it was trained with"
        )
    return encoder
