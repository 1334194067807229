# SPDX-License-Identifier: Apache-2.0
"""Vectors on disk: each sentence is encoded once, by one encoder, whatever is killed meanwhile."""

import json
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

from scorejax.text import lexical, vectors

ROOT = pathlib.Path(__file__).resolve().parent.parent
SENTENCES = ["builds software", "cares for patients", "bakes bread", "writes software"]


class Recording:
    """The lexical encoder, which remembers what it was asked for."""

    def __init__(self, encoder):
        self._encoder, self.asked = encoder, []
        self.dim, self.checksum = encoder.dim, encoder.checksum

    def encode(self, sentences):
        self.asked.extend(sentences)
        return self._encoder.encode(sentences)


@pytest.fixture(scope="module")
def fitted():
    return lexical.fit(SENTENCES, 3)


@pytest.fixture
def encoder(fitted):
    return Recording(fitted)


def test_only_new_sentences_are_encoded(encoder, fitted, tmp_path):
    first = vectors.cached(encoder, [*SENTENCES[:2], SENTENCES[0]], tmp_path)
    assert encoder.asked == SENTENCES[:2]
    np.testing.assert_array_equal(first, fitted.encode([*SENTENCES[:2], SENTENCES[0]]))
    mixed = [SENTENCES[3], SENTENCES[1], SENTENCES[2], SENTENCES[3]]
    second = vectors.cached(encoder, mixed, tmp_path)
    assert encoder.asked == [*SENTENCES[:2], SENTENCES[3], SENTENCES[2]]
    np.testing.assert_array_equal(second, fitted.encode(mixed))
    third = vectors.cached(encoder, SENTENCES, tmp_path)
    assert len(encoder.asked) == 4
    np.testing.assert_array_equal(third, fitted.encode(SENTENCES))
    assert vectors.cached(encoder, [], tmp_path).shape == (0, 3)
    assert [path.name for path in tmp_path.iterdir()] == [f"vectors-{encoder.checksum[:16]}.npz"]


def test_encoders_share_a_directory_and_no_file(encoder, tmp_path):
    other = lexical.fit(SENTENCES, 2)
    mine = vectors.cached(encoder, SENTENCES, tmp_path)
    assert vectors.cached(other, SENTENCES, tmp_path).shape == (4, 2)
    np.testing.assert_array_equal(vectors.cached(encoder, SENTENCES, tmp_path), mine)
    assert len(list(tmp_path.iterdir())) == 2 and len(encoder.asked) == 4


def file_of(encoder, directory):
    return directory / f"vectors-{encoder.checksum[:16]}.npz"


def test_a_file_of_another_encoder_is_refused_by_name(encoder, tmp_path):
    other = lexical.fit([*SENTENCES, "more"], 3)
    vectors.cached(other, SENTENCES, tmp_path)
    file_of(other, tmp_path).rename(file_of(encoder, tmp_path))
    message = (
        f"vectors-{encoder.checksum[:16]}.npz holds vectors of the encoder {other.checksum[:16]}, "
        f"this one is {encoder.checksum[:16]}"
    )
    with pytest.raises(ValueError, match=message) as raised:
        vectors.cached(encoder, SENTENCES, tmp_path)
    assert "\n" not in str(raised.value) and not encoder.asked


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "no keys", "misshapen", "pickle"])
def test_a_damaged_file_is_named_in_one_line(encoder, tmp_path, damage):
    vectors.cached(encoder, SENTENCES, tmp_path)
    path = file_of(encoder, tmp_path)
    content, stored = path.read_bytes(), dict(np.load(path))
    if damage == "no keys":
        np.savez(path, encoder=stored["encoder"], vectors=stored["vectors"])
    elif damage == "misshapen":
        np.savez(path, **stored | {"vectors": stored["vectors"][:, :2]})
    elif damage == "pickle":
        np.savez(path, **stored | {"keys": np.array([{}], object)})
    else:
        cut = {"truncated": content[: len(content) // 2], "empty": b"", "text": b"Dear reader"}
        path.write_bytes(cut[damage])
    with pytest.raises(ValueError, match=rf"{path.name} .*delete it") as raised:
        vectors.cached(encoder, SENTENCES, tmp_path)
    assert "\n" not in str(raised.value)


def test_vectors_that_are_not_finite_are_refused_and_not_kept(encoder, tmp_path):
    encoder.encode = lambda sentences: np.full((len(sentences), 3), np.nan, np.float32)
    with pytest.raises(ValueError, match="vector of 'builds software' is not finite"):
        vectors.cached(encoder, SENTENCES, tmp_path)
    assert not list(tmp_path.iterdir())


KILLED = """
import json, resource, signal, sys
from scorejax.text import lexical, vectors
directory, sentences = sys.argv[1], json.loads(sys.argv[2])
encoder = lexical.fit(sentences, 3)
vectors.cached(encoder, sentences[:2], directory)
# A file that grows beyond so many bytes kills its writer, in the middle of the write.
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_FSIZE, (700, 700))
vectors.cached(encoder, sentences, directory)
"""


def test_a_writer_killed_in_the_middle_leaves_the_old_file(encoder, fitted, tmp_path):
    argv = [sys.executable, "-c", KILLED, str(tmp_path), json.dumps(SENTENCES)]
    run = subprocess.run(argv, cwd=ROOT, check=False, capture_output=True)
    assert run.returncode == -signal.SIGXFSZ, run.stderr.decode()
    temporary = [path for path in tmp_path.iterdir() if path.suffix == ".tmp"]
    assert len(temporary) == 1 and temporary[0].stat().st_size == 700  # killed while it wrote
    found = vectors.cached(encoder, SENTENCES, tmp_path)
    assert encoder.asked == SENTENCES[2:]  # those of the first call are there
    np.testing.assert_array_equal(found, fitted.encode(SENTENCES))


def test_what_was_encoded_before_a_failure_is_kept(encoder, fitted, tmp_path, monkeypatch):
    monkeypatch.setattr(vectors, "SAVE_EVERY", 2)

    def encode(sentences):
        if "bakes bread" in sentences:
            raise MemoryError
        return fitted.encode(sentences)

    encoder.encode = encode
    with pytest.raises(MemoryError):
        vectors.cached(encoder, SENTENCES, tmp_path)
    del encoder.encode
    vectors.cached(encoder, SENTENCES, tmp_path)
    assert encoder.asked == SENTENCES[2:]
