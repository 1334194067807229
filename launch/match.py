# SPDX-License-Identifier: Apache-2.0
"""Ranks jobs for resumes and resumes for jobs, which the run need not have seen.

python -m launch.match --workdir=runs/matching --resumes=resumes.csv --jobs=jobs.csv

The files are .csv, .jsonl or .parquet with a row for each document: the columns id, text, which may
be several, and category, where there is one. --id, --text and --category name others, and --job_id,
--job_text and --job_category those of the jobs.

<out>_resume.csv has the best jobs of each resume, and <out>_job.csv the best resumes of each job:
the score, that of each view, how far they disagree, the terms that both documents share, and those
of the job that the resume lacks, the rarest first.
"""

import time

from absl import flags

from launch import command

WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.", required=True)
RESUMES = flags.DEFINE_string("resumes", None, "File of resumes.", required=True)
JOBS = flags.DEFINE_string("jobs", None, "File of jobs.", required=True)
ID = flags.DEFINE_string("id", "id", "Column of the ids.")
TEXT = flags.DEFINE_list("text", "text", "Columns of the text, in order.")
CATEGORY = flags.DEFINE_string("category", "category", "Column of the category.")
JOB_ID = flags.DEFINE_string("job_id", "", "Column of the ids of jobs, if another than --id.")
JOB_TEXT = flags.DEFINE_list("job_text", "", "Columns of the text of jobs, if others than --text.")
JOB_CATEGORY = flags.DEFINE_string(
    "job_category", "", "Column of the category of jobs, if another than --category."
)
DAMAGED = flags.DEFINE_enum(
    "damaged", "raise", ["raise", "skip"], "What to do with rows that cannot be used."
)
TOP = flags.DEFINE_integer("top", 10, "Documents listed for each.")
CANDIDATES = flags.DEFINE_integer("candidates", 100, "Nearest documents that the model scores.")
STEP = flags.DEFINE_integer("step", None, "Step of the checkpoint; the newest by default.")
OUT = flags.DEFINE_string(
    "out", "", "Folder, or path without suffix; <workdir>/matches by default."
)


def prepare() -> command.Job:
    command.require_positive(top=TOP.value, candidates=CANDIDATES.value)
    if TOP.value > CANDIDATES.value:
        raise ValueError(f"--top={TOP.value} needs at least as many --candidates")
    from scorejax import report, runs, systems
    from scorejax.capabilities import RanksDocuments
    from scorejax.data.matching_files import read_documents
    from scorejax.data.matching_rows import DocumentColumns

    config = runs.read_config(WORKDIR.value)
    model = systems.require(config, RanksDocuments)
    kept = runs.kept(WORKDIR.value)
    if kept:
        model = model.of_kept(kept)
    # A run that an earlier version trained keeps nothing: its files are read again.
    origins = {"kept": "kept.npz"} if kept else model.origins()
    runs.require_same_inputs(WORKDIR.value, model.inputs(), origins)
    out = command.output(OUT.value, WORKDIR.value, "matches")
    of_both = ID.value, TEXT.value, CATEGORY.value
    of_jobs = (
        JOB_ID.value or ID.value,
        JOB_TEXT.value or TEXT.value,
        JOB_CATEGORY.value or CATEGORY.value,
    )
    (resumes, left_out), (jobs, others) = (
        read_documents(path, DocumentColumns(name, tuple(text), category), damaged=DAMAGED.value)
        for path, (name, text, category) in ((RESUMES.value, of_both), (JOBS.value, of_jobs))
    )
    rank = model.ranker(top=TOP.value, num_candidates=CANDIDATES.value)
    run = runs.open(WORKDIR.value, STEP.value)

    def job() -> None:
        start = time.perf_counter()
        tables = rank(run.variables, resumes, jobs)
        rate = (len(resumes) + len(jobs)) / (time.perf_counter() - start)
        for line in (*left_out, *others):
            print(f"left out: {line}")
        for side, rows in tables.items():
            report.save_table(f"{out}_{side}.csv", rows)
        print(
            f"{len(resumes)} resumes and {len(jobs)} jobs, {rate:.0f} documents a second: "
            f"{out}_resume.csv, {out}_job.csv"
        )

    return job


if __name__ == "__main__":
    command.run(prepare)
