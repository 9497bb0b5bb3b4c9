"""Inlined files: images and videos as data URIs, which make the report self-contained.

A run folder may come from other people. A link in it that leads out of it could put any file of the reader into the
page, so no such link is followed.
"""

from __future__ import annotations

import base64
import logging
from pathlib import Path

from vw2_robot.errors import InputError

MAX_BYTES = 64 * 2**20
_LOG = logging.getLogger(__name__)


def lies_in(folder: Path, path: Path) -> bool:
    """Return whether `path` is a file inside the run folder, links resolved; a link that leads out is logged."""
    if not path.is_file():
        return False
    is_inside = path.resolve().is_relative_to(folder.resolve())
    if not is_inside:
        _LOG.warning("%s is left out: it leads out of the run folder, to %s", path, path.resolve())
    return is_inside


def data_uri(path: Path, kind: str) -> str:
    """Return a file as a data URI.

    Args:
        path: The file.
        kind: Its media type, such as "image/png".

    Raises:
        InputError: The file is too large for a page.
    """
    if (size := path.stat().st_size) > MAX_BYTES:
        raise InputError(f"{path} has {size} bytes, expected at most {MAX_BYTES} for a page; take it out of the folder")
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"
