"""Files below a folder, through symbolic links: large data sets may be spread over several disks by links."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from vw2_robot.errors import InputError


def files_below(root: Path) -> Iterator[Path]:
    """Yield every file in and below `root`; a folder with several links to it is read once, under its first name.

    Raises:
        InputError: a folder cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename} cannot be listed ({error.strerror}); leave it out, or allow it") from error

    seen: set[tuple[int, int]] = set()
    for folder, inside, files in os.walk(root, followlinks=True, onerror=refuse):
        here = Path(folder).stat()
        if (here.st_dev, here.st_ino) in seen:  # links may form a cycle
            inside.clear()
            continue
        seen.add((here.st_dev, here.st_ino))
        # In place: `os.walk` goes on to what is in this list, in its order.
        inside.sort()
        yield from (file for name in sorted(files) if (file := Path(folder, name)).is_file())


def name_below(root: Path, file: Path) -> str:
    """Return the name of a file relative to `root`, with slashes.

    Raises:
        InputError: the name is not UTF-8 and could not be stored in an index, a log or a page.
    """
    name = file.relative_to(root).as_posix()
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InputError(f"{root} holds {os.fsencode(name)!r}, a name that is not UTF-8; rename it") from None
    return name
