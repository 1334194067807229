# SPDX-License-Identifier: Apache-2.0
"""Two processes share a computation, and each gets what one process gets."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest
import shared_work
from commands import free_port

PROGRAM = pathlib.Path(shared_work.__file__)


@pytest.mark.deep
def test_two_processes_share_the_rows_and_get_what_one_gets(tmp_path):
    port = str(free_port())
    processes = [
        subprocess.Popen([sys.executable, str(PROGRAM), port, str(index), str(tmp_path)])
        for index in range(2)
    ]
    (tmp_path / "one").mkdir()
    expected, read = shared_work.work(tmp_path / "one")  # on two devices
    assert [process.wait(timeout=180) for process in processes] == [0, 0]
    found = [dict(np.load(tmp_path / f"process_{index}.npz")) for index in range(2)]
    # Chunks of 4, the last one filled up: each process reads its two rows of each.
    assert read == [*range(11), 10]
    assert [list(one.pop("read")) for one in found] == [[0, 1, 4, 5, 8, 9], [2, 3, 6, 7, 10, 10]]
    # Both processes have one device, this one two: programs for equal shares, bit for bit.
    for one in found:
        assert one.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(one[name], value)
    np.testing.assert_array_equal(expected["again"], expected["x"])
    assert not list(tmp_path.glob("out.parts-*"))
    # Both have segmented their picture, and the first has saved it.
    assert {path.name for path in (tmp_path / "segmented").iterdir()} == {
        "0_mask.png", "0_overlay.png", "0_instances.png",
    }  # fmt: skip
