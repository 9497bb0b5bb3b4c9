"""Generated parts of pages that people write: between two comments, everything is made from plan and archive."""

from __future__ import annotations

import re
from pathlib import Path

from vw2_robot.storage.files import write_text

BEGIN = "<!-- generated from here on: python -m benchmarks.experiment {command} -->"
END = "<!-- end of the generated part -->"


def replace_part(page: Path, command: str, text: str) -> None:
    """Replace the generated part of a page.

    Args:
        page: a markdown file with the two comments.
        command: that writes this part; it is in the first comment.
        text: the new part.

    Raises:
        SystemExit: the page has no such part.
    """
    before, _, after = _parts(page, command)
    write_text(page, f"{before}\n{text.strip()}\n{after}")
    print(f"written: {page}", flush=True)


def current_part(page: Path, command: str) -> str:
    """Return the generated part of a page as it is, without blank ends.

    Raises:
        SystemExit: the page has no such part.
    """
    return _parts(page, command)[1].strip()


def _parts(page: Path, command: str) -> tuple[str, str, str]:
    """Return what is before (with the first comment), in and after (with the second one) the generated part."""
    begin = BEGIN.format(command=command)
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    found = re.fullmatch(rf"(.*{re.escape(begin)}\n)(.*)({re.escape(END)}.*)", text, re.DOTALL)
    if found is None:
        raise SystemExit(f"{page} has no part to generate: the lines {begin} and {END}")
    return found[1], found[2], found[3]
