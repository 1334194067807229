# SPDX-License-Identifier: Apache-2.0
"""A computation in parts that is killed anywhere goes on, and ends where it would have ended."""

import numpy as np
import pytest

from scorejax.evaluate import chunks
from scorejax.evaluate.parts import Parts

ROWS = {"x": np.arange(7.0).reshape(7, 1)}
WANTED = {"seed": 1, "step": 40}


def squares(variables, rows):
    return {"y": variables * rows["x"] ** 2, "first": rows["x"][:, 0]}


def in_chunks(parts):
    return chunks.in_chunks(squares, np.float64(3.0), ROWS, 2, "rows", parts)


class Counting(Parts):
    """Dies, as if killed, before the part `dies_at`; counts what it makes."""

    def __init__(self, out, identity, dies_at=99, arrays=()):
        super().__init__(out, identity, arrays)
        self.made, self.dies_at = 0, dies_at

    def save(self, name, part):
        if self.made == self.dies_at:
            raise KeyboardInterrupt
        self.made += 1
        super().save(name, part)


@pytest.mark.parametrize("dies_at", [0, 1, 3])
def test_what_is_done_is_not_done_again_and_the_end_is_the_same(tmp_path, dies_at):
    expected = in_chunks(None)
    with pytest.raises(KeyboardInterrupt):
        in_chunks(Counting(tmp_path / "out", WANTED, dies_at))
    again = Counting(tmp_path / "out", WANTED)
    found = in_chunks(again)
    assert again.made == 4 - dies_at
    np.testing.assert_array_equal(found["y"], 3 * ROWS["x"] ** 2)
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value)
    again.remove()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("identity", "weights"),
    [
        (WANTED | {"seed": 2}, [0.0, 1.0]),
        (WANTED, [0.0, 2.0]),
        (WANTED, [[0.0, 1.0]]),
        (WANTED, np.array([0.0, 1.0], np.float32)),
    ],
)
def test_another_computation_finds_nothing(tmp_path, identity, weights):
    given = {"w": np.array([0.0, 1.0])}
    in_chunks(Counting(tmp_path / "out", WANTED, arrays=given))
    other = Counting(tmp_path / "out", identity, arrays={"w": np.asarray(weights)})
    in_chunks(other)
    assert other.made == 4
    same = Counting(tmp_path / "out", WANTED, arrays={"w": np.array([0.0, 1.0])})
    in_chunks(same)
    assert same.made == 0


def test_a_part_that_was_being_written_does_not_count(tmp_path):
    parts = Counting(tmp_path / "out", WANTED)
    parts.directory.mkdir()
    (parts.directory / ".00000000.123.npz").write_bytes(b"half of it")
    in_chunks(parts)
    assert parts.made == 4


def test_a_part_that_another_call_saves_meanwhile_shifts_no_chunk(tmp_path):
    class Overtaken(Counting):
        def save(self, name, part):
            super().save(name, part)
            if name == "00000000":
                in_chunks(Parts(tmp_path / "out", WANTED))

    np.testing.assert_array_equal(
        in_chunks(Overtaken(tmp_path / "out", WANTED))["y"], 3 * ROWS["x"] ** 2
    )
    np.testing.assert_array_equal(
        in_chunks(Counting(tmp_path / "out", WANTED))["y"], 3 * ROWS["x"] ** 2
    )
