# SPDX-License-Identifier: Apache-2.0
"""The command `scorejax`, such as `scorejax train --config=score_sde/digits --workdir=runs/x`.

It runs the modules of launch/, which `python -m launch.train` runs from a clone. A wheel has the
folders launch/ and configs/ in `PACKED`. They are put on the path here and not in site-packages,
where other packages may have such names.
"""

import pathlib
import runpy
import sys

import scorejax

PACKED = "_packed"
COMMANDS = {
    "train": "train a config; the same command resumes",
    "sample": "draw samples from a run",
    "likelihood": "measure bits/dim of images",
    "evaluate": "compute the metrics of a run",
    "complete": "inpaint, colorize, deblur, super-resolve",
    "inverse": "another name of complete",
    "interpolate": "interpolate between images",
    "segment": "segment pictures",
    "match": "rank jobs for resumes, and resumes for jobs",
    "index": "build and search an index of Bregman neighbours",
    "import-weights": "make a run from a published checkpoint",
    "demo": "train on digits, sample and measure, in minutes",
    "systems": "list the systems, with the cost and result of one config each",
    "configs": "list the configs, or those of a SYSTEM, likewise",
    "cite": "print BibTeX of the papers of a SYSTEM",
}


def root() -> pathlib.Path:
    """The folder that holds launch/ and configs/: that of a wheel, or a clone."""
    package = pathlib.Path(__file__).resolve().parent
    packed = package / PACKED
    return packed if packed.is_dir() else package.parent


def usage() -> str:
    """The commands, a line each."""
    lines = [f"  {name:<15} {does}" for name, does in COMMANDS.items()]
    flags = "scorejax COMMAND --help lists its flags; scorejax --version"
    return "\n".join(["usage: scorejax COMMAND [--flag=value ...]", "", *lines, "", flags])


def main() -> None:
    """Runs the command that the first argument names. Exits with 2 if there is none."""
    name, *rest = sys.argv[1:] or [""]
    if name == "--version":
        print(f"scorejax {scorejax.__version__}")
    elif name in ("-h", "--help", "help"):
        print(usage())
    elif name in COMMANDS:
        sys.path.insert(0, str(root()))
        sys.argv = [f"scorejax {name}", *rest]
        runpy.run_module(f"launch.{name.replace('-', '_')}", run_name="__main__", alter_sys=True)
    else:
        from scorejax.choices import unknown

        error = unknown("command", name, COMMANDS) if name else f"a command is missing\n{usage()}"
        sys.exit(_fail(str(error)))


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
