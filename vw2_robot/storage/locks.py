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
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from weakref import WeakValueDictionary

from vw2_robot.errors import InputError

_LOG = logging.getLogger(__name__)
_HELD: WeakValueDictionary[tuple[int, str], FolderLock] = WeakValueDictionary()


class FolderLock:
    """A lock that is held. It is given back by `release`, or when the last reference or the process goes."""

    def __init__(self, descriptor: int, path: Path, folder: Path, made: Sequence[Path]) -> None:
        self._descriptor, self._path, self._folder, self._made = descriptor, path, folder, made
        self._owner = os.getpid()

    @property
    def held(self) -> bool:
        """Until `release`."""
        return self._descriptor >= 0

    def release(self) -> None:
        """Give the lock back, remove its file, and the folders made for it that stayed empty.

        Calling it twice does no harm.
        """
        if not self.held:
            return
        try:
            # The name goes while the lock is still held: whoever has opened the old file meanwhile notices (`_is_at`).
            # A forked child that lets go of its copy leaves file and lock to the parent.
            if self._owner == os.getpid() and _is_at(self._descriptor, self._path):
                self._path.unlink()
                for folder in self._made:
                    folder.rmdir()
        except OSError:  # not empty, or the disk has gone: nothing that a second start would stumble over
            pass
        finally:
            self._close()

    def _close(self) -> None:
        os.close(self._descriptor)
        self._descriptor = -1

    def take(self, what: str, *, wait: bool = False) -> bool:
        """Become the owner and write who that is; False where the file was given back since it was opened."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            holder = _holder(os.pread(self._descriptor, 4096, 0).decode("utf-8", "replace"))
            self._close()
            raise InputError(
                f"{self._folder} is in use by another run: {holder}. Wait for it or stop it, or use another folder"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                self._close()
                raise OSError(error.errno, error.strerror, str(self._path)) from error
            _LOG.warning(
                "%s: this file system has no locks (%s); see to it that one run writes here", self._path, error
            )
        if not _is_at(self._descriptor, self._path):
            self._close()
            return False
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        facts = {"what": what, "pid": os.getpid(), "host": socket.gethostname(), "since": now}
        try:
            os.truncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"{json.dumps(facts)}\n".encode(), 0)
        except OSError as error:
            self.release()
            raise OSError(error.errno, error.strerror, str(self._path)) from error
        return True

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __del__(self) -> None:
        self.release()


def lock_folder(folder: Path, *, what: str, beside: bool = False, wait: bool = False) -> FolderLock:
    """Become the owner of `folder`; the same process may ask again and gets the same lock.

    Args:
        folder: made if missing (its parent, if `beside`).
        what: what is done there, for the message of a second start: "training", "a recording".
        beside: keep the lock file next to the folder, for folders that appear only when they are complete.
        wait: until the holder gives it back, instead of refusing: for what several runs share and one of them makes.

    Raises:
        InputError: another process holds it; the message says which and since when.
        OSError: with the name of the lock file.
    """
    folder = Path(
        os.path.realpath(folder)
    )  # whatever way it is spelled; `resolve` has no OSError for links in a circle
    path = folder.with_name(f".{folder.name}.lock") if beside else folder / ".lock"
    key = (os.getpid(), str(path))
    if (other := _HELD.get(key)) is not None and other.held:
        return other
    made = [parent for parent in path.parents if not parent.exists()]
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # Closed in programs that this one starts, which would hold the lock as long as they live. Not through a
            # link: in a stranger's folder it could lead to any file, and this one is emptied.
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        except FileNotFoundError:  # whoever gave the lock back took the empty folder with it
            continue
        lock = FolderLock(descriptor, path, folder, made)
        if lock.take(what, wait=wait):
            _HELD[key] = lock
            return lock


def clear_dead_lock(folder: Path) -> None:
    """Remove the lock file that a killed process left in a folder which nobody will write again; a held one stays."""
    if (folder / ".lock").is_file():
        with suppress(InputError, OSError):  # held by another process, or a folder that may only be read
            lock_folder(folder, what="clearing a lock").release()


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether `path` still names this open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _holder(text: str) -> str:
    try:
        facts = json.loads(text)
        return f"{facts['what']}, process {facts['pid']} on {facts['host']}, since {facts['since']}"
    except (ValueError, KeyError, TypeError):  # it has the lock, but has not yet written who it is
        return "it has just started"
