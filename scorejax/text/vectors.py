# SPDX-License-Identifier: Apache-2.0
"""Vectors of sentences on disk, so that each sentence is encoded once.

A directory holds one file for each encoder, named by its checksum: the vectors, and the hashes of
their sentences. A file is replaced whole, so a killed program leaves the old one or the new one.
"""

import hashlib
import os
import zipfile
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from scorejax.files import AnyPath, as_path, exists, load_npz, save_npz
from scorejax.text.encoders import SentenceEncoder

SAVE_EVERY = 8192
"""Sentences after whose encoding the file is written, so that little is lost with a long job."""


def cached(
    encoder: SentenceEncoder, sentences: Sequence[str], directory: str | os.PathLike
) -> Float32[np.ndarray, "n dim"]:
    """The vectors of n sentences; those that the directory lacks are encoded and added to it.

    Of several programs that add to a file at once, the last one decides what it holds.
    Raises: ValueError with one line that names the file if it is damaged or holds vectors of
    another encoder, or if a vector is not finite; OSError if the directory cannot be written.
    """
    path = as_path(directory) / f"vectors-{encoder.checksum[:16]}.npz"
    stored = _read(path, encoder) if exists(path) else {}
    keys = [hashlib.sha256(sentence.encode()).digest() for sentence in sentences]
    new = {
        key: sentence
        for key, sentence in zip(keys, sentences, strict=True)
        if key not in stored
    }  # fmt: skip
    for start in range(0, len(new), SAVE_EVERY):
        block = dict(list(new.items())[start : start + SAVE_EVERY])
        encoded = encoder.encode(list(block.values()))
        for (key, sentence), vector in zip(block.items(), encoded, strict=True):
            if not np.isfinite(vector).all():
                raise ValueError(f"the encoder's vector of {sentence[:60]!r} is not finite")
            stored[key] = vector
        _write(path, encoder, stored)
    return np.array([stored[key] for key in keys], np.float32).reshape(-1, encoder.dim)


def _read(path: AnyPath, encoder: SentenceEncoder) -> dict[bytes, np.ndarray]:
    """Vectors by the hash of their sentence."""
    try:
        file = load_npz(path)
        owner, keys, vectors = str(file["encoder"]), file["keys"], file["vectors"]
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())[:80]
        raise ValueError(
            f"{path} is no file of vectors, or damaged ({reason}); delete it"
        ) from None
    if owner != encoder.checksum:
        raise ValueError(
            f"{path} holds vectors of the encoder {owner[:16]}, this one is "
            f"{encoder.checksum[:16]}; give another directory or delete the file"
        )
    if keys.shape != (len(vectors), 32) or vectors.shape[1:] != (encoder.dim,):
        raise ValueError(
            f"{path} needs a hash and {encoder.dim} numbers for each sentence; got {keys.shape} "
            f"and {vectors.shape}; delete it"
        )
    return {key.tobytes(): vector for key, vector in zip(keys, vectors, strict=True)}


def _write(path: AnyPath, encoder: SentenceEncoder, stored: dict[bytes, np.ndarray]) -> None:
    keys = np.frombuffer(b"".join(stored), np.uint8).reshape(-1, 32)
    vectors = np.array(list(stored.values()), np.float32)
    save_npz(path, encoder=encoder.checksum, keys=keys, vectors=vectors)
