"""The errors that are meant for users: wrong input, and a missing extra.

Programs print them as one message and exit with status 1 (see `vw2_robot.command_line.program`). Any other exception
is a bug and keeps its traceback.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
from pathlib import Path
from types import ModuleType
from typing import Any


class InputError(ValueError):
    """Input from outside is wrong. The message has what, where, expected, found, and what to do."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised in the main thread of programs (`vw2_robot.process`): clean up as for Ctrl-C and exit."""


class MissingExtraError(ImportError):
    """An optional dependency is not installed. The message names the extra and the pip command."""


def require(module: str, *, extra: str) -> ModuleType:
    """Import an optional dependency.

    Args:
        module: its dotted name.
        extra: of this package, that installs it.

    Raises:
        MissingExtraError: `module` is not installed; an error inside an installed module passes unchanged.
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
    """Return the pip command that installs an extra, or without one the core.

    The package is on no index, so the command names the source of this copy: the checkout that it runs in, or the
    checkout, wheel or repository that pip noted when it installed it (PEP 610).
    """
    what = f"[{extra}]" if extra else ""
    checkout = Path(__file__).resolve().parents[1]
    if (checkout / "setup.cfg").is_file():
        return f'pip install -e "{checkout}{what}"'
    try:
        note = importlib.metadata.distribution("vw2-robot").read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        note = None
    source: dict[str, Any] = json.loads(note) if note else {"url": "file:///PATH-OF-A-CHECKOUT-OR-WHEEL"}
    url = str(source["url"])
    if "vcs_info" in source:
        url = f"{source['vcs_info']['vcs']}+{url}@{source['vcs_info']['commit_id']}"
    return f'pip install "vw2-robot{what} @ {url}"'
