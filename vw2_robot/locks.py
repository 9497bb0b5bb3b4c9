"""One owner of a folder: a run, data or replay folder is written by one process at a time.

The lock is the kernel's (`flock`), so it ends with its process however that ends; the file says who holds it and since
when. A second start is refused before it touches anything. The file goes when the lock is given back.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any
from weakref import WeakValueDictionary

from vw2_robot.errors import InputError

_LOG = logging.getLogger(__name__)
_HELD: WeakValueDictionary[tuple[int, str], FolderLock] = WeakValueDictionary()


class FolderLock:
    """A lock that is held. It is given back by `release`, or when the last reference or the process goes."""

    def __init__(self, file: IO[str], path: Path, made: Sequence[Path]) -> None:
        self._file, self._path, self._made, self._owner = file, path, made, os.getpid()

    def release(self) -> None:
        """Give the lock back, remove its file, and the folders made for it that stayed empty.

        Calling it twice does no harm.
        """
        if self._file.closed:
            return
        try:
            # The name goes while the lock is still held: whoever has opened the old file meanwhile notices (`_is_at`).
            # A forked child that lets go of its copy leaves file and lock to the parent.
            if self._owner == os.getpid() and _is_at(self._file, self._path):
                self._path.unlink()
                for folder in self._made:
                    folder.rmdir()
        except OSError:  # not empty, or the disk has gone: nothing that a second start would stumble over
            pass
        finally:
            self._file.close()

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __del__(self) -> None:
        self.release()


def lock_folder(folder: Path, *, what: str, beside: bool = False) -> FolderLock:
    """Become the owner of `folder`; the same process may ask again and gets the same lock.

    Args:
        folder: made if missing (its parent, if `beside`).
        what: what is done there, for the message of a second start: "training", "a recording".
        beside: keep the lock file next to the folder, for folders that appear only when they are complete.

    Raises:
        InputError: another process holds it; the message says which and since when.
    """
    folder = Path(folder).resolve()  # whatever way it is spelt
    path = folder.with_name(f".{folder.name}.lock") if beside else folder / ".lock"
    key = (os.getpid(), str(path))
    if (held := _HELD.get(key)) is not None and not held._file.closed:
        return held
    made = [parent for parent in path.parents if not parent.exists()]
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = path.open("a+", encoding="utf-8")
        except FileNotFoundError:  # whoever gave the lock back took the empty folder with it
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = _holder(file.read())
            file.close()
            raise InputError(
                f"{folder} is in use by another run: {holder}. Wait for it or stop it, or use another folder"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                file.close()
                raise OSError(error.errno, error.strerror, str(path)) from error
            _LOG.warning("%s: this file system has no locks (%s); see to it that one run writes here", path, error)
        if _is_at(file, path):
            break
        file.close()  # given back, and its name removed, between opening and locking: take the new one
    lock = FolderLock(file, path, made)
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    facts: dict[str, Any] = {"what": what, "pid": os.getpid(), "host": socket.gethostname(), "since": now}
    try:
        file.truncate(0)
        file.write(json.dumps({**facts, "command": " ".join(sys.argv)[:500]}) + "\n")
        file.flush()
    except OSError as error:
        with suppress(OSError):  # what could not be written is tried again when the file is closed
            lock.release()
        raise OSError(error.errno, error.strerror, str(path)) from error
    _HELD[key] = lock
    return lock


def _is_at(file: IO[str], path: Path) -> bool:
    """Whether `path` still names this open file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _holder(text: str) -> str:
    try:
        facts = json.loads(text)
        return f"{facts['what']}, process {facts['pid']} on {facts['host']}, since {facts['since']}"
    except (ValueError, KeyError, TypeError):  # it has the lock, but has not yet written who it is
        return "it has just started"
