"""The decorator of all programs: it makes a checked configuration of a command line, and one message of an error.

Hydra composes `vw2_robot.configs`, `config_from` turns the result into the program's root dataclass (a misspelt key or
a wrong type stops the run before any work), and errors meant for users are printed as one message with exit status 1.
No DictConfig leaves this file. Hydra is imported when a program starts, not when the library is imported.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from vw2_robot import __version__
from vw2_robot.command_line.config_groups import check_groups, groups_of
from vw2_robot.command_line.config_tree import check_keys, config_from, config_tree, differing_keys
from vw2_robot.command_line.keys import print_keys
from vw2_robot.command_line.overrides import as_typed, check_removals, check_sweep
from vw2_robot.command_line.preflight import check_before_work
from vw2_robot.command_line.program_help import help_text
from vw2_robot.command_line.spellings import as_overrides
from vw2_robot.errors import InputError, MissingExtraError, require
from vw2_robot.process import orderly, stop_at_once
from vw2_robot.storage.files import os_error

if TYPE_CHECKING:
    from omegaconf import DictConfig

ConfigT = TypeVar("ConfigT")
# What a user can do about an error of the operating system.
_CURES = {
    errno.ENOSPC: "free some space and start the same command again",
    errno.EDQUOT: "free some of your share of this disk",
    errno.EMFILE: "this process may open more files after `ulimit -n 65536`",
    errno.ENFILE: "the machine has too many files open; end other programs",
    errno.ENOMEM: "use a smaller batch, fewer workers, or a machine with more memory",
    errno.EAGAIN: "there are too many processes and threads; end other programs, or raise `ulimit -u`",
    errno.EIO: "the disk or network reports a failure, have it checked (dmesg)",
    errno.EROFS: "it lies on a read-only file system; use another folder",
    errno.EACCES: "use a folder that is yours, or change its permissions",
    errno.EPERM: "use a folder that is yours, or change its permissions",
    errno.ENAMETOOLONG: "use shorter names (255 bytes each)",
    errno.ELOOP: "its links lead in a circle",
    errno.EISDIR: "a folder lies where a file is expected; give another name",
    errno.ENOTDIR: "a file lies where a folder is expected; give another name",
    errno.ENOTEMPTY: "the folder there is not empty; give another name",
    errno.EEXIST: "something of that name is there already; give another name",
    errno.ENOENT: "it is not there, or was removed meanwhile",
}
TRACE_ADVICE = "Set HYDRA_FULL_ERROR=1 for a full stack trace."
# These are limits of the machine, so that the name of the file does not matter.
_LIMITS = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EIO)


def program(
    config_cls: type[ConfigT],
    *,
    config_name: str,
    extra: str = "train",
    ranks: bool = False,
    main_keys: Sequence[str] = (),
) -> Callable[[Callable[[ConfigT], None]], Callable[[], None]]:
    """Decorate `run(config)` into a console-script `main()` that is configured by `configs/<config_name>.yaml`.

    Args:
        config_cls: root dataclass of the program.
        config_name: of its yaml file.
        extra: installs what the program needs, Hydra first of all.
        ranks: may be started as several ranks (torchrun, srun), which are joined while it runs.
        main_keys: the keys that `--help` explains; empty: all.
    """

    def decorate(run: Callable[[ConfigT], None]) -> Callable[[], None]:
        def main() -> None:
            arguments = sys.argv[1:]
            if "--version" in arguments:  # Hydra would print its own version
                print(f"vw2_robot {__version__}")
                return
            try:
                require("hydra", extra=extra)
            except MissingExtraError as error:
                print_error(config_name, str(error))
                raise SystemExit(1) from None
            if "--help" in arguments or "-h" in arguments:
                with orderly(config_name):
                    print(help_text(config_cls, config_name, main_keys))
            elif "--keys" in arguments:
                with orderly(config_name):
                    _print_keys(config_cls, config_name)
            else:
                _start(config_cls, config_name, run, ranks)

        return main

    return decorate


def _print_keys(config_cls: type, config_name: str) -> None:
    """Print the keys that begin as one of the arguments does; without arguments all of them."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--keys"]
    for prefix in arguments or [""]:
        if not print_keys(config_cls, config_name, prefix):
            print_error(config_name, f"no key begins with {prefix!r}; --keys alone lists all of them")
            raise SystemExit(1)


def _start(config_cls: type[ConfigT], config_name: str, run: Callable[[ConfigT], None], ranks: bool) -> None:
    """Let Hydra compose the configuration of the command line, and run the program with it, or each job of a sweep.

    Args:
        config_cls: root dataclass of the program.
        config_name: of its yaml file.
        run: the program.
        ranks: may be started as several ranks.
    """
    import hydra

    failed: list[str] = []
    started_by = (socket.gethostname(), os.getpid())

    @hydra.main(version_base="1.3", config_path="pkg://vw2_robot.configs", config_name=config_name)
    def job(tree: DictConfig) -> None:
        try:
            with all_ranks(config_name) if ranks else nullcontext():
                config = _checked_config(config_cls, tree)
                if ranks:
                    check_same_on_all_ranks(config)
                with stop_at_once(config_name):
                    check_before_work(config)
                run(config)
        except Exception as error:
            if (message := _message(error)) is None or os.environ.get("HYDRA_FULL_ERROR"):
                raise
            failed.append(_failed_job(error, message, config_name, started_by))

    # Otherwise tokenizers warns at every fork after it has used its threads.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with orderly(config_name):
        groups = tuple(groups_of(config_name))
        try:
            overrides = as_overrides(sys.argv[1:], config_cls, groups)
            check_groups(overrides, config_name)
            check_removals(overrides, config_cls, groups)
            check_sweep(overrides, config_cls)
        except InputError as error:
            print_error(config_name, str(error))
            raise SystemExit(1) from None
        # Hydra reads `sys.argv` itself.
        sys.argv[1:] = as_typed(overrides, config_cls, groups)
        job()
        if failed:
            print_error(config_name, f"{len(failed)} of the jobs failed: {'; '.join(failed)}")
            raise SystemExit(1)


def _checked_config(config_cls: type[ConfigT], tree: DictConfig) -> ConfigT:
    """Return what Hydra composed as the program's dataclass.

    Raises:
        InputError: an unknown key, a wrong type, or a value that is missing or refers to nothing.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    # Before values that are missing: a misspelt key may be the reason.
    check_keys(config_cls, cast(dict[str, Any], OmegaConf.to_container(tree)))
    try:
        values = OmegaConf.to_container(tree, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        what = str(error).splitlines()[0]
        raise InputError(f"{what}; give {error.full_key}=... (--help shows an example)") from error
    return config_from(config_cls, cast(dict[str, Any], values))


def _failed_job(error: Exception, message: str, config_name: str, started_by: tuple[str, int]) -> str:
    """Print an error that is meant for a person, and end the program, or return the name of the job in a sweep.

    Args:
        error: that ended the job.
        message: of it.
        config_name: of the program's yaml file.
        started_by: host and process of the command.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import CompactHydraException
    from hydra.types import RunMode

    if not getattr(error, "silent", False):  # of several ranks one prints
        is_answer = isinstance(error, InputError | MissingExtraError)  # to what was typed: a trace would not help
        print_error(config_name, message if is_answer else f"{message}\n{TRACE_ADVICE}")
    facts = HydraConfig.get()
    if facts.mode != RunMode.MULTIRUN:
        raise SystemExit(1) from None
    if (socket.gethostname(), os.getpid()) != started_by:
        # A job of a cluster: Hydra hands this to the process that waits for the sweep.
        raise CompactHydraException(f"{config_name}: error: job #{facts.job.num} failed: {message}") from None
    # In a sweep an exception would keep Hydra from starting the next job.
    return f"#{facts.job.num} ({' '.join(facts.overrides.task)})"


def all_ranks(name: str) -> AbstractContextManager[None]:
    """Return the context in which the ranks that the environment names are joined; nothing for a single process."""
    if os.environ.get("WORLD_SIZE", "") in ("", "0", "1"):
        return nullcontext()
    with stop_at_once(name):
        from vw2_robot.distributed.ranks import joined_ranks  # torch, which a single process need not load here

    return joined_ranks()


def check_same_on_all_ranks(config: Any) -> None:
    """Compare the configuration of all ranks.

    Raises:
        InputError: they differ; names the keys.
    """
    if os.environ.get("WORLD_SIZE", "") in ("", "0", "1"):
        return
    from vw2_robot.distributed.ranks import gather

    trees = gather(config_tree(config))
    for number, tree in enumerate(trees):
        if names := differing_keys(trees[0], tree):
            raise InputError(
                f"rank 0 and rank {number} have different configurations ({', '.join(names[:5])}); start all ranks "
                "with the same command"
            )


def _message(error: Exception) -> str | None:
    """Return the message to print for an error; None for a bug, which keeps its traceback."""
    if isinstance(error, InputError | MissingExtraError):
        return str(error)
    text = " ".join(str(error).split())
    if (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"  # torch's, of a GPU
        or (isinstance(error, RuntimeError) and "DefaultCPUAllocator" in text)
    ):
        return f"not enough memory ({text[:300] or 'MemoryError'}); {_CURES[errno.ENOMEM]}"
    if isinstance(error, RuntimeError) and "can't start new thread" in text:
        return f"{text}: {_CURES[errno.EAGAIN]}"
    if getattr(error, "errno", None) is None:
        error = os_error(error, Path("a file")) or error
    if not isinstance(error, OSError) or error.errno not in _CURES:
        return None
    names = " -> ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    if not names and error.errno not in _LIMITS:
        return None
    return f"{names or 'a limit of this machine'}: {error.strerror}; {_CURES[error.errno]}"


def print_error(program_name: str, message: str) -> None:
    """Print an error that is meant for a user."""
    with suppress(OSError):  # the disk behind the streams may be full as well
        sys.stdout.flush()
        print(f"{program_name}: error: {message}", file=sys.stderr)
