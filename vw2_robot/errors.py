"""The two errors a person is meant to read: bad input, and a missing extra.

Programs print them as one message and exit with status 1 (see `vw2_robot.cli`). Any other exception is a bug of ours
and keeps its traceback.
"""

from __future__ import annotations

import importlib
from types import ModuleType


class InputError(ValueError):
    """Something that came from outside is wrong. The message says what, where, expected, found and what to do."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised in the main thread by programs (`vw2_robot.cli`): clean up like for Ctrl-C and leave."""


class MissingExtraError(ImportError):
    """An optional dependency is not installed. The message names the extra and the pip command."""


def require(module: str, *, extra: str) -> ModuleType:
    """Import `module`, or raise `MissingExtraError` that names the extra which provides it.

    Only the absence of `module` itself is translated; an error inside an installed module passes through.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise MissingExtraError(
            f'{module} is not installed; this part of vw2_robot needs the extra "{extra}": '
            f'pip install "vw2-robot[{extra}]"'
        ) from error
