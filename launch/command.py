# SPDX-License-Identifier: Apache-2.0
"""Runs a command: parses its flags, and answers each mistake in one line.

A command is `run(prepare)`. `prepare` checks the flags and the files that they name, and returns
the job, a function without arguments. A mistake found by `prepare` ends with exit status 2; a
failure of the environment (no space left, no permission, a loss that is NaN, a file that has been
damaged meanwhile) ends with 1. Both print one line. Any other exception is a bug of this library
and keeps its traceback.

Importing this module is fast, so that a mistake in the flags is answered at once.
"""

import functools
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from scorejax.choices import suggestion

Job = Callable[[], None]
ROOT = pathlib.Path(__file__).resolve().parent.parent
"""The folder that holds configs/ and launch/: a clone, or a part of a wheel."""
NO_CONFIG = "--config is missing, such as --config=configs/score_sde/digits.py"
SHARES_WORK = "Share the work with the other processes of a TPU slice or of srun; one writes."
_OURS = ("scorejax", "launch", "configs", "__main__")


def run(prepare: Callable[[], Job], *, shares_work: bool = False) -> None:
    """Parses the flags, prepares, and does the job.

    A command that `shares_work` has the flag --distributed: its processes find each other before
    they prepare, and all of them do the job.
    """
    if shares_work:
        flags.DEFINE_bool("distributed", False, SHARES_WORK)
    app.run(functools.partial(_main, prepare), flags_parser=_parse)


def config(holder: flags.FlagHolder) -> ConfigDict:
    """The config of --config, with its overrides. Raises: ValueError if the flag is missing."""
    value = holder.value
    if isinstance(value, ConfigDict):
        return value
    if value is None:
        raise ValueError(NO_CONFIG)
    raise ValueError(_no_config(config_flags.get_config_filename(flags.FLAGS["config"]), value))


def output(out: str, workdir: str, name: str, *, folder: bool = False) -> str:
    """The path without suffix that a command writes to: --out, or <workdir>/<name>.

    An --out that is a directory, or ends in a slash, holds <name>, unless the command writes a
    `folder` of files and --out names it.
    Raises: ValueError for an unknown scheme; NotADirectoryError if a file or a directory is in the
    way.
    """
    from scorejax.files import as_path, is_local

    path = as_path(out) if out else as_path(workdir) / name
    if out and not folder and (out.endswith("/") or (is_local(path) and path.is_dir())):
        path = path / name
    if not is_local(path):
        return str(path)  # Nothing is in the way in a bucket: it has no directories.
    nearest = next(parent for parent in path.absolute().parents if parent.exists())
    if not nearest.is_dir():
        raise NotADirectoryError(f"--out={path}: {nearest} is not a directory")
    for suffix in () if folder else (".png", ".npz", ".json"):
        if path.with_name(path.name + suffix).is_dir():
            raise NotADirectoryError(f"--out={path}: {path}{suffix} is a directory, not a file")
    return str(path)


def leading_word() -> str:
    """Takes the first argument off the command line if it is no flag, else returns "".

    To be called before `run`, which parses flags.
    """
    return sys.argv.pop(1) if len(sys.argv) > 1 and not sys.argv[1].startswith("-") else ""


def writes() -> bool:
    """Whether this process writes the results: the first one, or the only one."""
    import jax

    return jax.process_index() == 0


def require_positive(**values: int) -> None:
    """Raises ValueError, naming the flag, for a value below one."""
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"--{name} needs to be at least 1; got {value}")


def require_images(model: Any) -> None:
    """Raises ValueError unless the examples of a model are images."""
    if len(model.data.shape) != 3:
        raise ValueError(
            f"this command is for models of images; the model's examples are {model.data.shape}"
        )


def _parse(argv: list[str]) -> list[str]:
    argv = [_with_config_path(argument) for argument in argv]
    try:
        rest = flags.FLAGS(argv)
    except Exception as error:  # A config file is a program: it may raise anything.
        _exit(2, _explain(error, argv))
    if len(rest) > 1:
        _exit(2, f"unexpected argument {rest[1]!r}: flags look like --name=value")
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.ERROR)
    return rest


def _with_config_path(argument: str) -> str:
    """Replaces the name of a config of ours, score_sde/digits or configs/score_sde/digits.py.

    A file of that name in the current directory comes first.
    """
    flag, path, variant = re.fullmatch(r"(--?config=)?([^:]*)(.*)", argument, re.DOTALL).groups()
    ours = ROOT / path if path.startswith("configs/") else ROOT / "configs" / f"{path}.py"
    if flag and path and not os.path.isfile(path) and ours.is_file():
        return f"{flag}{ours}{variant}"
    return argument


def _main(prepare: Callable[[], Job], argv: list[str]) -> None:
    del argv
    try:
        job = _prepared(prepare)
        job()
        if _is_distributed():
            _part()
    except OSError as error:
        _exit(1, str(error))
    except RuntimeError as error:
        # Ours are plain; subclasses are JAX's, and worth a traceback.
        if type(error) is not RuntimeError:
            raise
        _exit(1, str(error))
    except ValueError as error:
        # A file that was damaged meanwhile; another library's is a bug of ours.
        if not _is_ours(error):
            raise
        _exit(1, str(error))
    except KeyboardInterrupt:
        _exit(130, "interrupted")


def _prepared(prepare: Callable[[], Job]) -> Job:
    try:
        if "workdir" in flags.FLAGS and flags.FLAGS["workdir"].value == "":
            raise ValueError("--workdir is empty; is a variable of the shell not set?")
        if _is_distributed():
            _join()
        return prepare()
    except (ValueError, FileNotFoundError, NotADirectoryError) as error:
        _exit(2, str(error))


def _is_ours(error: Exception) -> bool:
    """Whether a line of this library has raised an error, and not one of a library beneath it."""
    innermost = error.__traceback__
    while innermost.tb_next is not None:
        innermost = innermost.tb_next
    return innermost.tb_frame.f_globals.get("__name__", "").partition(".")[0] in _OURS


def _is_distributed() -> bool:
    return "distributed" in flags.FLAGS and flags.FLAGS["distributed"].value


def _join() -> None:
    """Joins the other processes. Raises: ValueError without a TPU slice or a launcher, as srun."""
    import jax

    try:
        jax.distributed.initialize()
    except ValueError:
        raise ValueError(
            "--distributed finds no other processes: start the command on every host of a TPU "
            "slice, or by srun, or leave the flag out"
        ) from None


def _part() -> None:
    """Waits for the process that writes: JAX ends it some minutes after the others have left."""
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices("the job is done")


def _explain(error: Exception, argv: list[str]) -> str:
    """The mistake in the flags, and the nearest correct flag."""
    text = "\n".join(argv)
    path = re.search(r"^--?config[=\n](.+)$", text, re.MULTILINE)
    try:
        loaded = flags.FLAGS["config"].parser.parse(path[1]) if path else None
    except Exception as broken:
        reason = str(broken).strip().splitlines()[-1].removeprefix("ValueError: ")
        kind = "" if isinstance(broken, ValueError) else f"{type(broken).__name__}: "
        return f"--config={path[1]}: {kind}{reason}"
    if isinstance(loaded, ConfigDict):
        for override in re.finditer(r"^--?config\.([^=\n]+)=?(.*)$", text, re.MULTILINE):
            key, value = override.groups()
            if key not in loaded:
                return f"the config has no key {key!r}{_nearest(key, loaded)}"
            if override.start() < path.start():
                return f"--config.{key} needs to stand after --config={path[1]}"
            if f".{key}=" in str(error):
                kind, example = type(loaded[key]).__name__, f"--config.{key}={loaded[key]}"
                return f"--config.{key} needs a value of type {kind}, as {example}; got {value!r}"
    elif path and not isinstance(error, flags.Error):
        return _no_config(path[1], loaded)
    elif not path and "config" in flags.FLAGS and "flag 'config." in str(error):
        return NO_CONFIG
    if isinstance(error, flags.UnrecognizedFlagError):
        name = error.flagname
        # Words first: by letters alone, --step is nearer to --steps than --num_steps is.
        if meant := suggestion(name, flags.FLAGS, cutoff=0.6):
            return f"unknown flag --{name}; {meant.strip()}"
    reason = str(error).strip().splitlines()[0]
    missing = re.match(r"flag --(\w+)=None", reason)
    return f"--{missing[1]} is missing" if missing else reason.removeprefix("flag ")


def _no_config(path: str, loaded: object) -> str:
    """The reason why the file of --config gives no config."""
    path = path.partition(":")[0]
    if os.path.isfile(path):
        return f"--config={path}: get_config() needs to return a ConfigDict; got {loaded!r}"
    known = [str(file.relative_to(ROOT)) for file in (ROOT / "configs").rglob("[!_]*.py")]
    return f"--config={path}: no such file{_nearest(path, known, cutoff=0.3)}"


def _nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    meant = suggestion(name, known, cutoff=cutoff)
    return f"; {meant.strip()}" if meant else ""


def _exit(status: int, message: str) -> NoReturn:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(status)
