"""The files below a folder, wherever links lead: people keep large data sets on several disks, one link a piece."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from vw2_robot.errors import InputError


def files_below(root: Path) -> Iterator[Path]:
    """Yield every file in and below `root`; of a folder that several links lead to, under the first name alone.

    Raises:
        InputError: a folder cannot be listed.
    """
    seen: set[tuple[int, int]] = set()
    for folder, inside, files in os.walk(root, followlinks=True, onerror=_refuse):
        here = Path(folder).stat()
        if (here.st_dev, here.st_ino) in seen:  # links may lead back
            inside.clear()
            continue
        seen.add((here.st_dev, here.st_ino))
        inside.sort()
        yield from (file for name in sorted(files) if (file := Path(folder, name)).is_file())


def _refuse(error: OSError) -> None:
    raise InputError(f"{error.filename} cannot be listed ({error.strerror}); leave it out, or allow it") from error


def name_below(root: Path, file: Path) -> str:
    """Return the name of a file relative to `root`, with slashes.

    Raises:
        InputError: it is not UTF-8, so that no index, log or page could hold it.
    """
    name = file.relative_to(root).as_posix()
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InputError(f"{root} holds {os.fsencode(name)!r}, a name that is not UTF-8; rename it") from None
    return name
