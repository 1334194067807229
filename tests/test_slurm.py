# SPDX-License-Identifier: Apache-2.0
"""The job script under the signals that Slurm sends, with programs in place of Slurm's commands."""

import os
import pathlib
import signal
import subprocess
import time

import pytest

SCRIPT = pathlib.Path(__file__).resolve().parent.parent / "launch" / "slurm.sbatch"
# Slurm's srun kills its tasks when it gets TERM itself, so TERM needs to reach the task, which here
# is a program that ends by itself after `seconds`, or with status 0 when it is told to.
COMMANDS = {
    "srun": """trap 'kill -KILL $task; exit 143' TERM
bash -c 'trap "sleep 0.1; touch saved; exit 0" TERM; touch started
         for i in $(seq $SECONDS_OF_TASK); do sleep 0.1; done; exit $STATUS_OF_TASK' &
task=$!; echo $task > task
wait $task; status=$?
while kill -0 $task 2> /dev/null; do wait $task; status=$?; done
exit $status""",
    "scancel": '[ "$*" = "--signal=TERM 42" ] && kill -TERM $(cat task)',
    "scontrol": 'echo "$*" >> requeued',
}


@pytest.mark.parametrize(
    ("sent", "tenths", "status", "ends_with", "requeues"),
    [(signal.SIGUSR1, 300, 1, 0, True), (None, 1, 0, 0, False), (None, 1, 3, 3, False)],
    ids=["time is up", "finished", "failed"],
)
def test_a_job_is_queued_again_only_if_its_time_is_up(
    tmp_path, sent, tenths, status, ends_with, requeues
):
    commands = tmp_path / "commands"
    commands.mkdir()
    for name, text in COMMANDS.items():
        (commands / name).write_text(f"#!/bin/bash\n{text}\n")
        (commands / name).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{commands}:{os.environ['PATH']}",
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_ID": "42",
        "SECONDS_OF_TASK": str(tenths),
        "STATUS_OF_TASK": str(status),
    }
    job = subprocess.Popen(
        ["bash", str(SCRIPT), "config.py", "run"], env=environment, start_new_session=True
    )
    try:
        if sent:
            while not ((tmp_path / "started").exists() and (tmp_path / "task").exists()):
                time.sleep(0.01)
            job.send_signal(sent)
        assert job.wait(timeout=20) == ends_with
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
    assert (tmp_path / "saved").exists() == requeues
    requeued = tmp_path / "requeued"
    assert (requeued.read_text() if requeued.exists() else "") == ("requeue 42\n" * requeues)
