"""From a command line to a checked dataclass: the first line of every program.

Hydra composes `vw2_robot.configs`, `config_from` turns the result into the program's root dataclass (a misspelt key or
a wrong type stops the run before any work), and errors meant for a person leave as one message with exit status 1. No
DictConfig gets past this file. Hydra is imported when a program starts, not when the library is imported.
"""

from __future__ import annotations

import errno
import importlib
import os
import re
import sys
from collections.abc import Callable
from typing import NoReturn, TypeVar

from vw2_robot import __version__
from vw2_robot.config_tree import config_from
from vw2_robot.errors import InputError, MissingExtraError, require

ConfigT = TypeVar("ConfigT")
# `section.key=value`: the yaml files show what is changed often, the dataclasses know all keys. Hydra would ask for
# a plus sign before the others; `config_from` refuses what no dataclass has, and says what is near.
_NESTED = re.compile(r"(?!hydra\.)[A-Za-z_]\w*(\.\w+)+=")
# What the operating system may refuse of a path that a person gave: these are input errors, not bugs.
_DISK_TROUBLES = (errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.EROFS, errno.ENOSPC, errno.EDQUOT)


def program(
    config_cls: type[ConfigT], *, config_name: str, extra: str = "train"
) -> Callable[[Callable[[ConfigT], None]], Callable[[], None]]:
    """Decorate `run(config)` into a console-script `main()` that is configured by `configs/<config_name>.yaml`.

    `extra` is the one that installs what the program needs, Hydra first of all.
    """

    def decorate(run: Callable[[ConfigT], None]) -> Callable[[], None]:
        def main() -> None:
            if _version_was_asked():
                return
            try:
                require("hydra", extra=extra)
            except MissingExtraError as error:
                _leave(config_name, error)
            import hydra
            from omegaconf import DictConfig, OmegaConf
            from omegaconf.errors import OmegaConfBaseException

            @hydra.main(version_base="1.3", config_path="pkg://vw2_robot.configs", config_name=config_name)
            def job(tree: DictConfig) -> None:
                try:
                    values = OmegaConf.to_container(tree, resolve=True, throw_on_missing=True)
                except OmegaConfBaseException as error:
                    what = str(error).splitlines()[0]
                    _leave(config_name, InputError(f"{what}; give {error.full_key}=... (--help shows an example)"))
                try:
                    run(config_from(config_cls, values))  # type: ignore[arg-type]
                except (InputError, MissingExtraError) as error:
                    _leave(config_name, error)
                except OSError as error:
                    if error.errno not in _DISK_TROUBLES:
                        raise
                    _leave(config_name, error)

            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
            sys.argv[1:] = [f"++{word}" if _NESTED.match(word) else word for word in sys.argv[1:]]
            try:
                job()
            except KeyboardInterrupt:
                print(f"\n{config_name}: stopped", file=sys.stderr)
                raise SystemExit(130) from None

        return main

    return decorate


def program_of_an_extra(module: str) -> Callable[[], None]:
    """Return a console script for the program in `module`, which cannot even be imported without its extra."""

    def main() -> None:
        if _version_was_asked():
            return
        try:
            found = importlib.import_module(module)
        except MissingExtraError as error:
            _leave(module.rpartition(".")[2], error)
        found.main()

    return main


record = program_of_an_extra("vw2_robot.envs.record")


def _version_was_asked() -> bool:
    """Print our version where it is asked for; Hydra would print its own."""
    if "--version" in sys.argv[1:]:
        print(f"vw2_robot {__version__}")
        return True
    return False


def _leave(program_name: str, error: Exception) -> NoReturn:
    if os.environ.get("HYDRA_FULL_ERROR"):
        raise error
    sys.stdout.flush()
    print(f"{program_name}: error: {error}\nSet HYDRA_FULL_ERROR=1 for a full stack trace.", file=sys.stderr)
    raise SystemExit(1) from None
