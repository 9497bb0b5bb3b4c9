"""The two errors a person is meant to read: bad input, and a missing extra.

Programs print them as one message and exit with status 1 (see `vw2_robot.command_line.program`). Any other exception
is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
from pathlib import Path
from types import ModuleType


class InputError(ValueError):
    """Something that came from outside is wrong. The message says what, where, expected, found and what to do."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised in the main thread by programs (`command_line.program`): clean up like for Ctrl-C and leave."""


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
            f'{module} is not installed; this part of vw2_robot needs the extra "{extra}": {install_command(extra)}'
        ) from error


def install_command(extra: str = "") -> str:
    """Return the pip command for an extra, or without one for the core.

    The package is on no index, so the command names the place that this copy came from: the checkout that it runs in,
    or the checkout or wheel that pip noted when it installed it.
    """
    what = f"[{extra}]" if extra else ""
    checkout = Path(__file__).resolve().parents[1]
    if (checkout / "setup.cfg").is_file():
        return f'pip install -e "{checkout}{what}"'
    return f'pip install "vw2-robot{what} @ {_origin()}"'


def _origin() -> str:
    """Return where pip installed this copy from (PEP 610), or words for it where pip did not note it."""
    try:
        note = importlib.metadata.distribution("vw2-robot").read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        note = None
    return str(json.loads(note)["url"]) if note else "file:///PATH-OF-A-CHECKOUT-OR-WHEEL"
